//! `cargo xtask tidy`.

use std::process::ExitCode;

/// Check what the compiler does not.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
