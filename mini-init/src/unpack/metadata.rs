//! Owner, mode, attributes and times.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, futimens, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat},
};

use crate::archive::Entry;

/// What is set when a file is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: (i64, u32),
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether it lies where a container engine stacks layers: overlayfs's marks are those layers' there.
    layers: bool,
}

impl Metadata {
    pub(super) fn of(entry: &Entry) -> Self {
        let Entry { mode, uid, gid, modified, attributes, .. } = entry;
        let bound = undercroft_protocol::command::BOUND;
        Self {
            mode: *mode,
            uid: *uid,
            gid: *gid,
            modified: *modified,
            attributes: attributes.clone(),
            layers: !attributes.is_empty() && bound.iter().any(|path| super::is_below(&entry.name, path)),
        }
    }

    /// Bytes that it takes.
    pub(super) fn length(&self) -> usize {
        self.attributes.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
            + size_of::<Self>()
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn time(&self) -> TimeSpec {
        TimeSpec::new(self.modified.0, self.modified.1.into())
    }

    /// To an open file or directory. The order matters: a change of owner takes set-id bits and capabilities away, and a
    /// change of anything but times changes no times.
    pub(super) fn to_file(&self, file: &File, warn: &mut dyn FnMut(String)) -> io::Result<()> {
        let (uid, gid) = self.owner();
        without_privilege(fchown(file, uid, gid), "its owner", warn)?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.set_attributes(&path, warn)?;
        Ok(futimens(file, &self.time(), &self.time())?)
    }

    /// To a name in a directory, which is not followed if it is a link.
    pub(super) fn to_name(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        link: bool,
        warn: &mut dyn FnMut(String),
    ) -> io::Result<()> {
        let (uid, gid) = self.owner();
        let changed = fchownat(directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        without_privilege(changed, "its owner", warn)?;
        if !link {
            // Made by us a moment ago, with nobody else about: it is no link.
            fchmodat(directory, name, Mode::from_bits_truncate(self.mode), FchmodatFlags::FollowSymlink)?;
        }
        if !self.attributes.is_empty() {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let itself = openat(directory, name, flags, Mode::empty())?;
            self.set_attributes(&format!("/proc/self/fd/{}", itself.as_raw_fd()), warn)?;
        }
        Ok(utimensat(directory, name, &self.time(), &self.time(), UtimensatFlags::NoFollowSymlink)?)
    }

    /// Through /proc, which leads to the very file that the descriptor holds, be it a link or a device.
    fn set_attributes(&self, path: &str, warn: &mut dyn FnMut(String)) -> io::Result<()> {
        let path = CString::new(path)?;
        for (name, value) in &self.attributes {
            let shown = crate::archive::printable(name);
            // Another system's overlay: here it would say something about a file that is only a file.
            if name.starts_with(b"trusted.overlay.") && !self.layers {
                warn(format!("the attribute {shown} is left out"));
                continue;
            }
            let Ok(name) = CString::new(name.as_slice()) else {
                warn(format!("an attribute's name has a zero byte in it, {shown}; left out"));
                continue;
            };
            // SAFETY: both strings and the value live through the call, and the value's own length is passed.
            let result = unsafe {
                libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
            };
            match Errno::result(result) {
                Ok(_) => {}
                Err(error @ (Errno::ENOSPC | Errno::EDQUOT)) => return Err(error.into()),
                // A file system or a kernel without it, or an attribute that this kind of file cannot have.
                Err(error) => warn(format!("the attribute {shown} cannot be set: {}", error.desc())),
            }
        }
        Ok(())
    }
}

/// What only root can do is a warning for others, as in tests.
fn without_privilege(result: Result<(), Errno>, what: &str, warn: &mut dyn FnMut(String)) -> io::Result<()> {
    match result {
        Err(Errno::EPERM) => {
            warn(format!("{what} cannot be set without privilege"));
            Ok(())
        }
        other => Ok(other?),
    }
}
