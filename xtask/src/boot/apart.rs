//! A program in a process group of its own.
//!
//! mmdebstrap sends SIGHUP to its whole group when it cannot write its archive, and whoever called us would die with it.
//! Apart, it does not get the terminal's Ctrl-C either; so signals are passed on to its group.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, killpg},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};

/// How it ended.
pub(super) struct Outcome {
    pub(super) status: ExitStatus,
    pub(super) stderr: Vec<u8>,
    /// The signal that made us end it. It was kept from us; who has tidied up may raise it anew.
    pub(super) interrupted: Option<Signal>,
}

/// Runs the program until it has ended and nobody holds its stderr any more.
pub(super) fn run(command: &mut Command) -> io::Result<Outcome> {
    // Before anything is blocked: it would inherit that.
    let mut child = command.process_group(0).stderr(Stdio::piped()).spawn()?;
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    let _mask = Mask(signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?);
    let arrived = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let group = Pid::from_raw(child.id() as i32);
    let mut errors = child.stderr.take().ok_or_else(|| io::Error::other("no stderr"))?;
    let (mut stderr, mut interrupted) = (Vec::new(), None);
    loop {
        let mut fds = [arrived.as_fd(), errors.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let said = fds[1].any().unwrap_or(false);
        if let Some(about) = arrived.read_signal()? {
            interrupted = Signal::try_from(about.ssi_signo as i32).ok();
            // It may have ended meanwhile.
            let _ = killpg(group, Signal::SIGTERM);
        }
        if said {
            let mut bytes = [0; 4096];
            match errors.read(&mut bytes)? {
                0 => break,
                n => stderr.extend_from_slice(&bytes[..n]),
            }
        }
    }
    Ok(Outcome { status: child.wait()?, stderr, interrupted })
}

/// The mask from before, put back in the end.
struct Mask(SigSet);

impl Drop for Mask {
    fn drop(&mut self) {
        // A mask that the kernel gave us it takes.
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_sends_to_its_group_is_no_concern_of_ours() {
        // Not SIGHUP: whoever runs the tests by nohup has it ignored.
        let script = "echo why >&2; kill -TERM 0; sleep 60";
        let outcome = run(Command::new("sh").args(["-c", script])).unwrap();
        assert!(!outcome.status.success());
        assert_eq!(outcome.stderr, b"why\n");
        assert_eq!(outcome.interrupted, None);
    }

    #[test]
    fn a_signal_ends_it() {
        // It waits for this thread, and for no other of the tests'.
        SigSet::from(Signal::SIGINT).thread_block().unwrap();
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        let outcome = run(Command::new("sleep").arg("60")).unwrap();
        assert_eq!(outcome.interrupted, Some(Signal::SIGINT));
        assert!(!outcome.status.success());
    }
}
