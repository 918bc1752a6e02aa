//! `cargo xtask …`: every chore of the project, one file a command.

use std::process::ExitCode;

use clap::Parser;

mod boot;
mod budget;
mod kernel;
mod lab;
mod packages;
mod test;
mod tidy;

/// Every chore of undercroft. The two that matter first: `cargo xtask boot` and `cargo xtask test`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Boot(boot::Arguments),
    Test(test::Arguments),
    Kernel(kernel::Arguments),
    Lab(lab::Arguments),
    Budget(budget::Arguments),
    Tidy(tidy::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Boot(a) => boot::run(a),
        Command::Test(a) => test::run(a),
        Command::Kernel(a) => kernel::run(a),
        Command::Lab(a) => lab::run(a),
        Command::Budget(a) => budget::run(a),
        Command::Tidy(a) => tidy::run(a),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
