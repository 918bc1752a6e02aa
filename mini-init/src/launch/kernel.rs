//! What a launch asks of the kernel, as a trait: Linux, or a record of what was asked.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, pivot_root},
};

/// System calls of a launch.
pub(crate) trait Kernel {
    /// A mount that is not in the tree of mounts.
    type Tree;
    /// unshare(2).
    fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()>;
    /// mount(2).
    fn mount(
        &mut self,
        source: &str,
        target: &str,
        kind: Option<&str>,
        flags: MsFlags,
        data: &str,
    ) -> io::Result<()>;
    /// open_tree(2): a copy of what is at a path.
    fn tree(&mut self, path: &str) -> io::Result<Self::Tree>;
    /// mount_setattr(2): nobody can write to the copy, whatever its mode says.
    fn protect(&mut self, tree: &Self::Tree) -> io::Result<()>;
    /// move_mount(2): puts the copy at a path, whose last component is not followed if it is a link.
    fn place(&mut self, tree: Self::Tree, path: &str) -> io::Result<()>;
    /// Makes a directory the root, and lets go of the old one.
    fn pivot(&mut self, new_root: &str) -> io::Result<()>;
    /// mkdir(2); that it is there already is no error.
    fn directory(&mut self, path: &str, mode: u32) -> io::Result<()>;
    /// Makes an empty file; that something is there already is no error.
    fn file(&mut self, path: &str, mode: u32) -> io::Result<()>;
    /// symlink(2).
    fn link(&mut self, target: &str, path: &str) -> io::Result<()>;
}

/// The kernel that runs.
#[derive(Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {
    type Tree = OwnedFd;

    fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()> {
        Ok(unshare(namespaces)?)
    }

    fn mount(
        &mut self,
        source: &str,
        target: &str,
        kind: Option<&str>,
        flags: MsFlags,
        data: &str,
    ) -> io::Result<()> {
        Ok(mount(Some(source), target, kind, flags, Some(data))?)
    }

    fn tree(&mut self, path: &str) -> io::Result<OwnedFd> {
        let path = CString::new(path)?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        // SAFETY: the path is a C string that lives through the call.
        let descriptor = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        let descriptor = Errno::result(descriptor)? as libc::c_int;
        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    fn protect(&mut self, tree: &OwnedFd) -> io::Result<()> {
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        };
        // SAFETY: the empty path and the attributes live through the call, and the attributes' size is passed.
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

    fn place(&mut self, tree: OwnedFd, path: &str) -> io::Result<()> {
        // MOVE_MOUNT_F_EMPTY_PATH, linux/mount.h: the source is the descriptor itself.
        const SOURCE_IS_DESCRIPTOR: libc::c_uint = 0x4;
        let path = CString::new(path)?;
        // SAFETY: both paths are C strings that live through the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                SOURCE_IS_DESCRIPTOR,
            )
        })?;
        Ok(())
    }

    fn pivot(&mut self, new_root: &str) -> io::Result<()> {
        // With "." twice the old root ends up over the new one, and needs no directory there (pivot_root(2), NOTES).
        chdir(new_root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(chdir("/")?)
    }

    fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn file(&mut self, path: &str, mode: u32) -> io::Result<()> {
        match fs::File::options().write(true).create_new(true).mode(mode).open(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn link(&mut self, target: &str, path: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(target, path)
    }
}

#[cfg(test)]
pub(crate) mod recording {
    use super::*;

    /// Does nothing, and remembers what it was asked.
    #[derive(Debug, Default)]
    pub(crate) struct Recording {
        pub(crate) calls: Vec<String>,
        pub(crate) read_only: bool,
    }

    impl Kernel for Recording {
        type Tree = String;

        fn unshare(&mut self, namespaces: CloneFlags) -> io::Result<()> {
            self.calls.push(format!("unshare {namespaces:?}"));
            Ok(())
        }

        fn mount(
            &mut self,
            source: &str,
            target: &str,
            kind: Option<&str>,
            flags: MsFlags,
            data: &str,
        ) -> io::Result<()> {
            let private =
                if flags.contains(MsFlags::MS_PRIVATE | MsFlags::MS_REC) { "private,rec" } else { data };
            self.calls.push(format!("mount {source} {target} {} {private}", kind.unwrap_or("-")));
            Ok(())
        }

        fn tree(&mut self, path: &str) -> io::Result<String> {
            self.calls.push(format!("tree {path}"));
            Ok(path.into())
        }

        fn protect(&mut self, tree: &String) -> io::Result<()> {
            self.calls.push(format!("protect {tree}"));
            Ok(())
        }

        fn place(&mut self, tree: String, path: &str) -> io::Result<()> {
            self.calls.push(format!("place {path} from {tree}"));
            Ok(())
        }

        fn pivot(&mut self, new_root: &str) -> io::Result<()> {
            self.calls.push(format!("pivot {new_root}"));
            Ok(())
        }

        fn directory(&mut self, path: &str, _mode: u32) -> io::Result<()> {
            self.calls.push(format!("directory {path}"));
            Ok(())
        }

        fn file(&mut self, path: &str, _mode: u32) -> io::Result<()> {
            if self.read_only && !path.starts_with("/dev/") {
                return Err(Errno::EROFS.into());
            }
            self.calls.push(format!("file {path}"));
            Ok(())
        }

        fn link(&mut self, target: &str, path: &str) -> io::Result<()> {
            self.calls.push(format!("link {path} to {target}"));
            Ok(())
        }
    }
}
