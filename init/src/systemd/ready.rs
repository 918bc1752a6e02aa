//! Waiting until systemd has brought the system up.
//!
//! systemd says READY=1 on the socket that NOTIFY_SOCKET names, as to any service manager above it (sd_notify(3); systemd's
//! Container Interface), once its first jobs are done: nothing has to ask it again and again.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{QUESTION, systemctl};
use crate::log::Warnings;

/// Where it says so. A name in the file system: abstract ones belong to the network namespace, which all distributions
/// share.
pub(super) const SOCKET: &str = "/run/undercroft/notify";

/// The socket. Once it is closed systemd's further words fail at once, and never wait for a reader.
#[derive(Debug)]
pub(crate) struct Readiness {
    socket: UnixDatagram,
}

impl Readiness {
    /// Makes the socket in the companion's folder, before systemd is there.
    pub(super) fn prepare() -> io::Result<Self> {
        let socket = UnixDatagram::bind(SOCKET)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Waits at most so long, or until the host is gone. What is not as it should be then is a warning.
    pub(crate) fn wait(self, limit: Duration, host: BorrowedFd<'_>, warnings: &mut Warnings) {
        let said = self.said(limit, host);
        drop(self);
        let _ = fs::remove_file(SOCKET);
        let state = state();
        match (said, state.as_str()) {
            (true, "running") => {}
            // A systemd that does not know the socket.
            (false, "running") => {}
            (_, "degraded") => warnings.add(format!("systemd is degraded{}", failed())),
            (true, state) => warnings.add(format!("systemd is {state}{}", failed())),
            (false, state) => warnings.add(format!(
                "systemd is not up after {} ms (boot.initTimeout), but {state}{}; sessions are let in all the same",
                limit.as_millis(),
                failed()
            )),
        }
    }

    fn said(&self, limit: Duration, host: BorrowedFd<'_>) -> bool {
        let end = Instant::now() + limit;
        let mut message = [0; 4096];
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut descriptors =
                [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(host, PollFlags::empty())];
            if poll(&mut descriptors, timeout).is_err() {
                continue;
            }
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
            if descriptors[1].revents().is_some_and(|r| r.intersects(gone)) {
                return false;
            }
            while let Ok(length) = self.socket.recv(&mut message) {
                if is_ready(&message[..length]) {
                    return true;
                }
            }
        }
        false
    }
}

/// A message is lines of `NAME=value` (sd_notify(3)).
fn is_ready(message: &[u8]) -> bool {
    message.split(|b| *b == b'\n').any(|line| line == b"READY=1")
}

/// A word of systemctl's (systemctl(1), `is-system-running`).
fn state() -> String {
    let word = systemctl::ask(&["is-system-running"], QUESTION).unwrap_or_default();
    let known = word.lines().next().unwrap_or_default().trim().to_owned();
    if known.is_empty() { "not answering".into() } else { known }
}

/// Names what failed, for the end of a sentence; nothing if nothing did.
fn failed() -> String {
    let list = ["list-units", "--failed", "--plain", "--no-legend", "--full"];
    let text = systemctl::ask(&list, QUESTION).unwrap_or_default();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).take(20).collect();
    if names.is_empty() { String::new() } else { format!("; failed: {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_whole_line() {
        assert!(is_ready(b"READY=1\nSTATUS=Startup finished in 2s."));
        assert!(is_ready(b"X_SYSTEMD_UNIT_ACTIVE=default.target\nREADY=1\n"));
        assert!(!is_ready(b"STATUS=READY=1") && !is_ready(b"READY=10") && !is_ready(b""));
    }

    #[test]
    fn ready_is_heard_behind_other_words() {
        let (socket, systemd) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (host, other_end) = std::os::unix::net::UnixStream::pair().unwrap();
        systemd.send(b"X_SYSTEMD_SIGNALS_LEVEL=2").unwrap();
        systemd.send(b"READY=1\nSTATUS=up").unwrap();
        let readiness = Readiness { socket };
        assert!(readiness.said(Duration::from_secs(60), host.as_fd()));
        assert!(!readiness.said(Duration::ZERO, host.as_fd()));
        drop(other_end);
        assert!(!readiness.said(Duration::from_secs(60), host.as_fd()));
    }
}
