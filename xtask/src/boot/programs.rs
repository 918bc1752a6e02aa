//! The programs that a boot runs: built by cargo when their sources have changed.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, bail};
use undercroft_harness::{guest, lab};

const PRODUCT: &str = "undercroft";

/// The VMM.
pub(crate) fn vmm() -> anyhow::Result<PathBuf> {
    Ok(guest::vmm()?)
}

/// The command line and service.
pub(crate) fn product() -> anyhow::Result<PathBuf> {
    let program = guest::target().join("release").join(PRODUCT);
    if lab::inside() {
        // Nothing is compiled there.
        return Ok(program);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--package", PRODUCT, "--bin", PRODUCT]);
    if program.exists() {
        command.arg("--quiet");
    } else {
        eprintln!("building {PRODUCT} (the first time takes a minute or two)");
    }
    let status = command.current_dir(guest::workspace()).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("cargo could not build {PRODUCT} (see above)");
    }
    Ok(program)
}
