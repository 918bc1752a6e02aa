//! What a launch asks of the kernel, as a trait: Linux, or a record of what was asked.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
        fchown, fgetxattr, flistxattr, fsetxattr, futimens, mkdirat, mknodat, openat, symlinkat,
    },
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

/// What a mount forbids, in mount_setattr(2)'s bits.
pub(crate) type Attributes = MountAttrFlags;

/// System calls of a launch. A *tree* is a mount that hangs nowhere yet.
pub(crate) trait Kernel {
    /// A mount without a place.
    type Tree;
    /// unshare(2).
    fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()>;
    /// mount(2), MS_PRIVATE of all from here down.
    fn make_private(&mut self, path: &str) -> io::Result<()>;
    /// fsopen(2) to fsmount(2): a file system by its kind, its parameters (a flag is one with an empty value) and what the
    /// mount forbids. An error carries the kernel's own words where it has some.
    fn file_system(
        &mut self,
        kind: &str,
        parameters: &[(&str, &str)],
        forbid: Attributes,
    ) -> io::Result<Self::Tree>;
    /// open_tree(2): a copy of what is at a path, without what hangs below it.
    fn tree(&mut self, path: &str) -> io::Result<Self::Tree>;
    /// The same, of a path below a tree; no link is followed.
    fn tree_in(&mut self, tree: &Self::Tree, path: &str) -> io::Result<Self::Tree>;
    /// mount_setattr(2): what the mount forbids.
    fn forbid(&mut self, tree: &Self::Tree, attributes: Attributes) -> io::Result<()>;
    /// mount_setattr(2), MOUNT_ATTR_IDMAP: owners in the mount are mapped as in this user namespace.
    fn map_owners(&mut self, tree: &Self::Tree, users: BorrowedFd<'_>) -> io::Result<()>;
    /// move_mount(2): hangs the tree at a path, whose last component is not followed if it is a link. The tree stays
    /// open.
    fn place(&mut self, tree: &Self::Tree, path: &str) -> io::Result<()>;
    /// Makes a directory the root, and lets go of the old one.
    fn pivot(&mut self, new_root: &str) -> io::Result<()>;
    /// mkdir(2); that it is there already is no error. True if it was made.
    fn directory(&mut self, path: &str, mode: u32) -> io::Result<bool>;
    /// Makes an empty file; that something is there already is no error.
    fn file(&mut self, path: &str, mode: u32) -> io::Result<()>;
    /// mkdirat(2) below a tree; that it is there already is no error. True if it was made.
    fn directory_in(&mut self, tree: &Self::Tree, path: &str, mode: u32, owner: u32) -> io::Result<bool>;
    /// fstatat(2) below a tree: whether something is there.
    fn is_in(&mut self, tree: &Self::Tree, path: &str) -> io::Result<bool>;
    /// Copies a directory of the base's, by absolute path, to the same path below the own disk's `bound`; see
    /// [`seed`](super::seed). False if there is none, or nothing in it.
    fn seed(&mut self, base: &Self::Tree, own: &Self::Tree, path: &str) -> io::Result<bool>;
    /// Gives a directory below a tree the mode, the owners, the attributes and the times of another tree's root.
    fn copy_metadata(&mut self, from: &Self::Tree, to: &Self::Tree, path: &str) -> io::Result<()>;
    /// mknodat(2): a character device.
    fn node_in(
        &mut self,
        tree: &Self::Tree,
        path: &str,
        mode: u32,
        device: u64,
        owner: u32,
    ) -> io::Result<()>;
    /// symlinkat(2) below a tree.
    fn link_in(&mut self, tree: &Self::Tree, target: &str, path: &str) -> io::Result<()>;
}

/// The kernel that runs.
#[derive(Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {
    type Tree = OwnedFd;

    fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()> {
        Ok(unshare(namespaces)?)
    }

    fn make_private(&mut self, path: &str) -> io::Result<()> {
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        Ok(mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?)
    }

