//! `cargo xtask …`: every chore of the project, one file a command.

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod boot;
mod budget;
mod dist;
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
    Bench(bench::Arguments),
    Dist(dist::Arguments),
    Tidy(tidy::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Boot(a) => boot::run(a),
        Command::Test(a) => test::run(a),
        Command::Kernel(a) => kernel::run(a),
        Command::Lab(a) => lab::run(a),
        Command::Budget(a) => budget::run(a),
        Command::Bench(a) => bench::run(a),
        Command::Dist(a) => dist::run(a),
        Command::Tidy(a) => tidy::run(a),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The workspace that this xtask was built in: chores work whatever folder they are called from.
pub(crate) fn workspace_root() -> std::path::PathBuf {
    let xtask = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}
