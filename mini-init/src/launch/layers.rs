//! The root file system: an own disk, or an own disk over a base.
//!
//! The own disk of a layered distribution has three directories: `upper` is what overlayfs writes into, `work` is
//! overlayfs's own, and `bound` holds what cannot live on overlayfs, at the same path as in the distribution.
//!
//! Overlayfs as chosen here (Documentation/filesystems/overlayfs.rst):
//!
//! - `metacopy=on`: a change of owner, mode or time copies no content, so the pages stay those that all share;
//! - `redirect_dir=on`: directories of the base can be renamed (without, programs get EXDEV and copy), and metacopy needs
//!   it;
//! - `index=on`: hard links of the base stay links when one of them is written to, and an own disk that is in use elsewhere
//!   is refused;
//! - `xino=on`: one device number for all files, which `tar --one-file-system` and `find -xdev` go by, and inode numbers
//!   that stay.
//!
//! Its marks are `trusted.*` attributes, which a distribution with users of its own can neither read nor forge.

use std::path::PathBuf;

use undercroft_protocol::command::{Failure, FailureKind, Root};

use super::{
    kernel::{Attributes, Kernel},
    users::Owner,
};
use crate::{
    disk,
    jobs::{failure, system},
};

/// The block devices that a launch names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Devices {
    /// The distribution's own disk.
    pub(crate) own: PathBuf,
    /// The base, if there is one.
    pub(crate) base: Option<PathBuf>,
}

impl Devices {
    /// Those of a root whose disks are attached.
    pub(crate) fn of(root: &Root) -> Result<Self, Failure> {
        let base = match root {
            Root::Layered { base, .. } => Some(disk::path(base)?),
            Root::Flat { .. } => None,
        };
        Ok(Self { own: disk::path(root.own_disk())?, base })
    }
}

/// Where the layers hang while they are stacked, in the preparer's mount namespace only.
pub(crate) const OWN: &str = "/run/layers/own";
/// See [`OWN`].
pub(crate) const BASE: &str = "/run/layers/base";

/// `discard` gives deleted files' space back to the host; an error must not be followed by writes that make it worse. Without
/// the third, ext4 reads or makes the block bitmap of every group after the mount, and a buddy for each: 24 MiB of pages for
/// a disk of 256 GiB, measured as the host's cost of each idle distribution. What is written to is looked at then.
const OWN_PARAMETERS: [(&str, &str); 3] =
    [("discard", ""), ("errors", "remount-ro"), ("no_prefetch_block_bitmaps", "")];

/// What was mounted: the root, and the directories that are to be bound over it, in the launch's order.
type Mounted<T> = (T, Vec<T>);

/// Mounts a distribution's root. Nothing of it is seen in the VM's own namespace.
pub(super) fn mount<K: Kernel>(
    kernel: &mut K,
    root: &Root,
    devices: &Devices,
    owner: Option<&Owner>,
) -> Result<Mounted<K::Tree>, Failure> {
    let own = own_disk(kernel, devices, &OWN_PARAMETERS)?;
    let Root::Layered { bound, .. } = root else {
        map(kernel, &own, owner)?;
        return Ok((own, Vec::new()));
    };
    let base = base_disk(kernel, devices)?;
    prepare_own(kernel, &own, &base, bound)?;
    let root = stack(kernel, &own, &base, owner)?;
    let bound = bound.iter().map(|path| {
        let inside = format!("bound{path}");
        kernel.tree_in(&own, &inside).map_err(opening(&inside))
    });
    Ok((root, bound.collect::<Result<_, _>>()?))
}

/// What can be read of a distribution: the root, and what is bound over it, by path.
pub(super) type Readable<T> = (T, Vec<(String, T)>);

