//! `cargo xtask lab`: the machine with working KVM made in software, for hosts that have none.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Subcommand;
use undercroft_harness::lab;
use undercroft_vmm::probe;

use crate::packages::{self, Group};

/// The machine with working KVM made in software. What needs it starts it by itself; this is for a look inside.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the lab, if it is not up, and return when it is ready.
    Up,
    /// End the lab, with what runs in it.
    Down,
    /// A shell in the lab.
    Shell,
    /// Run a command in the lab: the host's files are at their own paths, and KVM works.
    Run {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Whether KVM works here without the lab, and which labs are up.
    Status,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.verb {
        Verb::Up => up().map(|_| ExitCode::SUCCESS),
        Verb::Down => {
            match lab::down()? {
                0 => println!("no lab was up"),
                _ => println!("the lab is down"),
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Shell => {
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
            status_of(vec![shell])
        }
        Verb::Run { command } => status_of(command),
        Verb::Status => status(),
    }
}

fn up() -> anyhow::Result<lab::Lab> {
    packages::ensure(Group::Lab)?;
    Ok(lab::ensure()?)
}

fn status_of(command: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let ended = up()?.command(command).tty_if_terminal().forward_signals(true).status()?;
    Ok(ExitCode::from(ended.code()))
}

fn status() -> anyhow::Result<ExitCode> {
    println!("{}", probe::probe());
    let reports = lab::status()?;
    if reports.is_empty() {
        println!("no lab is up");
    }
    for report in reports {
        println!(
            "a lab is up for {} s (ready after {:.1} s): {} commands running, {} started so far; QEMU {}, broker {}, console {}",
            report.up_seconds,
            report.ready_ms as f64 / 1000.0,
            report.commands,
            report.started,
            report.qemu,
            report.broker,
            report.console.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
