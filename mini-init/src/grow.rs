//! The machine grows while it is used already: CPUs that were not started at boot, and memory that the host adds.
//!
//! Both cost a boot in proportion to their size, and nobody needs them before the first program runs.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, setrlimit};
use undercroft_protocol::command::{Done, Failure, FailureKind};

use crate::{early, log};

/// What becomes of memory that is added.
const AUTO_ONLINE: &str = "/sys/devices/system/memory/auto_online_blocks";
/// CPUs, a directory for each.
const CPUS: &str = "/sys/devices/system/cpu";
/// Between two looks at how much memory there is.
const STEP: Duration = Duration::from_millis(20);
/// Bytes of a kernel stack on x86-64 (THREAD_SIZE), of which threads may take an eighth of memory (Linux's fork_init).
const THREAD_SIZE: u64 = 16 << 10;

/// Has memory that is added be used at once. As memory of any kind: movable memory alone would leave a large machine's
/// kernel, its page tables and its sockets, with what was there at boot.
///
/// A file is cheaper than the kernel parameter of the same meaning. A kernel that cannot grow has no such file.
pub(crate) fn prepare() {
    let _ = fs::write(AUTO_ONLINE, "online");
}

/// Raises what the kernel has derived from the memory that it found at boot, for a machine that will have `memory` bytes: how
/// many threads and open files there may be. To be called in the process that starts the others.
pub(crate) fn raise_limits(memory: u64) {
    if memory <= early::memory() {
        return;
    }
    early::limit_distributions(memory);
    let threads = memory / THREAD_SIZE / 8;
    // As the kernel has it: a tenth of memory, at a KiB each.
    let files = memory / 1024 / 10;
    for (path, value) in [("/proc/sys/kernel/threads-max", threads), ("/proc/sys/fs/file-max", files)] {
        if let Err(error) = fs::write(path, value.to_string()) {
            log::line(log::Level::Warning, &format!("writing {value} to {path}: {error}"));
        }
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NPROC, threads / 2, threads / 2) {
        log::line(log::Level::Warning, &format!("RLIMIT_NPROC: {error}"));
    }
}

/// Starts all CPUs, and waits until there are `memory` bytes of memory. It takes its time: for a child.
///
/// # Errors
/// A CPU did not start, or memory was not there in time.
pub(crate) fn grow(memory: u64, limit: Duration) -> Result<Done, Failure> {
    let deadline = Instant::now() + limit;
    let cpus = start_cpus(Path::new(CPUS));
    loop {
        let there = early::memory();
        if there >= memory {
            break;
        }
        if Instant::now() >= deadline {
            let (there, memory) = (there >> 20, memory >> 20);
            return Err(failure(format!("the machine has {there} MiB of memory and not yet {memory}")));
        }
        std::thread::sleep(STEP);
    }
    cpus.map(|()| Done::Nothing).map_err(failure)
}

/// Starts every CPU that is present and offline; goes on after one that does not start, and says which those were.
fn start_cpus(directory: &Path) -> Result<(), String> {
    let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let mut switches: Vec<(u32, std::path::PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok()?;
            Some((number, entry.path().join("online")))
        })
        .collect();
    switches.sort();
    let mut failed = Vec::new();
    for (number, switch) in switches {
        match fs::read(&switch) {
            Ok(state) if state.starts_with(b"0") => {
                if let Err(error) = fs::write(&switch, "1") {
                    failed.push(format!("CPU {number} does not start: {error}"));
                }
            }
            // One that runs; or one that cannot be switched off, and so runs.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("CPU {number}: {error}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

fn failure(message: String) -> Failure {
    Failure { kind: FailureKind::System, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_are_off_are_started_and_all_failures_are_named() {
        let directory = tempfile::tempdir().unwrap();
        for (name, state) in [("cpu1", "0\n"), ("cpu2", "1\n"), ("cpu10", "0\n"), ("cpufreq", "0\n")] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("online"), state).unwrap();
        }
        fs::create_dir(directory.path().join("cpu0")).unwrap();
        start_cpus(directory.path()).unwrap();
        let state = |name: &str| fs::read_to_string(directory.path().join(name).join("online")).unwrap();
        assert_eq!((state("cpu1"), state("cpu10"), state("cpufreq")), ("1".into(), "1".into(), "0\n".into()));
        assert_eq!(state("cpu2"), "1\n", "one that runs is left alone");
        assert!(start_cpus(Path::new("/nonexistent")).unwrap_err().contains("/nonexistent"));
    }
}
