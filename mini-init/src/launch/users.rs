//! A distribution's users: a range of the VM's ids, as user_namespaces(7) has it.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
};

use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::CapabilitiesSecureBits;
use undercroft_protocol::command::{Failure, FailureKind, Users};

use crate::jobs::system;

/// A user namespace, and who is root in it.
#[derive(Debug)]
pub(super) struct Owner {
    /// The namespace.
    pub(super) namespace: OwnedFd,
    /// Its root's user and group id in the VM.
    pub(super) root: u32,
}

/// Refuses a range that overlaps the VM's own ids, or ends past the last one (-1 is none).
pub(super) fn check(users: Users) -> Result<(), Failure> {
    match users {
        Users::Shared => Ok(()),
        // 65534 stands for those who have no number in a namespace.
        Users::Own { first, count } if count > 0 && first > 0xffff && first.checked_add(count).is_some() => {
            Ok(())
        }
        Users::Own { first, count } => Err(Failure {
            kind: FailureKind::Invalid,
            message: format!(
                "{count} users from {first} on are no range for a distribution: expected one between 65536 and 2^32-2"
            ),
        }),
    }
}

/// Gives the child's user namespace its range, and this process the looks of its root: what it makes on the distribution's
/// mounts belongs to that root, and it keeps every right. `None` where users are shared.
pub(super) fn map(users: Users, child: Pid) -> Result<Option<Owner>, Failure> {
    let Users::Own { first, count } = users else { return Ok(None) };
    let line = format!("0 {first} {count}\n");
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{child}/{file}");
        fs::write(&path, &line).map_err(system(&format!("writing {line:?} to {path}")))?;
    }
    let namespace =
        File::open(format!("/proc/{child}/ns/user")).map_err(system("opening the user namespace"))?;
    look_like(first).map_err(system("taking the looks of the distribution's root"))?;
    Ok(Some(Owner { namespace: namespace.into(), root: first }))
}

/// File system ids. The kernel would take capabilities away with them (capabilities(7), SECBIT_NO_SETUID_FIXUP), and
/// overlayfs works with those that its maker had.
fn look_like(id: u32) -> io::Result<()> {
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    nix::unistd::setfsgid(Gid::from_raw(id));
    nix::unistd::setfsuid(Uid::from_raw(id));
    Ok(())
}

/// In a child: becomes root of the user namespace that it is in, whose range has been set.
pub(crate) fn become_root() -> nix::Result<()> {
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(root, root, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_distributions_own() {
        let own = |first, count| check(Users::Own { first, count }).is_ok();
        assert!(own(1 << 20, 1 << 20) && own(u32::MAX - 1, 1) && own(0x1_0000, 1));
        assert!(
            !own(0, 1) && !own(0xffff, 10) && !own(1 << 20, 0) && !own(u32::MAX, 1) && !own(1 << 31, 1 << 31)
        );
        assert!(check(Users::Shared).is_ok());
    }
}
