//! A child process that one thread starts and waits for, and that others look at and kill.
//!
//! The thread that starts it also waits for it, because its death is the process's (PR_SET_PDEATHSIG, see
//! [`spawn`](crate::spawn)). Its number is its own until it has been reaped, so it is taken back here before that.

use std::{
    io,
    process::{Child, ExitStatus},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

/// One process, or several after one another.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// As long as the number is its own.
    pid: Option<Pid>,
    is_stopping: bool,
}

impl Watched {
    /// Its process id, as long as it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().pid.map(|pid| pid.as_raw() as u32)
    }

    /// It runs from now on; one that is not to run any more is killed at once.
    pub(crate) fn runs(&self, child: &Child) {
        let mut state = self.lock();
        state.pid = Some(Pid::from_raw(child.id() as i32));
        if state.is_stopping {
            state.kill();
        }
    }

    /// Waits for its end, for the thread that has started it.
    ///
    /// # Errors
    /// wait4(2)'s.
    pub(crate) fn wait(&self, mut child: Child) -> io::Result<ExitStatus> {
        // First without reaping, so that the number cannot become another process's while it is being killed.
        let pid = Pid::from_raw(child.id() as i32);
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        self.lock().pid = None;
        child.wait()
    }

    /// Kills it, if it runs. Says whether it did.
    pub(crate) fn kill(&self) -> bool {
        self.lock().kill()
    }

    /// Kills it, and none is to run any more.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.is_stopping = true;
        state.kill();
        self.changed.notify_all();
    }

    /// Whether none is to run any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().is_stopping
    }

    /// The same, now or while this waits.
    pub(crate) fn stops_within(&self, limit: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.lock(), limit, |state| !state.is_stopping);
        wait.unwrap_or_else(PoisonError::into_inner).0.is_stopping
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn kill(&self) -> bool {
        if let Some(pid) = self.pid {
            // It may be a zombie already.
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.pid.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command, sync::Arc, thread};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn it_is_seen_as_long_as_it_runs() {
        let watched = Arc::new(Watched::default());
        assert!(!watched.kill() && watched.pid().is_none());
        let child = sleeper();
        let id = child.id();
        watched.runs(&child);
        assert_eq!(watched.pid(), Some(id));
        let waiting = watched.clone();
        let waiter = thread::spawn(move || waiting.wait(child));
        assert!(watched.kill() && !watched.is_stopping());
        assert_eq!(waiter.join().unwrap().unwrap().signal(), Some(9));
        assert!(watched.pid().is_none() && !watched.kill());
    }

    #[test]
    fn one_that_comes_too_late_is_killed() {
        let watched = Watched::default();
        assert!(!watched.stops_within(Duration::from_millis(1)));
        watched.stop();
        assert!(watched.stops_within(Duration::MAX));
        let child = sleeper();
        watched.runs(&child);
        assert_eq!(watched.wait(child).unwrap().signal(), Some(9));
    }
}
