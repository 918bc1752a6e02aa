//! The running distributions, and what is left to do when one has ended.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use undercroft_protocol::{command::Done, session::ExitStatus};

use crate::{disk, launch, log, signal};

/// systemd powers off at SIGRTMIN and this (systemd(1), "Signals").
const POWER_OFF: i32 = 4;
/// How long killed processes may take to be gone, and their file system to be unmounted.
const PATIENCE: Duration = Duration::from_secs(10);

/// One distribution, from its launch until everything of it is cleared away.
#[derive(Debug)]
pub(crate) struct Distribution {
    /// Its first process, in the VM's PID namespace, once there is one.
    pub(crate) pid: Option<Pid>,
    /// Its name, for messages.
    pub(crate) name: String,
    /// Its block device.
    pub(crate) device: PathBuf,
    /// Whether its init was executed: before that, its end is a failed launch.
    pub(crate) launched: bool,
    /// When the second signal is due, if it was told to stop.
    pub(crate) kill_at: Option<Instant>,
    /// The requests that asked it to stop, and are answered when it has.
    pub(crate) asked_by: Vec<u64>,
    /// What it is to be told as soon as it has a process.
    pub(crate) told_to_stop: Option<Duration>,
    /// How its init ended.
    pub(crate) status: Option<ExitStatus>,
}

impl Distribution {
    /// Asks it to stop: its init stops its processes and ends, within the grace time. What has taken the init's place is
    /// systemd, which is asked as it is used to, and not told the time.
    pub(crate) fn stop(&mut self, grace: Duration) {
        let kill_at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |sooner| sooner.min(kill_at)));
        match self.pid {
            Some(pid) => self.tell_to_stop(pid, grace),
            None => self.told_to_stop = Some(grace),
        }
    }

    fn tell_to_stop(&self, pid: Pid, grace: Duration) {
        let milliseconds = i32::try_from(grace.as_millis()).unwrap_or(i32::MAX);
        // Before it is launched it is mini-init's own child, on the way to become the init.
        let systemd = self.launched && runs_another(pid, launch::INIT);
        let number = if systemd { libc::SIGRTMIN() + POWER_OFF } else { Signal::SIGTERM as i32 };
        // ESRCH: it has ended, and its end is about to be noticed.
        let _ = signal::signal_with(pid, number, milliseconds);
    }

    /// It has a process now.
    pub(crate) fn born(&mut self, pid: Pid) {
        self.pid = Some(pid);
        if let Some(grace) = self.told_to_stop.take() {
            self.tell_to_stop(pid, grace);
        }
    }

    /// How its init ended. A reboot(2) in a PID namespace ends that namespace's init by SIGINT for halt and power-off, and
    /// by SIGHUP for a restart (reboot(2), "Behavior inside PID namespaces"), which nothing else does: an init has no
    /// handlers that it did not make, and without one these do nothing. So it is an end in order.
    pub(crate) fn ended(&mut self, status: ExitStatus) {
        let reboot = [Signal::SIGINT as i32, Signal::SIGHUP as i32].map(ExitStatus::Signal);
        self.status = Some(if reboot.contains(&status) { ExitStatus::Code(0) } else { status });
        self.kill_at = None;
    }

    /// Kills it if its grace time is over. Its processes go with the PID namespace.
    pub(crate) fn kill_if_due(&mut self) {
        if self.kill_at.is_some_and(|at| at <= Instant::now()) && self.status.is_none() {
            log::line(
                log::Level::Warning,
                &format!("distribution {}: did not stop in time, killed", self.name),
            );
            // One that has no process yet is killed when it has.
            let Some(pid) = self.pid else { return };
            let _ = kill(pid, Signal::SIGKILL);
            self.kill_at = None;
        }
    }
}

/// Whether a process executes another file than this one, whatever names it has there. Not if nobody can tell.
fn runs_another(pid: Pid, program: &str) -> bool {
    let identity = |path: &str| fs::metadata(path).map(|about| (about.dev(), about.ino()));
    match (identity(&format!("/proc/{pid}/exe")), identity(program)) {
        (Ok(running), Ok(program)) => running != program,
        _ => false,
    }
}

/// Clears away what an ended distribution leaves: processes, file system, cgroup. Says what did not go.
pub(crate) fn clear_away(id: u32, device: &Path) -> Done {
    let start = Instant::now();
    let mut complaints = Vec::new();
    let cgroup = launch::cgroup_path(id);
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let mut complain = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            complaints.push(format!("{what}: {error}"));
        }
    };
    // A launch that failed early has none.
    let is_there = cgroup.exists();
    if is_there {
        complain("its processes did not end", patiently(start, || empty(&cgroup)));
    }
    // The file system was mounted in the distribution's mount namespace only, and went with it.
    complain(
        &format!("its file system on {} could not be flushed", device.display()),
        patiently(start, || disk::flush_unused(device)),
    );
    if is_there {
        let removed = patiently(start, || remove_tree(&cgroup));
        complain(&format!("its cgroup {} stays", cgroup.display()), removed);
    }
    Done::Stopped { complaints }
}

/// Tries until it goes, or time is up.
pub(crate) fn patiently(start: Instant, mut step: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether a cgroup and those below it have no processes.
fn empty(cgroup: &Path) -> io::Result<()> {
    let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
    if events.lines().any(|l| l == "populated 0") { Ok(()) } else { Err(io::ErrorKind::ResourceBusy.into()) }
}

/// Removes a cgroup and those that a distribution made below it, from the leaves up.
fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(pid: Pid) -> Distribution {
        Distribution {
            pid: Some(pid),
            name: "test".into(),
            device: "/dev/null".into(),
            launched: true,
            kill_at: None,
            asked_by: Vec::new(),
            told_to_stop: None,
            status: None,
        }
    }

    #[test]
    fn another_program_is_known_by_its_file() {
        let own = std::env::current_exe().unwrap();
        let this = Pid::this();
        assert!(!runs_another(this, own.to_str().unwrap()));
        assert!(runs_another(this, "/bin/sh"));
        assert!(!runs_another(this, "/nothing/here"));
    }

    #[test]
    fn a_reboot_is_an_end_in_order_and_a_crash_is_not() {
        for (status, expected) in [
            (ExitStatus::Signal(2), ExitStatus::Code(0)),
            (ExitStatus::Signal(1), ExitStatus::Code(0)),
            (ExitStatus::Signal(9), ExitStatus::Signal(9)),
            (ExitStatus::Signal(11), ExitStatus::Signal(11)),
            (ExitStatus::Code(3), ExitStatus::Code(3)),
        ] {
            let mut it = distribution(Pid::this());
            it.ended(status);
            assert_eq!(it.status, Some(expected));
        }
    }
}