/// Mounts a root to be read as the distribution has it: with its own owners, and of the bound directories those that its
/// disk has. An own disk over a base is mounted for writing all the same, because an overlay without an upper layer knows
/// no index, and would show hard links of the base apart that have been one file since one of them was written to.
pub(super) fn mount_to_read<K: Kernel>(
    kernel: &mut K,
    root: &Root,
    devices: &Devices,
) -> Result<Readable<K::Tree>, Failure> {
    let Root::Layered { bound, .. } = root else {
        let own = own_disk(kernel, devices, &[("ro", ""), ("no_prefetch_block_bitmaps", "")])?;
        return Ok((own, Vec::new()));
    };
    let own = own_disk(kernel, devices, &OWN_PARAMETERS)?;
    let base = base_disk(kernel, devices)?;
    prepare_own(kernel, &own, &base, &[])?;
    let root = stack(kernel, &own, &base, None)?;
    let mut there = Vec::new();
    for path in bound {
        check_bound(path)?;
        let inside = format!("bound{path}");
        match kernel.tree_in(&own, &inside) {
            Ok(tree) => there.push((path.clone(), tree)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(opening(&inside)(error)),
        }
    }
    for tree in there.iter().map(|(_, tree)| tree).chain([&root]) {
        kernel.forbid(tree, Attributes::MOUNT_ATTR_RDONLY).map_err(system("making a mount read-only"))?;
    }
    Ok((root, there))
}

fn opening(inside: &str) -> impl FnOnce(std::io::Error) -> Failure + use<> {
    system(&format!("opening {inside} on the distribution's disk"))
}

fn own_disk<K: Kernel>(
    kernel: &mut K,
    devices: &Devices,
    parameters: &[(&str, &str)],
) -> Result<K::Tree, Failure> {
    ext4(kernel, &devices.own.display().to_string(), "the distribution's disk", parameters)
}

fn base_disk<K: Kernel>(kernel: &mut K, devices: &Devices) -> Result<K::Tree, Failure> {
    let base = devices
        .base
        .as_ref()
        .ok_or_else(|| Failure { kind: FailureKind::Invalid, message: "the root names no base".into() })?;
    ext4(kernel, &base.display().to_string(), "the base", &[("ro", "")])
}

/// The own disk over the base, each hung up where overlayfs finds it.
fn stack<K: Kernel>(
    kernel: &mut K,
    own: &K::Tree,
    base: &K::Tree,
    owner: Option<&Owner>,
) -> Result<K::Tree, Failure> {
    for (tree, place) in [(own, OWN), (base, BASE)] {
        map(kernel, tree, owner)?;
        kernel.place(tree, place).map_err(system(&format!("hanging a layer at {place}")))?;
    }
    let (upper, work) = (format!("{OWN}/upper"), format!("{OWN}/work"));
    let parameters = [
        ("source", "undercroft"),
        ("lowerdir", BASE),
        ("upperdir", &upper),
        ("workdir", &work),
        ("metacopy", "on"),
        ("redirect_dir", "on"),
        ("index", "on"),
        ("xino", "on"),
    ];
    kernel
        .file_system("overlay", &parameters, Attributes::empty())
        .map_err(failure(FailureKind::Disk, "stacking the distribution's disk over its base"))
}

/// One ext4 disk.
fn ext4<K: Kernel>(
    kernel: &mut K,
    device: &str,
    what: &str,
    parameters: &[(&str, &str)],
) -> Result<K::Tree, Failure> {
    let mut all = vec![("source", device)];
    all.extend(parameters);
    kernel
        .file_system("ext4", &all, Attributes::empty())
        .map_err(failure(FailureKind::Disk, &format!("mounting {what}, {device}, as ext4")))
}

/// Owners on the disk are as the distribution sees them.
fn map<K: Kernel>(kernel: &mut K, tree: &K::Tree, owner: Option<&Owner>) -> Result<(), Failure> {
    let Some(owner) = owner else { return Ok(()) };
    let users = std::os::fd::AsFd::as_fd(&owner.namespace);
    kernel.map_owners(tree, users).map_err(system("mapping a disk's owners"))
}

/// Makes the directories of an own disk that is launched for the first time.
fn prepare_own<K: Kernel>(
    kernel: &mut K,
    own: &K::Tree,
    base: &K::Tree,
    bound: &[String],
) -> Result<(), Failure> {
    let cannot =
        |path: &str| failure(FailureKind::Disk, &format!("making {path} on the distribution's disk"));
    for path in ["work", "upper"] {
        // Owned by 0 on the disk, which the mapping makes the distribution's root: this is done before the mapping.
        let is_new = kernel.directory_in(own, path, 0o755, ON_DISK).map_err(cannot(path))?;
        if is_new && path == "upper" {
            // The upper layer's own root is what the distribution sees as `/`.
            kernel.copy_metadata(base, own, path).map_err(cannot(path))?;
        }
    }
    for path in bound {
        check_bound(path)?;
        let whole = format!("bound{path}");
        if kernel.is_in(own, &whole).map_err(cannot(&whole))? {
            continue;
        }
        for (end, _) in whole.match_indices('/') {
            kernel.directory_in(own, &whole[..end], 0o755, ON_DISK).map_err(cannot(&whole[..end]))?;
        }
        // What was imported there would be hidden by what is bound over it.
        if !kernel.seed(base, own, path).map_err(cannot(&whole))? {
            kernel.directory_in(own, &whole, 0o755, ON_DISK).map_err(cannot(&whole))?;
        }
    }
    Ok(())
}

/// Root, as the disk writes it.
const ON_DISK: u32 = 0;

/// The host's word, looked at all the same: it becomes a path on the disk.
fn check_bound(path: &str) -> Result<(), Failure> {
    let is_plain = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
    });
    if is_plain && path.len() < 1024 {
        return Ok(());
    }
    Err(Failure {
        kind: FailureKind::Invalid,
        message: format!(
            "{path:?} cannot be bound: expected an absolute path without `.`, `..` and double slashes"
        ),
    })
}

