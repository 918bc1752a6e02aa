//! `undercroft`: the command line and, as its own child, the service.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
