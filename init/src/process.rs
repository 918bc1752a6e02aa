//! What processes are started with: descriptors, signals, and who adopts their orphans.
#![allow(unsafe_code)]

use std::{
    fs::File,
    os::fd::{FromRawFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    unistd::Pid,
};

/// Takes a descriptor that whoever executed this program left open for it, by its number. It is closed on exec from now
/// on. An error if there is no such descriptor.
pub(crate) fn inherited(number: RawFd) -> Result<File, Errno> {
    // SAFETY: borrowed for this one call, which fails with EBADF if it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, as the call above has shown; its number was given to this program to own, and is taken once,
    // before any other descriptor is made.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Sends a signal by number, realtime ones too: to a process, or to a group if `to` is negative (kill(2)).
pub(crate) fn signal(to: Pid, number: i32) -> Result<(), Errno> {
    // SAFETY: kill has no preconditions.
    Errno::result(unsafe { libc::kill(to.as_raw(), number) }).map(drop)
}

/// Adopts the orphans among this process's descendants (prctl(2), PR_SET_CHILD_SUBREAPER).
pub(crate) fn adopt_orphans() -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Closes every descriptor from 3 on but one. What owned them in this process must never be dropped afterwards: only for
/// children that end by [`undercroft_guest::process::exit_child`] or exec.
pub(crate) fn close_all_but(kept: &impl std::os::fd::AsRawFd) {
    let kept = kept.as_raw_fd() as libc::c_uint;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: no memory is passed; the caller sees to it that nobody uses the closed descriptors' numbers again.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Gives every signal its default effect and lets all of them through: what a program expects to be started with.
pub(crate) fn reset_signals() {
    default_effects();
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// The same, but one signal, by number, is held back.
pub(crate) fn reset_signals_but(held: i32) {
    default_effects();
    // SAFETY: a sigset_t of zeros is one, and is made properly empty at once; it lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, held);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

fn default_effects() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL runs no code of this program; numbers that cannot be changed fail, which is well.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Starts a program with signals as it expects them, not blocked as they are here.
pub(crate) fn spawn_with_default_signals(
    command: &mut std::process::Command,
) -> std::io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let prepare = || {
        reset_signals();
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls signal and sigprocmask, which are async-signal-safe.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
