//! systemd as PID 1, and this init as its companion, PID 2.
//!
//! | step | who | where |
//! | --- | --- | --- |
//! | looks whether /sbin/init is systemd | PID 1, this init | [`find`] |
//! | writes units and masks below /run, a socket that systemd will say READY on | PID 1 | [`units`] |
//! | forks the companion, which goes on as this init would have, and executes /sbin/init | PID 1 | [`start`] |
//! | waits until the system is up, or the time is over, and lets sessions in | PID 2 | [`ready`] |
//! | puts the sessions of a user into a login session that systemd knows | the session's relay | [`login`] |
//!
//! The host's connection, the sessions and their relays are the companion's; services are systemd's. A unit makes systemd
//! watch the companion: when it ends, however it does, systemd powers the distribution off, because nobody could come
//! in any more. When systemd stops for another reason, the same unit has it tell the companion before its own services go.
//!
//! Nothing is written to the distribution's disk for this.

pub(crate) mod login;
mod ready;
mod systemctl;
mod units;

use std::{
    ffi::CString,
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    time::Duration,
};

use nix::{
    sys::{
        signal::Signal,
        signalfd::SignalFd,
        stat::{Mode, umask},
    },
    unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2},
};
use undercroft_guest::process::{exit_child, fork};

use crate::{process, program::PATH, server};
pub(crate) use ready::Readiness;
pub(crate) use units::hold_session;

/// What is executed as PID 1.
const INIT: &str = "/sbin/init";
/// The companion's own folder, for root only; the rest of it is [`units`]' and [`ready`]'s.
const FOLDER: &str = "/run/undercroft";

/// The container manager's name, which systemd and others look at (systemd's Container Interface, "Environment
/// Variables"). One of our own is `container-other` for them: what holds for every container. `wsl` would make software
/// look for Windows (snapd, cloud-init's data source), and `systemd-nspawn` or `docker` for what those promise.
const CONTAINER: &str = "undercroft";

/// systemd powers off when it gets this signal (systemd(1), SIGRTMIN+4).
fn power_off_signal() -> i32 {
    libc::SIGRTMIN() + 4
}

/// Whether /sbin/init can be executed and is systemd; if not, why not.
pub(crate) fn find() -> Result<(), String> {
    let program = fs::canonicalize(INIT).map_err(|e| format!("{INIT}: {e}"))?;
    is_systemd(&program)
}

fn is_systemd(program: &Path) -> Result<(), String> {
    let about = fs::metadata(program).map_err(|e| format!("{}: {e}", program.display()))?;
    if program.file_name().is_none_or(|name| name != "systemd") {
        return Err(format!("{INIT} is {}, which is another init", program.display()));
    }
    if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} cannot be executed", program.display()));
    }
    Ok(())
}

/// Makes this process systemd, and goes on in a child, which is its companion: gives what that has to wait for.
///
/// An error if systemd could not be executed. Then this is still PID 1, and no child is left that would do anything.
pub(crate) fn start(signals: &SignalFd) -> io::Result<Readiness> {
    units::write(&fs::read_link("/proc/self/exe")?)?;
    let readiness = Readiness::prepare()?;
    let (report, reporter) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let companion = match fork()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(reporter);
            // The pipe is closed by the exec; a word in it says that there was none.
            let mut word = Vec::new();
            let _ = fs::File::from(report).read_to_end(&mut word);
            return if word.is_empty() { Ok(readiness) } else { exit_child(0) };
        }
    };
    drop((report, readiness));
    let error = units::companion_is(companion).map_or_else(|e| e, |()| become_systemd(signals));
    let _ = fs::File::from(reporter).write_all(b"!");
    Err(error)
}

/// Returns only with why not.
fn become_systemd(signals: &SignalFd) -> io::Error {
    // Told to stop before there was anything to stop in order.
    if matches!(signals.read_signal(), Ok(Some(signal)) if signal.ssi_signo == Signal::SIGTERM as u32) {
        exit_child(0);
    }
    let prepared = (|| {
        // What mini-init gave is the VM's console, or nothing.
        let null = fs::File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(null.as_fd())?;
        dup2_stdout(null.as_fd())?;
        dup2_stderr(null.as_fd())?;
        umask(Mode::from_bits_truncate(0o022));
        // Every service would inherit the inits' protection from the kernel's hunt for memory.
        let _ = fs::write("/proc/self/oom_score_adj", "0");
        // One that comes before systemd listens has to wait, not to be lost.
        process::reset_signals_but(power_off_signal());
        let variables = [
            format!("container={CONTAINER}"),
            format!("NOTIFY_SOCKET={}", ready::SOCKET),
            format!("PATH={PATH}"),
        ];
        let variables = variables.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let path = CString::new(INIT)?;
        execve(&path, std::slice::from_ref(&path), &variables)?;
        Ok::<_, io::Error>(())
    })();
    let error = prepared.err().unwrap_or_else(io::Error::last_os_error);
    server::block_signals().err().unwrap_or(error)
}

/// How long a question to systemd may take whose answer is only told.
const QUESTION: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_executable_systemd_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        assert_eq!(is_systemd(&make("systemd", 0o755)), Ok(()));
        assert!(is_systemd(&make("runit-init", 0o755)).unwrap_err().contains("another init"));
        assert!(is_systemd(&directory.path().join("gone")).is_err());
        fs::remove_file(directory.path().join("systemd")).unwrap();
        assert!(is_systemd(&make("systemd", 0o644)).unwrap_err().contains("cannot be executed"));
    }
}
