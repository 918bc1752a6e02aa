//! `cargo xtask …`: every chore of the project, one file a command.

use std::{os::unix::process::CommandExt, process::ExitCode};

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
    /// Make the Debian archives that tests start from, unless they are cached
    #[command(hide = true)]
    Debians,
}

fn main() -> ExitCode {
    leave_cargos_environment();
    let outcome = match Command::parse() {
        Command::Boot(a) => boot::run(a),
        Command::Test(a) => test::run(a),
        Command::Kernel(a) => kernel::run(a),
        Command::Lab(a) => lab::run(a),
        Command::Budget(a) => budget::run(a),
        Command::Bench(a) => bench::run(a),
        Command::Dist(a) => dist::run(a),
        Command::Tidy(a) => tidy::run(a),
        Command::Debians => boot::debian::for_tests().map(|_| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Becomes the same program without what `cargo run` says of xtask's own package. Build scripts (ring's) look at it, so that cargo
/// would build their crates and all above them anew each time it is called from here, and again when it is called from a shell.
fn leave_cargos_environment() {
    let of_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    let names: Vec<_> = names.iter().filter(|name| name.to_str().is_some_and(of_ours)).collect();
    if names.is_empty() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = std::process::Command::new(program);
    again.args(std::env::args_os().skip(1));
    for name in names {
        again.env_remove(name);
    }
    // It comes back only if it cannot be executed; then it works as well, and takes longer.
    let _ = again.exec();
}

/// The workspace's folder: chores work whatever folder they are called from.
pub(crate) fn workspace_root() -> std::path::PathBuf {
    undercroft_harness::guest::workspace()
}
