//! `cargo xtask test`: everything that CI runs, in an order in which nobody waits who need not.

mod guests;
mod schedule;
mod steps;

use std::{process::ExitCode, time::Instant};

use anyhow::Context;

use steps::{STEPS, Step};
use undercroft_harness::lab;

use crate::packages::{self, Group};

/// Everything that CI runs: format, lints, unit and doc tests, tidy, dependencies, guest tests with both kernels, budgets.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this step (see --list); may be given several times
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Leave this step out; may be given several times
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
    /// Name the steps and end
    #[arg(long)]
    list: bool,
    /// Guest tests: only those whose name contains this; several texts are separated by commas
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.list {
        for step in STEPS {
            println!("{:10} {}", step.name, step.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in arguments.only.iter().chain(&arguments.skip) {
        let known = STEPS.iter().any(|s| s.name == name);
        anyhow::ensure!(known, "there is no step called \"{name}\": cargo xtask test --list names them");
    }
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|s| arguments.only.is_empty() || arguments.only.iter().any(|o| o == s.name))
        .filter(|s| !arguments.skip.iter().any(|o| o == s.name))
        .collect();

    // What is missing is told at once, and not by one step after the other.
    let is_chosen = |name: &str| chosen.iter().any(|s| s.name == name);
    let mut needed = Vec::new();
    if is_chosen("kernel") {
        needed.push(Group::KernelBuild);
    }
    if is_chosen("guests") {
        needed.extend([Group::StockKernel, Group::Debian, Group::Disk, Group::Tests]);
    }
    if is_chosen("budget") || (is_chosen("guests") && lab::needed().is_some()) {
        needed.push(Group::Lab);
    }
    packages::ensure_all(&needed)?;

    let mut context = steps::Context::new(arguments.filter, is_chosen("guests"), is_chosen("budget"));
    let mut failed = Vec::new();
    for (number, step) in chosen.iter().enumerate() {
        println!("\n== {}/{} {}: {}", number + 1, chosen.len(), step.name, step.what);
        let start = Instant::now();
        let outcome = (step.run)(&mut context).with_context(|| format!("step \"{}\"", step.name));
        let seconds = start.elapsed().as_secs();
        match outcome {
            Ok(()) => println!("== {} done in {seconds} s", step.name),
            // The others run all the same: one run tells all that is wrong.
            Err(error) => {
                println!("== {} FAILED after {seconds} s: {error:#}", step.name);
                failed.push(step.name);
            }
        }
    }
    println!();
    for line in &context.notes {
        println!("note: {line}");
    }
    if failed.is_empty() {
        println!("all of {} steps passed", chosen.len());
        Ok(ExitCode::SUCCESS)
    } else {
        println!("failed: {}; one alone: cargo xtask test --only {}", failed.join(", "), failed[0]);
        Ok(ExitCode::FAILURE)
    }
}
