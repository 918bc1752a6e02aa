//! The steps of a test run, each a few lines.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};

use undercroft_harness::guest;

use super::{
    guests,
    schedule::{self, Job},
};
use crate::{
    packages::{self, Group},
    workspace_root,
};

/// One step.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) run: fn(&mut Context) -> anyhow::Result<()>,
}

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "kernel",
        what: "start making the tuned kernel and the tests' Debians in the background, unless they are cached",
        run: kernel,
    },
    Step { name: "format", what: "rustfmt has nothing to say", run: format },
    Step { name: "clippy", what: "no warnings", run: clippy },
    Step { name: "unit", what: "unit and doc tests; they need neither KVM nor root nor network", run: unit },
    Step { name: "tidy", what: "rooms, unsafe, long files, documents", run: tidy },
    Step { name: "deny", what: "licences, bans and sources of dependencies", run: deny },
    Step {
        name: "guests",
        what: "real kernels, real distributions, with the stock and the tuned kernel",
        run: guests::run,
    },
    Step { name: "budget", what: "instructions, exits and bytes against their budgets", run: budget },
];

/// What steps hand on to later ones.
pub(super) struct Context {
    /// What is made meanwhile.
    background: Vec<Background>,
    /// Whether the guest tests are among the steps to come.
    has_guests: bool,
    /// Guest tests by name.
    pub(super) filter: Option<String>,
    /// The budgets' measurement.
    budget: Budget,
    /// What a person should read at the end.
    pub(super) notes: Vec<String>,
}

/// A subcommand of xtask at work.
struct Background {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

/// Those that there are.
pub(super) const KERNEL: &str = "kernel";
pub(super) const DEBIANS: &str = "debians";

/// The budgets are measured on one CPU, as a lab is: beside the guest tests, if there are any.
enum Budget {
    /// By nobody but the step itself, if that is chosen.
    Alone,
    /// The guest tests may do it.
    Wanted,
    /// They did.
    Done { passed: bool },
}

const BUDGET: &[&str] = &["budget", "--brief"];

impl Context {
    /// What of these steps is to come.
    pub(super) fn new(filter: Option<String>, has_guests: bool, has_budget: bool) -> Self {
        let budget = if has_budget { Budget::Wanted } else { Budget::Alone };
        Self { background: Vec::new(), has_guests, filter, budget, notes: Vec::new() }
    }

    /// The budgets' measurement, for the guest tests to run it among them.
    pub(super) fn budget_job(&self) -> Option<Job> {
        matches!(self.budget, Budget::Wanted).then(|| Job::Xtask { arguments: BUDGET, log: budget_log() })
    }

    /// Takes the budgets out of what failed: it is for the step to say.
    pub(super) fn budget_ended(&mut self, failed: &mut Vec<String>) {
        let (before, name) = (failed.len(), schedule::xtask_name(BUDGET));
        failed.retain(|failed| *failed != name);
        self.budget = Budget::Done { passed: failed.len() == before };
    }