#[cfg(test)]
mod tests {
    use undercroft_protocol::{
        Token,
        command::{DiskAddress, Launch, Limits, Users},
    };

    use super::{super::kernel::recording::Recording, *};

    fn launch(root: Root) -> Launch {
        Launch {
            id: 1,
            name: "a".into(),
            hostname: "a".into(),
            root,
            users: Users::Shared,
            limits: Limits::default(),
            network: None,
            folders: Vec::new(),
            token: Token([0; 16]),
        }
    }

    fn layered(bound: &[&str]) -> (Launch, Devices) {
        let disk = DiskAddress::Lun(1);
        let bound = bound.iter().map(|&b| b.into()).collect();
        let root = Root::Layered { base: DiskAddress::Lun(0), disk, bound };
        (launch(root), Devices { own: "/dev/sdb".into(), base: Some("/dev/sda".into()) })
    }

    #[test]
    fn layers_are_prepared_before_their_owners_are_mapped_and_stacked_after() {
        let (what, devices) = layered(&["/var/lib/docker"]);
        let namespace = std::fs::File::open("/dev/null").unwrap().into();
        let owner = Owner { namespace, root: 1 << 20 };
        let mut kernel = Recording::default();
        let (root, bound) = mount(&mut kernel, &what.root, &devices, Some(&owner)).unwrap();
        assert_eq!(
            (root.as_str(), bound.as_slice()),
            ("overlay", &["ext4:bound/var/lib/docker".to_owned()][..])
        );
        let last_made = kernel.position("directory ext4:bound/var/lib/docker");
        assert!(kernel.position("metadata ext4 to ext4:upper") < last_made);
        assert!(kernel.position("seed ext4 from ext4:/var/lib/docker") < last_made);
        assert!(last_made < kernel.position("map ext4"));
        assert!(kernel.position("place ext4 at /run/layers/base") < kernel.position("make overlay"));
        assert!(kernel.position("make overlay") < kernel.position("tree ext4:bound/var/lib/docker"));
    }

    #[test]
    fn an_upper_layer_that_is_there_keeps_its_looks() {
        let (what, devices) = layered(&["/opt/x"]);
        let mut kernel = Recording { present: vec!["upper", "work", "bound/opt/x"], ..Recording::default() };
        mount(&mut kernel, &what.root, &devices, None).unwrap();
        let again = ["metadata", "seed", "directory ext4:bound"];
        assert!(!kernel.calls.iter().any(|c| again.iter().any(|a| c.starts_with(a))), "{:#?}", kernel.calls);
    }

    #[test]
    fn a_flat_root_is_its_disk() {
        let what = launch(Root::Flat { disk: DiskAddress::Lun(1) });
        let devices = Devices { own: "/dev/sdb".into(), base: None };
        let mut kernel = Recording::default();
        mount(&mut kernel, &what.root, &devices, None).unwrap();
        assert_eq!(
            kernel.calls,
            ["make ext4 source=/dev/sdb,discard=,errors=remount-ro,no_prefetch_block_bitmaps="]
        );
    }

    #[test]
    fn what_is_only_read_is_not_written_to() {
        let flat = launch(Root::Flat { disk: DiskAddress::Lun(1) });
        let devices = Devices { own: "/dev/sdb".into(), base: None };
        let mut kernel = Recording::default();
        mount_to_read(&mut kernel, &flat.root, &devices).unwrap();
        assert_eq!(kernel.calls, ["make ext4 source=/dev/sdb,ro=,no_prefetch_block_bitmaps="]);

        let (what, devices) = layered(&["/var/lib/docker"]);
        let mut kernel = Recording { present: vec!["upper", "work"], ..Recording::default() };
        let (_, bound) = mount_to_read(&mut kernel, &what.root, &devices).unwrap();
        assert_eq!(bound, [("/var/lib/docker".to_owned(), "ext4:bound/var/lib/docker".to_owned())]);
        kernel.position("forbid overlay MountAttrFlags(MOUNT_ATTR_RDONLY");
        kernel.position("forbid ext4:bound/var/lib/docker MountAttrFlags(MOUNT_ATTR_RDONLY");
        assert!(!kernel.calls.iter().any(|c| c.starts_with("directory ext4:bound") || c.starts_with("map")));
    }

    #[test]
    fn what_is_bound_is_a_plain_path() {
        for good in ["/var/lib/docker", "/a"] {
            assert!(check_bound(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "var", "/a/../b", "/a//b", "/a/", "/.", "/a\0b"] {
            assert!(check_bound(bad).is_err(), "{bad:?}");
        }
    }
}
