//! Making processes: fork, and clone3 with what libc does not offer; and taking their ends.
//!
//! A fork copies only the thread that asks for it, and every lock as it stands: one that another thread held stays locked
//! in the child for ever. So these functions refuse a process that has other threads, and are safe to call for it.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    unistd::{ForkResult, Pid, fork as nix_fork},
};
use undercroft_protocol::session::ExitStatus;

/// Makes a child that goes on here, in a copy of this process.
///
/// An error if the kernel refuses it; EINVAL if this process has more than one thread.
pub fn fork() -> Result<ForkResult, Errno> {
    only_thread()?;
    // SAFETY: this is the only thread, so no lock can be held by another thread in the child's copy.
    unsafe { nix_fork() }
}

/// As [`fork`], in new namespaces and, from its first instruction on, in a cgroup (a directory of cgroup2). The child is
/// this process's sibling: its end is told to this process's parent.
///
/// An error as [`fork`]'s; EINVAL too if a flag is not of the CLONE_NEW* ones. clone3(2), struct clone_args.
pub fn clone_beside(namespaces: CloneFlags, cgroup: BorrowedFd<'_>) -> Result<ForkResult, Errno> {
    // CLONE_INTO_CGROUP, linux/sched.h: beyond the 32 bits that CloneFlags holds.
    const INTO_CGROUP: u64 = 1 << 33;
    if !NAMESPACES.contains(namespaces) {
        return Err(Errno::EINVAL);
    }
    only_thread()?;
    // SAFETY: an all-zero clone_args asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // A sibling's exit signal is this process's own, and may not be named.
    arguments.flags = (namespaces | CloneFlags::CLONE_PARENT).bits() as u64 | INTO_CGROUP;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM, which is no namespace, this is a fork: the child has a copy of the stack and goes on behind
    // this call; this is the only thread, so the copy is consistent. `arguments` lives through the call and its size is
    // passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match Errno::result(pid)? {
        0 => Ok(ForkResult::Child),
        pid => Ok(ForkResult::Parent { child: Pid::from_raw(pid as libc::pid_t) }),
    }
}

/// Every kind of namespace that nix has a name for.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWCGROUP
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUSER)
    .union(CloneFlags::CLONE_NEWUTS);

/// EINVAL if this process has other threads: unshare(2) does nothing with CLONE_THREAD but to look whether it has.
fn only_thread() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_THREAD)
}

/// Ends a child without running what the parent registered for its own exit.
pub fn exit_child(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// What [`reap`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
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
pub fn reap() -> Reaped {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_namespaces_are_made() {
        let cgroup = std::fs::File::open("/").expect("a directory");
        let refused = clone_beside(CloneFlags::CLONE_VM, std::os::fd::AsFd::as_fd(&cgroup));
        assert!(matches!(refused, Err(Errno::EINVAL)), "{refused:?}");
    }

    #[test]
    fn a_process_with_other_threads_is_not_forked() {
        let (end, ended) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        let refused = fork();
        if matches!(refused, Ok(ForkResult::Child)) {
            exit_child(1);
        }
        drop(end);
        assert!(other.join().expect("the other thread").is_err());
        assert!(matches!(refused, Err(Errno::EINVAL)), "{refused:?}");
    }
}
