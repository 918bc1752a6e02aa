//! Making processes: fork, and clone3 with what libc does not offer.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::{
    errno::Errno,
    sched::CloneFlags,
    unistd::{ForkResult, Pid, fork as nix_fork},
};
use undercroft_protocol::session::ExitStatus;

/// Makes a child that goes on here, in a copy of this process.
pub(crate) fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: mini-init never starts a thread, so no lock can be held by another thread in the child's copy.
    unsafe { nix_fork() }
}

/// As [`fork`], in new namespaces and, from its first instruction on, in a cgroup (a directory of cgroup2).
///
/// clone3(2), struct clone_args.
pub(crate) fn clone_into(namespaces: CloneFlags, cgroup: BorrowedFd<'_>) -> Result<ForkResult, Errno> {
    // CLONE_INTO_CGROUP, linux/sched.h: beyond the 32 bits that CloneFlags holds.
    const INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: an all-zero clone_args asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces.bits() as u64 | INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of the stack and goes on behind this call; mini-init
    // has one thread, so the copy is consistent. `arguments` lives through the call and its size is passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match Errno::result(pid)? {
        0 => Ok(ForkResult::Child),
        pid => Ok(ForkResult::Parent { child: Pid::from_raw(pid as libc::pid_t) }),
    }
}

/// Ends a child without running what the parent registered for its own exit.
pub(crate) fn exit_child(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Sends a signal with a number beside it, which the receiver's signalfd shows as `ssi_int` (sigqueue(3)).
pub(crate) fn signal_with(pid: Pid, signal: nix::sys::signal::Signal, value: i32) -> Result<(), Errno> {
    let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
    // SAFETY: no memory is passed: the value is a number in a pointer's place, which only the receiver looks at.
    Errno::result(unsafe { libc::sigqueue(pid.as_raw(), signal as i32, value) }).map(drop)
}

/// What [`reap`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// This child has ended, so.
    Child(Pid, ExitStatus),
    /// There are children, and none has ended.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// Takes one ended child, if there is one.
///
/// nix's `waitpid` knows no realtime signals and fails where one has killed a process, which is then gone unnoticed.
pub(crate) fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: `status` is one int, and lives through the call.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Reaped::Nothing,
        pid if pid < 0 => Reaped::NoChildren,
        pid if libc::WIFEXITED(status) => {
            Reaped::Child(Pid::from_raw(pid), ExitStatus::Code(libc::WEXITSTATUS(status)))
        }
        pid => Reaped::Child(Pid::from_raw(pid), ExitStatus::Signal(libc::WTERMSIG(status))),
    }
}
