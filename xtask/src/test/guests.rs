//! The guest tests: real kernels and distributions, on hardware KVM or in the lab.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use undercroft_harness::{
    archive::Archive,
    guest, lab,
    outcome::{Ending, Record},
    suite::{self, Suite},
};

use super::{
    schedule::{self, Job, Test},
    steps::{Context, DEBIANS, KERNEL},
};
use crate::{
    boot, kernel,
    packages::{self, Group},
    workspace_root,
};

/// The binaries whose tests take minutes in a lab.
const LONG: [&str; 4] = ["containers", "apt", "systemd", "scenes"];

pub(super) fn run(context: &mut Context) -> anyhow::Result<()> {
    let target = guest::target();
    let results = target.join("guest-results.jsonl");
    let _ = fs::remove_file(&results);

    packages::ensure(Group::Tests)?;
    println!("building the guest's binaries, the VMM and the tests");
    let tests = test_binaries()?;
    context.wait_for(KERNEL)?;
    context.wait_for(DEBIANS)?;
    let suite = prepare().context("preparing kernels and distributions")?;
    let set = target.join("guest-suite.json");
    suite.write(&set)?;

    let in_lab = lab::needed();
    if let Some(reason) = &in_lab {
        println!("in the lab, because {reason}");
    }
    let environment =
        vec![(suite::SET, set.display().to_string()), (suite::RESULTS, results.display().to_string())];
    // The lab's own tests run on the host, with the unit tests. Those that take minutes come early, so that no lab waits for
    // another's in the end; but first what the others find made.
    let (mut first, mut queue) = (Vec::new(), Vec::new());
    for (binary, path) in tests.into_iter().rev().filter(|(name, _)| name != "lab") {
        for test in schedule::names(&path)? {
            let wanted = context
                .filter
                .as_ref()
                .is_none_or(|f| f.split(',').any(|part| format!("{binary} {test}").contains(part)));
            let test = Test { binary: binary.clone(), path: path.clone(), name: test };
            if binary == "bases" {
                first.push(Job::Test(test));
            } else if wanted {
                queue.push(test);
            }
        }
    }
    queue.sort_by_key(|test| !LONG.contains(&test.binary.as_str()));
    let mut queue: Vec<_> = queue.into_iter().map(Job::Test).collect();
    let budget = context.budget_job();
    let measures = budget.is_some();
    queue.splice(0..0, budget);
    let mut failed = Vec::new();
    let archives = [&suite.debian, &suite.debian13, &suite.busybox];
    if archives.into_iter().all(|archive| suite.base(archive).is_ok_and(|base| base.exists())) {
        first.clear();
    }
    for jobs in [first, queue] {
        failed.extend(schedule::run(jobs, in_lab.is_some(), &environment)?);
    }
    if measures {
        context.budget_ended(&mut failed);
    }
    summarise(&results, context)?;
    if failed.is_empty() { Ok(()) } else { bail!("guest tests failed: {}", failed.join(", ")) }
}

/// Makes or finds what the tests start from.
fn prepare() -> anyhow::Result<Suite> {
    let target = guest::target();
    let logs = target.join("guest-logs");
    fs::create_dir_all(&logs)?;
    let guest = guest::build()?;
    let bases = bases(&target.join("guest-bases"), &guest.mini_init)?;
    let busybox = target.join("busybox.tar");
    Archive::busybox("for tests")?.write(&busybox)?;
    let debian = boot::debian::for_tests()?;
    Ok(Suite {
        stock: kernel::stock()?,
        tuned: kernel::ensure_tuned()?,
        guest,
        vmm: boot::programs::vmm()?,
        product: boot::programs::product()?,
        installed: crate::dist::tree(&target.join("dist"))?,
        virtiofsd: lab::rust_virtiofsd()?,
        busybox,
        debian: debian.bookworm,
        debian13: debian.trixie,
        engine: debian.engine,
        logs,
        bases,
    })
}

/// A folder for the bases that this mini-init unpacks: what another one has unpacked goes.
fn bases(all: &Path, mini_init: &Path) -> anyhow::Result<PathBuf> {
    let about = fs::metadata(mini_init)?;
    let folder = all.join(format!("{}-{}", about.len(), about.mtime()));
    if !folder.is_dir() {
        let _ = fs::remove_dir_all(all);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    Ok(folder)
}

/// Builds the harness's test binaries; their names and paths, in order.
fn test_binaries() -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let output = Command::new("cargo")
        .args([
            "test",
            "--locked",
            "--package",
            "undercroft-harness",
            "--tests",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "the guest tests do not compile");
    let mut found = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let kind = message["target"]["kind"][0].as_str();
        let package = message["package_id"].as_str().unwrap_or_default();
        let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        else {
            continue;
        };
        if kind == Some("test") && package.contains("undercroft-harness") {
            found.insert(name.to_owned(), path.into());
        }
    }
    anyhow::ensure!(!found.is_empty(), "cargo built no guest tests");
    Ok(found)
}

/// libtest knows passed and failed; this tells the rest.
fn summarise(results: &Path, context: &mut Context) -> anyhow::Result<()> {
    let text = fs::read_to_string(results).unwrap_or_default();
    let mut count: BTreeMap<Ending, usize> = BTreeMap::new();
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    println!();
    for line in text.lines() {
        let record: Record =
            serde_json::from_str(line).with_context(|| format!("{}: {line}", results.display()))?;
        *count.entry(record.ending).or_default() += 1;
        match record.ending {
            Ending::Passed => {}
            Ending::Skipped => *skipped.entry(record.reason).or_default() += 1,
            ending => println!("{ending:?}: {}: {}", record.test, record.reason),
        }
    }
    for (reason, number) in skipped {
        println!("Skipped: {number} tests: {reason}");
    }
    let of = |ending| count.get(&ending).copied().unwrap_or_default();
    let line = format!(
        "guest tests: {} passed, {} failed, {} guest panics, {} timeouts, {} harness errors, {} skipped",
        of(Ending::Passed),
        of(Ending::Failed),
        of(Ending::GuestPanic),
        of(Ending::Timeout),
        of(Ending::HarnessError),
        of(Ending::Skipped)
    );
    println!("{line}");
    context.notes.push(line);
    Ok(())
}
