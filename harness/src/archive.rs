//! Root file system archives for tests: a busybox one that is a few megabytes, and whatever a test wants to put in.

use std::{io, path::Path};

use tar::{Builder, EntryType, Header};

/// A tar archive in the making. Names are relative to the root, without a leading slash.
pub struct Archive {
    tar: Builder<Vec<u8>>,
}

/// What an entry has besides its kind and its content.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    /// Permission bits, with set-user-id and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: 1_700_000_000 }
    }
}

impl Meta {
    /// Mode, and root's.
    pub fn mode(mode: u32) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Owned by somebody else.
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }
}

fn header(kind: EntryType, size: u64, meta: Meta) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(meta.mode);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    header.set_mtime(meta.mtime);
    header
}

impl Default for Archive {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }
}

impl Archive {
    /// The smallest distribution that runs: busybox with its applets, root and one user, a name.
    ///
    /// # Errors
    /// `/bin/busybox` (Debian's busybox-static) cannot be read.
    pub fn busybox(name: &str) -> io::Result<Self> {
        let busybox = std::fs::read("/bin/busybox")?;
        let applets = duct::cmd!("/bin/busybox", "--list").read()?;
        let mut archive = Self::default();
        for dir in
            ["bin", "etc", "root", "home", "proc", "sys", "dev", "run", "tmp", "usr", "usr/bin", "var", "mnt"]
        {
            let mode = if dir == "tmp" { 0o1777 } else { 0o755 };
            archive = archive.directory(dir, Meta::mode(mode))?;
        }
        archive = archive.file("bin/busybox", &busybox, Meta::default())?;
        for applet in applets.lines().filter(|a| !a.is_empty() && *a != "busybox" && !a.contains('/')) {
            archive = archive.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        archive = archive.symlink("usr/bin/env", "/bin/busybox")?;
        archive
            .directory("home/user", Meta::mode(0o755).owner(1000, 1000))?
            .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")?
            .text("etc/group", "root:x:0:\ntty:x:5:\nuser:x:1000:\nextra:x:2000:user\n")?
            .text("etc/os-release", &format!("ID=busybox\nNAME=busybox\nPRETTY_NAME=\"busybox, {name}\"\n"))
    }

    /// A directory.
    pub fn directory(self, name: &str, meta: Meta) -> io::Result<Self> {
        self.entry(name, EntryType::Directory, None, &[], meta)
    }

    /// A regular file.
    pub fn file(self, name: &str, content: &[u8], meta: Meta) -> io::Result<Self> {
        self.entry(name, EntryType::Regular, None, content, meta)
    }

    /// A regular file, 0644.
    pub fn text(self, name: &str, content: &str) -> io::Result<Self> {
        self.file(name, content.as_bytes(), Meta::mode(0o644))
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> io::Result<Self> {
        self.entry(name, EntryType::Symlink, Some(target), &[], Meta::mode(0o777))
    }

    /// A hard link.
    pub fn hard_link(self, name: &str, target: &str) -> io::Result<Self> {
        self.entry(name, EntryType::Link, Some(target), &[], Meta::default())
    }

    /// A character or block device, or a fifo.
    pub fn special(
        mut self,
        name: &str,
        kind: EntryType,
        device: (u32, u32),
        meta: Meta,
    ) -> io::Result<Self> {
        let mut header = header(kind, 0, meta);
        header.set_device_major(device.0)?;
        header.set_device_minor(device.1)?;
        self.tar.append_data(&mut header, name, io::empty())?;
        Ok(self)
    }

    /// The pax records (`SCHILY.xattr.user.x`, `mtime`, …) of the entry that is added next.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> io::Result<Self> {
        self.tar.append_pax_extensions(records.iter().copied())?;
        Ok(self)
    }

    /// An entry whose name and link target are written as they are, however bad.
    pub fn raw(mut self, name: &str, kind: EntryType, target: &str, content: &[u8]) -> io::Result<Self> {
        let mut header = header(kind, content.len() as u64, Meta::default());
        let gnu = header.as_gnu_mut().ok_or(io::ErrorKind::InvalidInput)?;
        put(&mut gnu.name, name)?;
        put(&mut gnu.linkname, target)?;
        header.set_cksum();
        self.tar.append(&header, content)?;
        Ok(self)
    }

    fn entry(
        mut self,
        name: &str,
        kind: EntryType,
        target: Option<&str>,
        content: &[u8],
        meta: Meta,
    ) -> io::Result<Self> {
        let mut header = header(kind, content.len() as u64, meta);
        match target {
            Some(target) => self.tar.append_link(&mut header, name, target)?,
            None => self.tar.append_data(&mut header, name, content)?,
        }
        Ok(self)
    }

    /// The whole archive, with its end marker.
    pub fn bytes(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()
    }

    /// The whole archive in a file.
    pub fn write(self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.bytes()?)
    }
}

fn put(field: &mut [u8; 100], text: &str) -> io::Result<()> {
    let part = field.get_mut(..text.len()).ok_or(io::ErrorKind::InvalidInput)?;
    part.copy_from_slice(text.as_bytes());
    Ok(())
}
