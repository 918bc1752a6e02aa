//! `cargo xtask boot`.

use std::process::ExitCode;

/// Boot the utility VM and run a command, or a shell, in a distribution.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
