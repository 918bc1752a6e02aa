//! `cargo xtask budget`.

use std::process::ExitCode;

/// Measure what has a budget, in instructions, exits and bytes.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
