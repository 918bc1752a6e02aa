//! `cargo xtask boot`: from nothing to a command in a distribution.
//!
//! Two steps. [`prepare`] makes what a boot needs (kernel, initramfs, programs, archives): it may use the network and
//! compilers. [`here`] boots it and runs the command, and needs nothing but KVM. Where the KVM probe says no, the second
//! step runs in the lab: `boot --prepared FILE`, with what the first one wrote down.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context;
use undercroft_harness::lab;

mod apart;
mod bar;
pub(crate) mod debian;
mod distribution;
mod here;
pub(crate) mod prepare;
pub(crate) mod programs;

/// The status of our own failures, told apart from the command's: what docker and env(1) use.
const FAILED: u8 = 125;

/// Boot the utility VM and run a command, or a shell, in a distribution.
///
/// Without a command it is a login shell. The command's exit status is this one's; 125 is a failure of ours.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A distribution and the tar archive of its root file system (plain or compressed), imported on its first use;
    /// may be given several times, the first is the default. Without any: a Debian, made once by mmdebstrap
    #[arg(long = "distro", value_name = "NAME=FILE")]
    distributions: Vec<distribution::Named>,

    /// A distribution with everything on its own disk, instead of a base that all made from the same archive share
    #[arg(long)]
    flat: bool,

    /// `stock` (a Linux distribution's), `tuned` (ours, see `cargo xtask kernel`) or a file
    #[arg(long, value_name = "stock|tuned|PATH")]
    kernel: Option<PathBuf>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: Option<u8>,

    /// Guest memory: a number of MiB, or with a suffix M or G
    #[arg(long, value_name = "SIZE", value_parser = mebibytes, default_value = "1G")]
    memory: u64,

    /// Say afterwards where the time went
    #[arg(long)]
    timeline: bool,

    /// The user to run the command as
    #[arg(long, value_name = "U")]
    user: Option<String>,

    /// The second step only: what the first step wrote down
    #[arg(long, hide = true, value_name = "FILE")]
    prepared: Option<PathBuf>,

    /// The command; `-d NAME` before it chooses the distribution
    #[arg(last = true, value_name = "[-d NAME] COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    Ok(boot(arguments).unwrap_or_else(|error| {
        eprintln!("{}", lines(&error));
        ExitCode::from(FAILED)
    }))
}

fn boot(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(file) = &arguments.prepared {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let plan = serde_json::from_slice(&text).with_context(|| format!("{} is no plan", file.display()))?;
        return here::boot(&plan).map(ExitCode::from);
    }
    let reason = lab::needed();
    let mut prepared = prepare::prepare(arguments, reason.is_some())?;
    match reason {
        None => here::boot(&prepared.plan).map(ExitCode::from),
        Some(reason) => in_the_lab(&reason, &mut prepared).map(ExitCode::from),
    }
}

/// Runs the second step in the lab.
fn in_the_lab(reason: &str, prepared: &mut prepare::Prepared) -> anyhow::Result<u8> {
    eprintln!("in the lab: {reason}");
    // First, because a Ctrl-C meanwhile ends this process on the spot, and would leave the plan behind.
    let lab = lab::ensure()?;
    let plan = prepared.write_down()?;
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    // Cargo may have put a newer one in its place meanwhile; the kernel says it so (proc(5), /proc/PID/exe).
    let program = program.to_string_lossy();
    let program = OsString::from(program.trim_end_matches(" (deleted)"));
    let argv = [program.as_os_str(), "boot".as_ref(), "--prepared".as_ref(), plan.as_os_str()];
    let status = lab.command(argv).tty_if_terminal().forward_signals(true).status()?;
    Ok(status.code())
}

/// An error and its causes: the first line says what, the others why.
fn lines(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // thiserror's transparent variants repeat themselves.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn mebibytes(text: &str) -> Result<u64, String> {
    let bad = || format!("expected a size such as 512M or 2G, at least 32M, and got {text}");
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1024),
        _ => (text, 1),
    };
    let size = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(bad)?;
    if size >= 32 { Ok(size) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mebibytes("512"), Ok(512));
        assert_eq!(mebibytes("512M"), Ok(512));
        assert_eq!(mebibytes("2g"), Ok(2048));
        for bad in ["", "G", "1T", "31M", "-1", "99999999999999999999G"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
    }
}
