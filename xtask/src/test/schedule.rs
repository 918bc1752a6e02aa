//! Guest tests side by side: a process each, on hardware KVM or spread over as many labs as the host has CPUs for.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use undercroft_harness::lab::{self, LabError};

/// What one worker does at a time.
pub(super) enum Job {
    /// One test of one binary.
    Test(Test),
    /// A subcommand of xtask that keeps one CPU busy, as a lab does. Its output goes to a file.
    Xtask { arguments: &'static [&'static str], log: PathBuf },
}

/// One test of one binary.
pub(super) struct Test {
    pub(super) binary: String,
    pub(super) path: PathBuf,
    pub(super) name: String,
}

impl Job {
    /// What its line calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Job::Test(Test { binary, name, .. }) => format!("{binary}: {name}"),
            Job::Xtask { arguments, .. } => xtask_name(arguments),
        }
    }

    fn run(&self, worker: usize, in_lab: bool, environment: &Environment) -> anyhow::Result<(bool, String)> {
        match self {
            Job::Test(test) if in_lab => there(test, worker, environment),
            Job::Test(test) => here(test, environment),
            Job::Xtask { arguments, log } => xtask(arguments, log),
        }
    }
}

type Environment = [(&'static str, String)];

/// The tests that a binary has.
pub(super) fn names(binary: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(binary).args(["--list", "--format=terse"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|l| l.strip_suffix(": test").map(str::to_owned)).collect::<Vec<_>>();
    anyhow::ensure!(output.status.success() && !names.is_empty(), "{} lists no tests", binary.display());
    Ok(names)
}

/// Runs all of them and prints a line for each, with its output if it failed. Gives the names of those that failed.
pub(super) fn run(jobs: Vec<Job>, in_lab: bool, environment: &Environment) -> anyhow::Result<Vec<String>> {
    let total = jobs.len();
    let queue = Mutex::new(VecDeque::from_iter(jobs.into_iter().enumerate()));
    let failed = Mutex::new(Vec::new());
    let workers = workers(in_lab);
    let worker = |number: usize| -> anyhow::Result<()> {
        let mut lab_since = Instant::now();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((at, job)) = next else { return Ok(()) };
            if in_lab {
                refresh(number, &mut lab_since)?;
            }
            let start = Instant::now();
            let (good, output) = job.run(number, in_lab, environment)?;
            let word = if good { "ok  " } else { "FAIL" };
            let seconds = start.elapsed().as_secs();
            let mut text = format!("[{:2}/{total}] {word} {} ({seconds} s)", at + 1, job.name());
            if !good {
                text.push('\n');
                text.push_str(&output);
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(job.name());
            }
            println!("{text}");
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|n| scope.spawn(move || worker(n))).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort();
    println!("guests: {} passed, {} failed", total - failed.len(), failed.len());
    Ok(failed)
}

/// Ends a lab that has run for long: QEMU keeps what it has translated, of guests that are long gone too, and gets slower by it
/// (docs/decisions.md). A new one takes five seconds.
fn refresh(number: usize, since: &mut Instant) -> anyhow::Result<()> {
    const LONG: Duration = Duration::from_secs(300);
    if since.elapsed() > LONG {
        lab::ensure_nth(number).context("starting a lab")?.retire();
        *since = Instant::now();
    }
    Ok(())
}

/// A lab holds one CPU and up to 4 GiB.
fn workers(in_lab: bool) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().split(' ').next()?.parse::<usize>().ok())
        .unwrap_or(0);
    let each_kib = if in_lab { 6 << 20 } else { 1 << 20 };
    cpus.min(available / each_kib).clamp(1, 8)
}

/// What the line of a subcommand calls it.
pub(super) fn xtask_name(arguments: &[&str]) -> String {
    format!("cargo xtask {}", arguments.join(" "))
}

fn xtask(arguments: &[&str], log: &Path) -> anyhow::Result<(bool, String)> {
    let file = File::create(log).with_context(|| log.display().to_string())?;
    let status = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("starting {}", xtask_name(arguments)))?;
    Ok((status.success(), format!("its output: {}\n", log.display())))
}

fn arguments(test: &Test) -> [&str; 4] {
    ["--exact", &test.name, "--test-threads=1", "--nocapture"]
}

fn here(test: &Test, environment: &Environment) -> anyhow::Result<(bool, String)> {
    let output = Command::new(&test.path)
        .args(arguments(test))
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .output()
        .with_context(|| test.path.display().to_string())?;
    Ok((output.status.success(), text(&output.stdout, &output.stderr)))
}

/// A lab that dies under a test, or whose emulated processor may have gone wrong, says nothing of the test: it is run again,
/// once, in a new lab. What was seen is printed.
fn there(test: &Test, number: usize, environment: &Environment) -> anyhow::Result<(bool, String)> {
    let mut lost = false;
    loop {
        let lab = lab::ensure_nth(number).context("starting a lab")?;
        let before = std::fs::metadata(lab.console()).map_or(0, |m| m.len() as usize);
        let argv = std::iter::once(test.path.as_os_str()).chain(arguments(test).map(AsRef::as_ref));
        let why = match lab.command(argv).envs(environment.iter().cloned()).stdin_null().output() {
            Ok(output) => {
                let mut text = text(&output.stdout, &output.stderr);
                if output.ended.code() == 0 {
                    return Ok((true, text));
                }
                let console = std::fs::read(lab.console()).unwrap_or_default();
                if let Some(said) = console.get(before..).filter(|said| !said.is_empty()) {
                    text.push_str("\n  the lab's own kernel said meanwhile:\n");
                    text.push_str(&String::from_utf8_lossy(said));
                }
                match fault(&text).filter(|_| !lost) {
                    None => return Ok((false, text)),
                    Some(fault) => {
                        lab.end().context("ending a lab")?;
                        format!("{fault}\n{text}")
                    }
                }
            }
            Err(error @ (LabError::Lost { .. } | LabError::Connection(_))) if !lost => error.to_string(),
            Err(error) => return Err(error).context("running a test in the lab"),
        };
        println!("{}: {}: once more in a new lab, because: {why}", test.binary, test.name);
        lost = true;
    }
}

/// What shows that an emulated processor may have gone wrong, and not the guest: QEMU's delivers an interrupt twice now and then
/// (docs/decisions.md), and a kernel that holds a lock then waits for itself, or breaks. It is a guess: what we do wrong looks the
/// same, and does so again.
fn fault(output: &str) -> Option<&'static str> {
    const SIGNS: [(&str, &str); 4] = [
        ("Error: guest panic: ", "the guest's kernel complained"),
        ("Error: timeout: ", "the guest did not answer"),
        ("self-detected stall on CPU", "a processor of the guest stood still"),
        ("detected stalls on CPUs", "a processor of the guest stood still"),
    ];
    SIGNS.iter().find(|(sign, _)| output.contains(sign)).map(|(_, what)| *what)
}

fn text(stdout: &[u8], stderr: &[u8]) -> String {
    [stdout, stderr].map(String::from_utf8_lossy).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_went_wrong_is_told_apart() {
        assert!(
            fault("Error: guest panic: [   64.347614] rcu: INFO: rcu_sched self-detected stall on CPU")
                .is_some()
        );
        assert!(
            fault(
                "Error: failed: timed out\n  | [  524.7] rcu: INFO: rcu_preempt self-detected stall on CPU"
            )
            .is_some()
        );
        assert!(fault("Error: failed: assertion: 1 is not 2").is_none());
    }
}
