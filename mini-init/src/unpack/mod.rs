//! Writing what an archive says, below one directory and nowhere else.
//!
//! Later entries take the place of earlier ones with the same name, as tar has it; a directory stays if a directory comes.
//! What lies between a name's parts is looked up by the kernel with the root as its bound ([`tree`]), so a link in the
//! archive leads where it would lead inside the distribution, and never out of it. Times and modes of directories are set
//! at the end ([`metadata`]): what is put into a directory changes its time, and may need its write permission.

mod acl;
mod metadata;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat},
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use crate::archive::{Archive, ArchiveError, Entry, Kind, printable};
pub(crate) use acl::text as acl_text;
use metadata::Metadata;
use tree::{Name, Tree};

/// Warnings that are kept; a damaged or foreign archive has one for each entry.
const MOST_WARNINGS: usize = 100;
/// Bytes that are read and written at a time.
const BUFFER: usize = 256 << 10;
/// Bytes of directories' names and attributes that may be held until the end.
const MOST_HELD: usize = 256 << 20;

/// Why an archive was not unpacked to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The disk is full.
    #[error("no space is left on the disk, at {entry} after {offset} bytes of archive: make the disk larger")]
    NoSpace {
        /// The entry's name.
        entry: String,
        /// Bytes from the archive's start.
        offset: u64,
    },
    /// The kernel refused something.
    #[error("{entry}: {what}: {source}")]
    System {
        /// The entry's name.
        entry: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Directories enough to fill the memory.
    #[error("the archive holds more directories and attributes than {MOST_HELD} bytes can hold")]
    TooMuch,
}

/// How far it is, or how far it got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// What could not be taken as it was.
    pub(crate) warnings: Vec<String>,
}

impl Account {
    fn warn(&mut self, name: &[u8], text: &str) {
        if self.warnings.len() < MOST_WARNINGS {
            self.warnings.push(format!("{}: {text}", printable(name)));
        }
    }
}

/// Unpacks an archive below a directory. `progress` is called after each piece with the account and the bytes of archive
/// that were read.
pub(crate) fn unpack<R: Read>(
    stream: R,
    root: &Path,
    mut progress: impl FnMut(&Account, u64),
) -> Result<Account, UnpackError> {
    let open = |source| UnpackError::System { entry: root.display().to_string(), what: "opening it", source };
    let mut unpacker = Unpacker {
        tree: Tree::open(root).map_err(open)?,
        archive: Archive::new(stream),
        account: Account::default(),
        directories: Vec::new(),
        held: 0,
        buffer: vec![0; BUFFER],
    };
    while let Some(mut entry) = unpacker.archive.next()? {
        unpacker.account.entries += 1;
        unpacker.lists_to_attributes(&mut entry);
        unpacker.entry(&entry, &mut progress)?;
        progress(&unpacker.account, unpacker.archive.offset());
    }
    unpacker.finish()
}

struct Unpacker<R> {
    tree: Tree,
    archive: Archive<R>,
    account: Account,
    /// Directories, in the archive's order, with what is to be set at the end.
    directories: Vec<(Name, Metadata)>,
    held: usize,
    buffer: Vec<u8>,
}

impl<R: Read> Unpacker<R> {
    fn entry(&mut self, entry: &Entry, progress: &mut impl FnMut(&Account, u64)) -> Result<(), UnpackError> {
        let name = match Name::check(&entry.name) {
            Ok(name) => name,
            Err(error) => {
                self.account.warn(&entry.name, &format!("{error}; the entry is left out"));
                return Ok(());
            }
        };
        match entry.kind {
            Kind::File => self.file(entry, &name, progress),
            Kind::Directory => self.directory(entry, name),
            Kind::HardLink => self.hard_link(entry, &name),
            Kind::SymbolicLink => self.symbolic_link(entry, &name),
            Kind::CharacterDevice => self.node(entry, &name, SFlag::S_IFCHR),
            Kind::BlockDevice => self.node(entry, &name, SFlag::S_IFBLK),
            Kind::Fifo => self.node(entry, &name, SFlag::S_IFIFO),
            Kind::Label => Ok(()),
            _ => {
                self.account
                    .warn(&entry.name, "an entry of a kind that no file has (a socket, perhaps) is left out");
                Ok(())
            }
        }
    }

    /// Access control lists are attributes, whose names' numbers are those of the root's own files.
    fn lists_to_attributes(&mut self, entry: &mut Entry) {
        for (default, text) in std::mem::take(&mut entry.lists) {
            let (tree, name) = (&self.tree, if default { "default" } else { "access" });
            let mut id_of = |kind, name: &str| {
                let table = if kind == acl::Kind::User { "etc/passwd" } else { "etc/group" };
                acl::number_in(&tree.small_file(table), name)
            };
            match acl::value(&text, &mut id_of) {
                Ok(value) => entry.attributes.push((format!("system.posix_acl_{name}").into_bytes(), value)),
                Err(reason) => {
                    self.account.warn(&entry.name, &format!("its access control list is left out: {reason}"))
                }
            }
        }
    }

