//! What a distribution gets of the VM: device nodes, the one `/init`, sysfs, and the memory that all share.
//!
//! The VM's devtmpfs itself stays outside: it cannot be mounted with mapped owners, and it holds the other distributions'
//! disks. A tmpfs that the VM has mounted honours device nodes wherever it hangs, and the nodes on it can belong to the
//! distribution's own root; it can change and remove them, and make no others. Sysfs shows the network of who mounts it: those
//! who share the VM's have the VM's own, whose files no distribution owns, and the others one each.

use std::{io, os::unix::fs::MetadataExt};

use undercroft_protocol::command::{Failure, Users};

use super::{
    kernel::{Attributes, Kernel},
    users::Owner,
};
use crate::{early, jobs::system};

/// The program that every distribution has as `/init`, in the initramfs.
pub(crate) const INIT: &str = "/distribution-init";

/// Nodes without which programs do not work.
const NEEDED: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Nodes that are given where the kernel has them: their drivers look at who asks.
const WHERE_THERE: [&str; 4] = ["fuse", "net/tun", "kvm", "vhost-net"];
/// Nodes for those only who may do with the whole VM what they like: kernel log, disks out of files, device mapper.
const WITHOUT_BOUNDS: [&str; 4] = ["kmsg", "loop-control", "mapper/control", "userfaultfd"];
/// Directories below /dev.
const DIRECTORIES: [&str; 5] = ["net", "mapper", "pts", "shm", "mqueue"];
/// Links below /dev that programs expect (Documentation/admin-guide/devices.txt, "Recommended links").
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("fd/0", "stdin"),
    ("fd/1", "stdout"),
    ("fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Mounts that every distribution gets.
#[derive(Debug)]
pub(super) struct Given<T> {
    /// For /dev.
    pub(super) devices: T,
    /// For /sys.
    pub(super) sysfs: T,
    /// For /mnt/undercroft.
    pub(super) shared: T,
    /// For /init.
    pub(super) init: T,
}

impl<T> Given<T> {
    /// In the order in which the child takes them.
    pub(super) fn into_all(self) -> [T; 4] {
        [self.devices, self.sysfs, self.shared, self.init]
    }
}

/// Makes or copies them.
pub(super) fn make<K: Kernel>(
    kernel: &mut K,
    users: Users,
    owner: Option<&Owner>,
    own_network: bool,
) -> Result<Given<K::Tree>, Failure> {
    let devices = device_tree(kernel, users, owner.map_or(0, |owner| owner.root))?;
    let mut copy = |path: &str, forbid: Attributes| {
        let cannot = || system::<io::Error>(&format!("copying {path}"));
        let tree = kernel.tree(path).map_err(cannot())?;
        kernel.forbid(&tree, forbid).map_err(cannot())?;
        Ok::<_, Failure>(tree)
    };
    let quiet = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    let unwritten = quiet | Attributes::MOUNT_ATTR_RDONLY;
    let (shared, init) = (copy(early::SHARED, quiet)?, copy(INIT, unwritten)?);
    // Hardly one of its files is theirs; that the mount says so too is for programs that ask before they try.
    let unused = if matches!(users, Users::Own { .. }) { unwritten } else { quiet };
    let forbid = unused | Attributes::MOUNT_ATTR_NOEXEC;
    let sysfs = if own_network {
        kernel.file_system("sysfs", &[], forbid).map_err(system("making the distribution's /sys"))?
    } else {
        copy("/sys", forbid)?
    };
    Ok(Given { devices, sysfs, shared, init })
}

fn device_tree<K: Kernel>(kernel: &mut K, users: Users, owner: u32) -> Result<K::Tree, Failure> {
    let id = owner.to_string();
    let parameters = [("mode", "0755"), ("size", "4m"), ("uid", &id), ("gid", &id)];
    let cannot = |what: &str| system::<io::Error>(&format!("making the distribution's /dev{what}"));
    let tree = kernel.file_system("tmpfs", &parameters, Attributes::MOUNT_ATTR_NOSUID).map_err(cannot(""))?;
    for name in DIRECTORIES {
        kernel.directory_in(&tree, name, 0o755, owner).map_err(cannot(&format!("/{name}")))?;
    }
    let mut node = |name: &str, is_needed: bool| match std::fs::metadata(format!("/dev/{name}")) {
        Ok(about) => {
            let mode = about.mode() & 0o777;
            kernel.node_in(&tree, name, mode, about.rdev(), owner).map_err(cannot(&format!("/{name}")))
        }
        Err(error) if is_needed => Err(system(&format!("looking at /dev/{name}"))(error)),
        Err(_) => Ok(()),
    };
    for name in NEEDED {
        node(name, true)?;
    }
    let more: &[&str] = if users == Users::Shared { &WITHOUT_BOUNDS } else { &[] };
    for name in WHERE_THERE.iter().chain(more) {
        node(name, false)?;
    }
    for (target, name) in LINKS {
        kernel.link_in(&tree, target, name).map_err(cannot(&format!("/{name}")))?;
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::{super::kernel::recording::Recording, *};

    fn nodes(users: Users, owner: Option<&Owner>) -> Vec<String> {
        let mut kernel = Recording::default();
        make(&mut kernel, users, owner, false).unwrap();
        kernel.calls
    }

    #[test]
    fn nodes_belong_to_the_distributions_root() {
        let namespace = std::fs::File::open("/dev/null").unwrap().into();
        let owner = Owner { namespace, root: 1 << 20 };
        let calls = nodes(Users::Own { first: 1 << 20, count: 1 }, Some(&owner));
        let made = |start: &str| calls.iter().find(|c| c.starts_with(start)).cloned().unwrap_or_default();
        assert_eq!(made("node tmpfs:null"), "node tmpfs:null 666 0x103 1048576");
        assert!(made("make tmpfs").contains("uid=1048576"), "{calls:#?}");
        assert!(
            made("forbid /sys").contains("RDONLY") && made("forbid /distribution-init").contains("RDONLY")
        );
        assert_eq!(made("node tmpfs:kmsg"), "");
    }

    #[test]
    fn only_the_shared_root_may_write_to_sysfs() {
        let calls = nodes(Users::Shared, None);
        let sysfs = calls.iter().find(|c| c.starts_with("forbid /sys")).unwrap();
        assert!(!sysfs.contains("RDONLY"), "{sysfs}");
    }
}
