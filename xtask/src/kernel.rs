//! `cargo xtask kernel`.

use std::process::ExitCode;

/// Get, build, check or describe a kernel.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