    fn file_system(
        &mut self,
        kind: &str,
        parameters: &[(&str, &str)],
        forbid: Attributes,
    ) -> io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let made = (|| {
            for (key, value) in parameters {
                if value.is_empty() {
                    fsconfig_set_flag(&context, *key)?;
                } else {
                    fsconfig_set_string(&context, *key, *value)?;
                }
            }
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, forbid)
        })();
        made.map_err(|error| explain(&context, error))
    }

    fn tree(&mut self, path: &str) -> io::Result<OwnedFd> {
        Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
    }

    fn tree_in(&mut self, tree: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        Ok(open_tree(tree, path, flags)?)
    }

    fn forbid(&mut self, tree: &OwnedFd, attributes: Attributes) -> io::Result<()> {
        set_attributes(tree.as_fd(), attributes.bits().into(), None)
    }

    fn map_owners(&mut self, tree: &OwnedFd, users: BorrowedFd<'_>) -> io::Result<()> {
        set_attributes(tree.as_fd(), libc::MOUNT_ATTR_IDMAP, Some(users))
    }

    fn place(&mut self, tree: &OwnedFd, path: &str) -> io::Result<()> {
        Ok(move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }

    fn pivot(&mut self, new_root: &str) -> io::Result<()> {
        // With "." twice the old root ends up over the new one, and needs no directory there (pivot_root(2), NOTES).
        chdir(new_root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(chdir("/")?)
    }

    fn directory(&mut self, path: &str, mode: u32) -> io::Result<bool> {
        made(mkdirat(CWD, path, Mode::from_raw_mode(mode)))
    }

    fn file(&mut self, path: &str, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        match std::fs::File::options().write(true).create_new(true).mode(mode).open(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn directory_in(&mut self, tree: &OwnedFd, path: &str, mode: u32, owner: u32) -> io::Result<bool> {
        let is_new = made(mkdirat(tree, path, Mode::from_raw_mode(mode)))?;
        // Who makes it may look like somebody else.
        if is_new {
            own(tree, path, owner)?;
        }
        Ok(is_new)
    }

    fn is_in(&mut self, tree: &OwnedFd, path: &str) -> io::Result<bool> {
        match rustix::fs::statat(tree, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn seed(&mut self, base: &OwnedFd, own: &OwnedFd, path: &str) -> io::Result<bool> {
        super::seed::seed(base, own, path)
    }

    fn copy_metadata(&mut self, from: &OwnedFd, to: &OwnedFd, path: &str) -> io::Result<()> {
        let open = |tree, path| openat(tree, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let (from, to) = (open(from, ".")?, open(to, path)?);
        let about = rustix::fs::fstat(&from)?;
        fchown(&to, Some(Uid::from_raw(about.st_uid)), Some(Gid::from_raw(about.st_gid)))?;
        fchmod(&to, Mode::from_raw_mode(about.st_mode))?;
        copy_attributes(&from, &to)?;
        let modified = Timespec { tv_sec: about.st_mtime, tv_nsec: about.st_mtime_nsec as i64 };
        Ok(futimens(&to, &Timestamps { last_access: modified, last_modification: modified })?)
    }

    fn node_in(&mut self, tree: &OwnedFd, path: &str, mode: u32, device: u64, owner: u32) -> io::Result<()> {
        mknodat(tree, path, FileType::CharacterDevice, Mode::from_raw_mode(mode), device)?;
        // The umask took its part of the mode.
        rustix::fs::chmodat(tree, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        own(tree, path, owner)
    }

    fn link_in(&mut self, tree: &OwnedFd, target: &str, path: &str) -> io::Result<()> {
        Ok(symlinkat(target, tree, path)?)
    }
}

fn own(tree: &OwnedFd, path: &str, owner: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(chownat(tree, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Extended attributes (xattr(7)): access control lists, labels, users' own.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    // The kernel's own limits (linux/limits.h, XATTR_LIST_MAX and XATTR_SIZE_MAX).
    let (mut names, mut value) = (vec![0_u8; 65536], vec![0_u8; 65536]);
    let length = flistxattr(from, &mut names)?;
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let length = fgetxattr(from, name, &mut value)?;
        fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}

fn made(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the kernel has to say about a file system that could not be made: the newest line of the context's log (fsopen(2),
/// "e " for an error, then words).
fn explain(context: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut line = [0; 512];
    let mut words = None;
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).trim().to_owned();
        if let Some(complaint) = text.strip_prefix("e ") {
            words = Some(complaint.to_owned());
        }
    }
    match words {
        Some(words) => io::Error::new(io::Error::from(error).kind(), format!("{error} ({words})")),
        None => error.into(),
    }
}

/// mount_setattr(2), of the mount that a descriptor stands for.
fn set_attributes(tree: BorrowedFd<'_>, set: u64, users: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the empty path and the attributes live through the call, and the attributes' size is passed; both
    // descriptors are borrowed and so open.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod recording {
    use super::*;

    /// Does nothing, and remembers what it was asked.
    #[derive(Debug, Default)]
    pub(crate) struct Recording {
        pub(crate) calls: Vec<String>,
        pub(crate) read_only: bool,
        /// File systems that cannot be made, with their parameters.
        pub(crate) missing: Vec<&'static str>,
        /// Directories that are there already.
        pub(crate) present: Vec<&'static str>,
    }

    impl Recording {
        /// Which call begins so.
        pub(crate) fn position(&self, start: &str) -> usize {
            let found = self.calls.iter().position(|c| c.starts_with(start));
            found.unwrap_or_else(|| panic!("{start}: {:#?}", self.calls))
        }

        fn note(&mut self, call: String) -> io::Result<()> {
            self.calls.push(call);
            Ok(())
        }
    }

    impl Kernel for Recording {
        type Tree = String;

        fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()> {
            self.note(format!("unshare {namespaces:?}"))
        }

        fn make_private(&mut self, path: &str) -> io::Result<()> {
            self.note(format!("private {path}"))
        }

        fn file_system(
            &mut self,
            kind: &str,
            parameters: &[(&str, &str)],
            _: Attributes,
        ) -> io::Result<String> {
            let words: Vec<String> = parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let what = format!("{kind} {}", words.join(","));
            if self.missing.iter().any(|missing| *missing == what) {
                return Err(Errno::EINVAL.into());
            }
            self.note(format!("make {what}"))?;
            Ok(kind.into())
        }

        fn tree(&mut self, path: &str) -> io::Result<String> {
            self.note(format!("tree {path}"))?;
            Ok(path.into())
        }

        fn tree_in(&mut self, tree: &String, path: &str) -> io::Result<String> {
            self.note(format!("tree {tree}:{path}"))?;
            Ok(format!("{tree}:{path}"))
        }

        fn forbid(&mut self, tree: &String, attributes: Attributes) -> io::Result<()> {
            self.note(format!("forbid {tree} {attributes:?}"))
        }

        fn map_owners(&mut self, tree: &String, _: BorrowedFd<'_>) -> io::Result<()> {
            self.note(format!("map {tree}"))
        }

        fn place(&mut self, tree: &String, path: &str) -> io::Result<()> {
            self.note(format!("place {tree} at {path}"))
        }

        fn pivot(&mut self, new_root: &str) -> io::Result<()> {
            self.note(format!("pivot {new_root}"))
        }

        fn directory(&mut self, path: &str, _: u32) -> io::Result<bool> {
            self.note(format!("directory {path}"))?;
            Ok(!self.present.contains(&path))
        }

        fn file(&mut self, path: &str, _: u32) -> io::Result<()> {
            if self.read_only && !path.starts_with("/dev/") {
                return Err(Errno::EROFS.into());
            }
            self.note(format!("file {path}"))
        }

        fn directory_in(&mut self, tree: &String, path: &str, mode: u32, owner: u32) -> io::Result<bool> {
            self.note(format!("directory {tree}:{path} {mode:o} {owner}"))?;
            Ok(!self.present.contains(&path))
        }

        fn is_in(&mut self, _: &String, path: &str) -> io::Result<bool> {
            Ok(self.present.contains(&path))
        }

        fn seed(&mut self, base: &String, own: &String, path: &str) -> io::Result<bool> {
            self.note(format!("seed {own} from {base}:{path}"))?;
            Ok(false)
        }

        fn copy_metadata(&mut self, from: &String, to: &String, path: &str) -> io::Result<()> {
            self.note(format!("metadata {from} to {to}:{path}"))
        }

        fn node_in(
            &mut self,
            tree: &String,
            path: &str,
            mode: u32,
            device: u64,
            owner: u32,
        ) -> io::Result<()> {
            self.note(format!("node {tree}:{path} {mode:o} {device:#x} {owner}"))
        }

        fn link_in(&mut self, tree: &String, target: &str, path: &str) -> io::Result<()> {
            self.note(format!("link {tree}:{path} to {target}"))
        }
    }
}
