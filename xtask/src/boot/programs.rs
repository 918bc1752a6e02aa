//! The programs that a boot runs: built by cargo when their sources have changed.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, bail};
use undercroft_harness::{guest, lab};

/// The VMM, built for speed: in the lab a tenth of it would be felt.
pub(crate) fn vmm() -> anyhow::Result<PathBuf> {
    build("undercroft-vmm", "undercroft-vmm")
}

/// The command line and service.
pub(crate) fn product() -> anyhow::Result<PathBuf> {
    build("undercroft", "undercroft")
}

fn build(package: &str, binary: &str) -> anyhow::Result<PathBuf> {
    let program = guest::target().join("release").join(binary);
    if lab::inside() {
        // Nothing is compiled there.
        return Ok(program);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--package", package, "--bin", binary]);
    if program.exists() {
        command.arg("--quiet");
    } else {
        eprintln!("building {binary} (the first time takes a minute or two)");
    }
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().unwrap_or(manifest);
    let status = command.current_dir(workspace).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("cargo could not build {binary} (see above)");
    }
    Ok(program)
}