    /// Turns an error into one that says at which entry, and tells a full disk from others.
    fn failed(&self, entry: &Entry, what: &'static str) -> impl FnOnce(io::Error) -> UnpackError + use<R> {
        let (name, offset) = (printable(&entry.name), self.archive.offset());
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => UnpackError::NoSpace { entry: name, offset },
            _ => UnpackError::System { entry: name, what, source },
        }
    }

    /// The directory that an entry is to be put in, and its last name there; `None` with a warning for what cannot be.
    fn place<'a>(
        &mut self,
        entry: &Entry,
        name: &'a Name,
    ) -> Result<Option<(OwnedFd, &'a [u8])>, UnpackError> {
        let Some((parent, last)) = name.split() else {
            self.account.warn(&entry.name, "the root itself can only be a directory; the entry is left out");
            return Ok(None);
        };
        match self.tree.parent(parent) {
            Ok(directory) => Ok(Some((directory, last))),
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::EEXIST | Errno::ENAMETOOLONG) => {
                self.account.warn(&entry.name, "what it is to lie in is no directory; the entry is left out");
                Ok(None)
            }
            Err(error) => Err(self.failed(entry, "making the directories that it lies in")(error.into())),
        }
    }

    /// Makes something new at a place; if something is there, takes that away first.
    fn make<T>(
        &mut self,
        entry: &Entry,
        directory: &OwnedFd,
        last: &[u8],
        what: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<Option<T>, UnpackError> {
        match make() {
            Ok(made) => return Ok(Some(made)),
            Err(Errno::EEXIST) => {}
            Err(Errno::ENAMETOOLONG) => {
                self.account
                    .warn(&entry.name, "its name is too long for a file system; the entry is left out");
                return Ok(None);
            }
            Err(error) => return Err(self.failed(entry, what)(error.into())),
        }
        self.tree.forget();
        let removed = match unlinkat(directory, last, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => unlinkat(directory, last, UnlinkatFlags::RemoveDir),
            other => other,
        };
        match removed {
            Ok(()) => make().map(Some).map_err(|error| self.failed(entry, what)(error.into())),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.account.warn(
                    &entry.name,
                    "a directory that is not empty is there already; the entry is left out",
                );
                Ok(None)
            }
            Err(error) => Err(self.failed(entry, "taking away what was there before")(error.into())),
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        name: &Name,
        progress: &mut impl FnMut(&Account, u64),
    ) -> Result<(), UnpackError> {
        let Some((directory, last)) = self.place(entry, name)? else { return Ok(()) };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&directory, last, flags, Mode::from_bits_truncate(0o600)).map(File::from);
        let Some(mut file) = self.make(entry, &directory, last, "making the file", open)? else {
            return Ok(());
        };
        match &entry.map {
            None => self.content(entry, &mut file, entry.size, progress)?,
            Some(map) => {
                for &(offset, length) in map {
                    self.content_at(entry, &file, offset, length, progress)?;
                }
                file.set_len(entry.size).map_err(self.failed(entry, "making a file with holes"))?;
            }
        }
        self.dress(entry, |metadata, warn| metadata.to_file(&file, warn))
    }

    /// Writes the content one piece after another.
    fn content(
        &mut self,
        entry: &Entry,
        file: &mut File,
        mut left: u64,
        progress: &mut impl FnMut(&Account, u64),
    ) -> Result<(), UnpackError> {
        while left > 0 {
            let wanted = left.min(BUFFER as u64) as usize;
            let length = self.archive.content(&mut self.buffer[..wanted])?;
            file.write_all(&self.buffer[..length]).map_err(self.failed(entry, "writing it"))?;
            left -= length as u64;
            self.account.bytes += length as u64;
            progress(&self.account, self.archive.offset());
        }
        Ok(())
    }

    /// Writes one piece of a file with holes.
    fn content_at(
        &mut self,
        entry: &Entry,
        file: &File,
        mut offset: u64,
        mut left: u64,
        progress: &mut impl FnMut(&Account, u64),
    ) -> Result<(), UnpackError> {
        while left > 0 {
            let wanted = left.min(BUFFER as u64) as usize;
            let length = self.archive.content(&mut self.buffer[..wanted])?;
            file.write_all_at(&self.buffer[..length], offset).map_err(self.failed(entry, "writing it"))?;
            (offset, left) = (offset + length as u64, left - length as u64);
            self.account.bytes += length as u64;
            progress(&self.account, self.archive.offset());
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, name: Name) -> Result<(), UnpackError> {
        if name.split().is_some() {
            let Some((directory, last)) = self.place(entry, &name)? else { return Ok(()) };
            let is_directory = nix::sys::stat::fstatat(&directory, last, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits());
            // Not what the archive says: it must be possible to put something into it, and nobody else is to yet.
            let make = || mkdirat(&directory, last, Mode::S_IRWXU);
            if !is_directory && self.make(entry, &directory, last, "making the directory", make)?.is_none() {
                return Ok(());
            }
        }
        let metadata = Metadata::of(entry);
        self.held += name.length() + metadata.length();
        if self.held > MOST_HELD {
            return Err(UnpackError::TooMuch);
        }
        self.directories.push((name, metadata));
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, name: &Name) -> Result<(), UnpackError> {
        let target = match Name::check(&entry.target) {
            Ok(target) => target,
            Err(error) => {
                self.account
                    .warn(&entry.name, &format!("the file that it is another name of: {error}; left out"));
                return Ok(());
            }
        };
        let Some((target_parent, target_last)) = target.split() else {
            self.account.warn(&entry.name, "it is another name of the root; the entry is left out");
            return Ok(());
        };
        if target == *name {
            return Ok(());
        }
        let found = self.tree.existing(target_parent);
        let Some((directory, last)) = self.place(entry, name)? else { return Ok(()) };
        let there = found.as_ref().is_ok_and(|from| {
            nix::sys::stat::fstatat(from, target_last, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits())
        });
        let (Ok(from), true) = (found, there) else {
            let target = printable(&entry.target);
            self.account
                .warn(&entry.name, &format!("{target}, which it is another name of, is not there; left out"));
            return Ok(());
        };
        let link = || linkat(&from, target_last, &directory, last, AtFlags::empty());
        match self.make(entry, &directory, last, "linking it", link) {
            // So many names that a further one is refused: a limit of the file system's.
            Err(UnpackError::System { source, .. }) if source.raw_os_error() == Some(libc::EMLINK) => {
                self.account.warn(&entry.name, "the file has as many names as it can have; left out");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn symbolic_link(&mut self, entry: &Entry, name: &Name) -> Result<(), UnpackError> {
        if entry.target.is_empty()
            || entry.target.contains(&0)
            || entry.target.len() >= libc::PATH_MAX as usize
        {
            self.account.warn(&entry.name, "what it points to is no path; the entry is left out");
            return Ok(());
        }
        let Some((directory, last)) = self.place(entry, name)? else { return Ok(()) };
        let link = || symlinkat(entry.target.as_slice(), &directory, last);
        if self.make(entry, &directory, last, "making the link", link)?.is_none() {
            return Ok(());
        }
        self.dress_path(entry, &directory, last, true)
    }

    fn node(&mut self, entry: &Entry, name: &Name, kind: SFlag) -> Result<(), UnpackError> {
        let Some((directory, last)) = self.place(entry, name)? else { return Ok(()) };
        let device = makedev(entry.device.0.into(), entry.device.1.into());
        let device = if kind == SFlag::S_IFIFO { 0 } else { device };
        let make = || mknodat(&directory, last, kind, Mode::from_bits_truncate(0o600), device);
        match self.make(entry, &directory, last, "making the device", make) {
            Ok(None) => return Ok(()),
            Ok(Some(())) => {}
            // Only without privilege, as in tests.
            Err(UnpackError::System { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                self.account.warn(&entry.name, "devices cannot be made here; the entry is left out");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.dress_path(entry, &directory, last, false)
    }

    /// Sets owner, mode, attributes and times of what was just made.
    fn dress(
        &mut self,
        entry: &Entry,
        set: impl FnOnce(&Metadata, &mut dyn FnMut(String)) -> io::Result<()>,
    ) -> Result<(), UnpackError> {
        let account = &mut self.account;
        let result = set(&Metadata::of(entry), &mut |text| account.warn(&entry.name, &text));
        result.map_err(self.failed(entry, "setting its owner, mode, attributes and times"))
    }

    fn dress_path(
        &mut self,
        entry: &Entry,
        directory: &OwnedFd,
        last: &[u8],
        link: bool,
    ) -> Result<(), UnpackError> {
        self.dress(entry, |metadata, warn| metadata.to_name(directory, last, link, warn))
    }

    /// Sets what was held for the directories: the deepest first, so that a parent without permissions hinders nobody.
    fn finish(mut self) -> Result<Account, UnpackError> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by(|(a, _), (b, _)| a.cmp(b));
        // Of several entries for one directory the last counts; the sort is stable.
        directories.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(&mut later.1, &mut kept.1);
            }
            same
        });
        for (name, metadata) in directories.into_iter().rev() {
            // Replaced since by something else, or behind a link: not this entry's any more.
            let Ok(directory) = self.tree.own_directory(&name) else { continue };
            let account = &mut self.account;
            let result = metadata.to_file(&directory, &mut |text| account.warn(name.bytes(), &text));
            result.map_err(|source| match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => {
                    UnpackError::NoSpace { entry: printable(name.bytes()), offset: self.archive.offset() }
                }
                _ => UnpackError::System {
                    entry: printable(name.bytes()),
                    what: "setting its owner and mode",
                    source,
                },
            })?;
        }
        Ok(self.account)
    }
}

/// Whether an archive's name (`./var/lib/x` and the like) is that of an absolute path, or of something below it.
pub(crate) fn is_below(name: &[u8], path: &str) -> bool {
    let Ok(name) = Name::check(name) else { return false };
    let rest = name.bytes().strip_prefix(path.trim_start_matches('/').as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Flushes everything that was unpacked, so that an error that the disk has kept back is told now.
pub(crate) fn flush(root: &Path) -> io::Result<()> {
    let root =
        openat(AT_FDCWD, root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(nix::unistd::syncfs(root.as_fd())?)
}
