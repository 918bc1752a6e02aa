//! `cargo xtask lab`.

use std::process::ExitCode;

/// The machine with working KVM made in software.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
