//! The file systems of a distribution that are its own.
//!
//! mini-init has made the root, /dev, /proc and /sys before; what is here can be mounted by the distribution's own root.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
};

use nix::mount::{MsFlags, mount};

use crate::log::Warnings;

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// In order. `ptmxmode` makes /dev/pts/ptmx usable by everyone, and gid 5 is `tty` in every distribution
/// (Documentation/filesystems/devpts.rst).
const MOUNTS: [Mount; 4] = [
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, data: "nsdelegate" },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "gid=5,mode=620,ptmxmode=666",
    },
    Mount { kind: "mqueue", target: "/dev/mqueue", flags: NO_PROGRAMS, data: "" },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=0755",
    },
];

/// Directories on /run, with their modes.
const RUN: [(&str, u32); 3] = [("/run/lock", 0o1777), ("/run/shm", 0o1777), ("/run/user", 0o755)];

/// Mounts them. An error only where the distribution could not run without.
pub(crate) fn all(warnings: &mut Warnings) -> io::Result<()> {
    for Mount { kind, target, flags, data } in &MOUNTS {
        let _ = directory(target, 0o755);
        let result = mount(Some(*kind), *target, Some(*kind), *flags, Some(*data));
        if let Err(error) = result {
            let text = format!("mounting {kind} on {target}: {error}");
            if *kind == "devpts" {
                return Err(io::Error::other(text));
            }
            warnings.add(text);
        }
    }
    for (path, mode) in RUN {
        warnings.take(&format!("making {path}"), directory(path, mode));
    }
    warnings.take("making /tmp", directory("/tmp", 0o1777));
    let bound = mount(Some("/run/shm"), "/dev/shm", None::<&str>, MsFlags::MS_BIND, None::<&str>);
    warnings.take("binding /run/shm on /dev/shm", bound);
    // Older distributions' programs look for locks there, and some images have nothing at all.
    if fs::symlink_metadata("/var/run").is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        let _ = symlink("/run", "/var/run");
    }
    Ok(())
}

/// Makes a directory with exactly this mode, or leaves what is there as it is, but for a directory that all must be able
/// to write to.
fn directory(path: &str, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let there = fs::metadata(path)?;
            if mode & 0o1000 != 0 && there.is_dir() && there.permissions().mode() & 0o7777 == 0o755 {
                // What an archive without the directory's own entry leaves behind.
                return fs::set_permissions(path, fs::Permissions::from_mode(mode));
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}