    /// Starts a subcommand of xtask in the background.
    fn start(&mut self, what: &'static str) -> anyhow::Result<()> {
        let log = guest::target().join(format!("{what}-build.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new(std::env::current_exe()?)
            .arg(what)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting cargo xtask {what}"))?;
        println!("cargo xtask {what}: its log: {}", log.display());
        self.background.push(Background { what, child, log });
        Ok(())
    }

    /// Waits for what was started in the background, if it was.
    pub(super) fn wait_for(&mut self, what: &str) -> anyhow::Result<()> {
        let Some(at) = self.background.iter().position(|one| one.what == what) else { return Ok(()) };
        let Background { mut child, log, .. } = self.background.remove(at);
        if child.try_wait()?.is_none() {
            println!("waiting for cargo xtask {what} (its log: {})", log.display());
        }
        // Its log is short lines of progress; a person who waits wants to see the newest.
        let mut shown = String::new();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
            let text = fs::read_to_string(&log).unwrap_or_default();
            let newest = text.lines().last().unwrap_or_default();
            if newest != shown {
                println!("  {newest}");
                shown = newest.to_owned();
            }
        };
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<_> = text.lines().rev().take(15).collect();
            for line in tail.into_iter().rev() {
                println!("  | {line}");
            }
            bail!("cargo xtask {what} failed; the whole log: {}", log.display());
        }
        Ok(())
    }
}

/// A build that this run started does not outlive it: it would hold the cache's lock and the machine's CPUs.
impl Drop for Context {
    fn drop(&mut self) {
        for Background { child, .. } in &mut self.background {
            // By a signal that they can tidy up after.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = child.wait();
        }
    }
}

/// Runs a command in the workspace with its output shown, and fails as it does.
pub(super) fn sh(command: &mut Command) -> anyhow::Result<()> {
    let name = format!("{command:?}").replace('"', "");
    println!("$ {name}");
    let status =
        command.current_dir(workspace_root()).stdin(Stdio::null()).status().with_context(|| name.clone())?;
    if status.success() { Ok(()) } else { bail!("{name}: {status}") }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments);
    command
}

fn kernel(context: &mut Context) -> anyhow::Result<()> {
    packages::ensure(Group::KernelBuild)?;
    context.start(KERNEL)?;
    if context.has_guests {
        packages::ensure(Group::Debian)?;
        context.start(DEBIANS)?;
    }
    Ok(())
}

fn format(_: &mut Context) -> anyhow::Result<()> {
    sh(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy(_: &mut Context) -> anyhow::Result<()> {
    sh(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn unit(_: &mut Context) -> anyhow::Result<()> {
    sh(&mut cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]))
}

fn tidy(_: &mut Context) -> anyhow::Result<()> {
    sh(Command::new(std::env::current_exe()?).arg("tidy"))
}

fn budget(context: &mut Context) -> anyhow::Result<()> {
    if let Budget::Done { passed } = context.budget {
        let log = budget_log();
        print!("{}", fs::read_to_string(&log).with_context(|| log.display().to_string())?);
        anyhow::ensure!(passed, "cargo xtask budget --brief failed; it ran beside the guest tests");
        return Ok(());
    }
    context.wait_for(KERNEL)?;
    sh(Command::new(std::env::current_exe()?).args(BUDGET))
}

fn budget_log() -> PathBuf {
    guest::target().join("budget.log")
}

/// The release of cargo-deny that is installed where there is none.
const CARGO_DENY: &str = "0.20.2";

fn deny(context: &mut Context) -> anyhow::Result<()> {
    let tools = undercroft_kernel_config::cache::dir()?.join("tools");
    let ours = tools.join("bin/cargo-deny");
    let found = |program: &std::path::Path| {
        Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    let program = if found("cargo-deny".as_ref()) {
        PathBuf::from("cargo-deny")
    } else {
        if !found(&ours) {
            println!("installing cargo-deny {CARGO_DENY} into {} (about two minutes, once)", tools.display());
            // Not optimised: it runs for a second, and is compiled in a third of the time.
            let install =
                ["install", "cargo-deny", "--locked", "--quiet", "--debug", "--version", CARGO_DENY];
            sh(cargo(&install).arg("--root").arg(&tools).env("CARGO_PROFILE_DEV_DEBUG", "0"))?;
        }
        ours
    };
    sh(Command::new(&program).args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))?;
    // The advisory database is a git repository that not every machine reaches.
    let advisories =
        Command::new(&program).args(["check", "advisories"]).current_dir(workspace_root()).output()?;
    let text = String::from_utf8_lossy(&advisories.stderr);
    if advisories.status.success() {
        println!("advisories ok");
    } else if text.contains("failed to fetch advisory database")
        || text.contains("failed to load advisory database")
    {
        context.notes.push("advisories were not checked: their database cannot be reached from here".into());
    } else {
        print!("{text}");
        bail!("cargo deny check advisories: {}", advisories.status);
    }
    Ok(())
}
