//! Starting the VMM and other programs: the one place of this crate that needs `unsafe`, for what happens between fork and exec.

#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{BorrowedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask},
};
use rustix::process::Pid;

/// Lets the program keep these file descriptors, be killed when the thread that starts it ends, and begin with those signals
/// blocked that are for this process, and no others. The descriptors must stay open until it has been started.
///
/// Who ends a session or a unit sends these to all of it at once (systemd.kill(5), KillMode=control-group). This process stops what
/// runs in its order then; a machine or a network that went by itself would be a power cut for the distributions.
pub(crate) fn prepare(command: &mut Command, keep: Vec<RawFd>) {
    start_with(command, keep, [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect());
}

/// The same with no signal blocked, and no program that it executes gets more rights than it has (`no_new_privs`). For what has
/// children of its own, which it ends by a signal.
pub(crate) fn prepare_unprivileged(command: &mut Command, keep: Vec<RawFd>) {
    start_with(command, keep, SigSet::empty());
    let give_up = || nix::sys::prctl::set_no_new_privs().map_err(io::Error::from);
    // SAFETY: as below; the closure makes one system call.
    unsafe { command.pre_exec(give_up) };
}

fn start_with(command: &mut Command, keep: Vec<RawFd>, blocked: SigSet) {
    let parent = rustix::process::getpid();
    let after_fork = move || after_fork(&keep, parent, &blocked);
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe functions may be
    // called: it makes the system calls fcntl, prctl, getppid and rt_sigprocmask, and touches no lock and no heap
    // (its vector is only read). The raw descriptors are open, as this function's caller guarantees.
    unsafe { command.pre_exec(after_fork) };
}

fn after_fork(keep: &[RawFd], parent: Pid, blocked: &SigSet) -> io::Result<()> {
    for &fd in keep {
        // SAFETY: the caller of `prepare` keeps it open until the program runs; this is a copy of its table.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the kernel knew that it matters.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(())
}
