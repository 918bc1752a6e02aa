//! Runs a program where KVM works: here if it does, else in the lab. For
//! `CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER`. With `--probe` alone it says what the probe found.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use undercroft_harness::lab;

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().skip(1).collect();
    let Some((program, arguments)) = argv.split_first() else {
        eprintln!("expected a program and its arguments");
        return ExitCode::from(2);
    };
    if argv == ["--probe"] {
        println!("{}", undercroft_vmm::probe::probe());
        return ExitCode::SUCCESS;
    }
    let Some(reason) = lab::needed() else {
        let error = Command::new(program).args(arguments).exec();
        eprintln!("{}: {error}", program.display());
        return ExitCode::from(127);
    };
    let run = || lab::ensure()?.command(&argv).tty_if_terminal().forward_signals(true).status();
    match run() {
        Ok(ended) => ExitCode::from(ended.code()),
        Err(error) => {
            eprintln!("error: {error} (the lab is needed: {reason})");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
