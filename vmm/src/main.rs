//! The virtual machine monitor as a program: `undercroft-vmm --help` lists its options.
//!
//! Exit status: 0 the guest powered off or the machine was told to stop, 1 an error, 2 wrong arguments, 3 reset, 4 the guest's
//! kernel panicked, 5 triple fault, 6 KVM internal error.

use std::error::Error;
use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use undercroft_vmm::{Machine, MachineConfig, arguments, confine};

const STATUS_ERROR: u8 = 1;
const STATUS_USAGE: u8 = 2;

fn main() -> ExitCode {
    let config = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments::Request::Run(config)) => *config,
        Ok(arguments::Request::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("undercroft-vmm: {error}");
            return ExitCode::from(STATUS_USAGE);
        }
    };
    match run(config) {
        Ok(end) => {
            if end.status() != 0 {
                eprintln!("undercroft-vmm: {end}");
            }
            ExitCode::from(end.status())
        }
        Err(error) => {
            eprintln!("undercroft-vmm: {}", chain(&error));
            ExitCode::from(STATUS_ERROR)
        }
    }
}

fn run(config: MachineConfig) -> Result<undercroft_vmm::End, undercroft_vmm::Error> {
    more_descriptors();
    let (seccomp, is_steered) = (config.seccomp, config.control_fd.is_some());
    let mut machine = Machine::new(config)?;
    // Whoever steers it ends it, by request or SIGKILL, and has its own reasons not to before its guest was told.
    if !is_steered {
        machine.end_on_signals()?;
    }
    let running = machine.start()?;
    confine::enter(confine::ThreadKind::Main, seccomp)?;
    running.wait()
}

/// A connection is a descriptor, and a shell's limit is a thousand of them. What cannot be raised is left as it is.
fn more_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text += ": ";
            text += &cause_text;
        }
        source = cause.source();
    }
    text
}
