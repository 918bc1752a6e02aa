//! Carrying a mount into a distribution that runs.
//!
//! A child enters the distribution's namespaces and is its root from then on, so that no name in the distribution's files is
//! followed with the VM's rights. It is in the VM's PID namespace still, where nobody in the distribution sees it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use nix::{
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::wait::waitpid,
    unistd::{ForkResult, Pid, pipe2},
};
use undercroft_guest::process::{exit_child, fork};
use undercroft_protocol::command::Failure;

use crate::{
    jobs::system,
    launch::{Kernel, Linux, become_root, make_place},
};

/// The namespaces of a distribution's that a mount goes through.
#[derive(Debug)]
pub(crate) struct Doors {
    users: File,
    mounts: File,
}

impl Doors {
    /// Those of a process, which must not have been reaped.
    pub(crate) fn of(process: Pid) -> io::Result<Self> {
        let open = |kind: &str| File::open(format!("/proc/{process}/ns/{kind}"));
        Ok(Self { users: open("user")?, mounts: open("mnt")? })
    }
}

/// Hangs a tree at a place of a distribution's.
pub(super) fn place(doors: &Doors, place: &str, tree: &OwnedFd) -> Result<(), Failure> {
    let what = format!("hanging a folder at {place}");
    let begun = || -> io::Result<_> { Ok((pipe2(OFlag::O_CLOEXEC)?, fork()?)) };
    let ((read, write), forked) = begun().map_err(system(&what))?;
    if let ForkResult::Child = forked {
        if let Err(error) = enter(doors).and_then(|()| hang(&mut Linux, place, tree)) {
            // If nobody hears it, nobody is there.
            let _ = File::from(write).write_all(error.to_string().as_bytes());
        }
        exit_child(0)
    }
    drop(write);
    let mut words = String::new();
    let heard = File::from(read).read_to_string(&mut words);
    if let ForkResult::Parent { child } = forked {
        // It has said all that it has to say.
        let _ = waitpid(child, None);
    }
    heard.map_err(system(&what))?;
    if words.is_empty() { Ok(()) } else { Err(system(&what)(words)) }
}

/// Becomes root of the distribution, in its mount namespace.
fn enter(doors: &Doors) -> io::Result<()> {
    let own = File::open("/proc/self/ns/user")?.metadata()?;
    // Who shares the VM's users cannot be joined again (setns(2), EINVAL).
    if doors.users.metadata()?.ino() != own.ino() {
        setns(&doors.users, CloneFlags::CLONE_NEWUSER)?;
        become_root()?;
    }
    Ok(setns(&doors.mounts, CloneFlags::CLONE_NEWNS)?)
}

/// What was there before and has lost its server makes room.
fn hang<K: Kernel>(kernel: &mut K, place: &str, tree: &K::Tree) -> io::Result<()> {
    let lost = std::fs::metadata(place).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
    if lost {
        umount2(place, MntFlags::MNT_DETACH)?;
    }
    make_place(kernel, place)?;
    kernel.place(tree, place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::recording::Recording;

    #[test]
    fn the_way_is_made_and_then_the_place() {
        let mut kernel = Recording::default();
        hang(&mut kernel, "/home/me/src", &"tree".to_owned()).unwrap();
        let way =
            ["directory /home", "directory /home/me", "directory /home/me/src", "place tree at /home/me/src"];
        assert_eq!(kernel.calls, way);
    }
}
