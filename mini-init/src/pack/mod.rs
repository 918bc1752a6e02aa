//! Packing a directory tree into a tar archive, so that packing what was unpacked gives the same bytes again.
//!
//! Names come sorted, depth first; of a file with several names the first is the file and the others are links to it; the
//! blocks of a file that are holes are left out ([`content`]); and nothing of when and where it is packed is in the
//! archive: owners are numbers, and of the times there is only the last modification. What a header's fields cannot hold
//! stands in pax records before it ([`header`]), attributes and access control lists too ([`attributes`]).
//!
//! The tree belongs to nobody else meanwhile. Memory is bounded: what is held is a directory's names for each level of the
//! path at hand, and the first names of files with several.

mod attributes;
mod content;
mod header;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    io::{self, Write},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat},
    io::Errno,
};

use crate::archive::printable;
use attributes::Attributes;
use header::Header;

/// Warnings that are kept.
const MOST_WARNINGS: usize = 100;
/// Bytes of names that are held: a directory's that is being packed, and files' with further names.
const MOST_HELD: usize = 128 << 20;
/// Bytes of a name from which on no file system call takes it, nor our own importer.
const LONGEST_NAME: usize = libc::PATH_MAX as usize;
/// What an importer takes away again if it is empty, and e2fsck makes.
const LOST_FOUND: &[u8] = b"./lost+found";

/// Why a tree was not packed to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The archive cannot be written.
    #[error("the host stopped taking the archive: {0}")]
    Stream(io::Error),
    /// Something of the tree cannot be read.
    #[error("{entry}: {what}: {source}")]
    Read {
        /// Its name.
        entry: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Names enough to fill the memory.
    #[error("{entry}: more names in its directories than {MOST_HELD} bytes can hold")]
    TooMuch {
        /// Where it was noticed.
        entry: String,
    },
}

/// How far it got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes of archive.
    pub(crate) bytes: u64,
    /// What could not be packed as it is.
    pub(crate) warnings: Vec<String>,
}

/// Packs a directory and what is below it, under the name `at` (`.` for a root). Another directory takes the place of each of
/// those that are named (by absolute path), if it is one. `progress` is called after each piece with the number of entries.
pub(crate) fn pack(
    root: &OwnedFd,
    at: &str,
    bound: Vec<(String, OwnedFd)>,
    to: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Account, PackError> {
    let bound = bound.into_iter().map(|(path, tree)| ([b".".as_slice(), path.as_bytes()].concat(), tree));
    let mut packer = Packer {
        to,
        account: Account::default(),
        path: at.as_bytes().to_vec(),
        levels: Vec::new(),
        held: 0,
        first_names: HashMap::new(),
        bound: bound.collect(),
        buffer: vec![0; content::BUFFER],
        progress,
    };
    let root = packer.open(root, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    packer.directory(root)?;
    while let Some(level) = packer.levels.last_mut() {
        match level.names.next() {
            Some(name) => packer.name(&name)?,
            None => packer.leave(),
        }
    }
    packer.write(&[0; 2 * header::BLOCK])?;
    Ok(packer.account)
}

/// A directory whose content is being packed.
struct Level {
    directory: OwnedFd,
    /// Names that are still to come, sorted.
    names: std::vec::IntoIter<CString>,
    /// Bytes of the path that lead to it, and of memory that its names take.
    path: usize,
    held: usize,
}

struct Packer<'a, W> {
    to: &'a mut W,
    account: Account,
    /// The name of the entry at hand, `./etc/passwd`.
    path: Vec<u8>,
    levels: Vec<Level>,
    held: usize,
    /// Of files with further names: the first name, and how many of the others are still to come.
    first_names: HashMap<(u64, u64), (Vec<u8>, u64)>,
    bound: BTreeMap<Vec<u8>, OwnedFd>,
    buffer: Vec<u8>,
    progress: &'a mut dyn FnMut(u64),
}

impl<W: Write> Packer<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.to.write_all(bytes).map_err(PackError::Stream)?;
        self.account.bytes += bytes.len() as u64;
        Ok(())
    }

    fn failed<E: Into<io::Error>>(&self, what: &'static str) -> impl FnOnce(E) -> PackError + use<W, E> {
        let entry = printable(&self.path);
        move |source| PackError::Read { entry, what, source: source.into() }
    }

    fn warn(&mut self, text: &str) {
        if self.account.warnings.len() < MOST_WARNINGS {
            self.account.warnings.push(format!("{}: {text}", printable(&self.path)));
        }
    }

    fn hold(&mut self, bytes: usize) -> Result<(), PackError> {
        self.held += bytes;
        let within = self.held <= MOST_HELD;
        if within { Ok(()) } else { Err(PackError::TooMuch { entry: printable(&self.path) }) }
    }

    fn open(&self, directory: &OwnedFd, name: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd, PackError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(directory, name, flags, Mode::empty()).map_err(self.failed("opening it"))
    }

    /// One name in the directory at hand.
    fn name(&mut self, name: &CString) -> Result<(), PackError> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        self.path.truncate(level.path);
        self.path.push(b'/');
        self.path.extend_from_slice(name.as_bytes());
        if self.path.len() + 1 >= LONGEST_NAME {
            self.warn("its name is longer than an archive's can be; left out with all that is in it");
            return Ok(());
        }
        let about = statat(&level.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let about = about.map_err(self.failed("looking at it"))?;
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory => {
                let directory = match self.bound.remove(&self.path) {
                    Some(other) => self.open(&other, c".", OFlags::RDONLY | OFlags::DIRECTORY)?,
                    None => self.open(&level.directory, name, OFlags::RDONLY | OFlags::DIRECTORY)?,
                };
                self.directory(directory)
            }
            FileType::Socket => {
                self.warn("a socket, which no archive can hold; left out");
                Ok(())
            }
            kind => self.file(kind, name, &about),
        }
    }

    /// A directory's entry, and its names, which come next.
    fn directory(&mut self, directory: OwnedFd) -> Result<(), PackError> {
        let about = fstat(&directory).map_err(self.failed("looking at it"))?;
        let mut names = Vec::new();
        let mut held = 0;
        for found in Dir::read_from(&directory).map_err(self.failed("reading it"))? {
            let name = found.map_err(self.failed("reading it"))?.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let bytes = name.as_bytes().len() + size_of::<CString>();
            held += bytes;
            self.hold(bytes)?;
            names.push(name);
        }
        names.sort_unstable();
        if self.path == LOST_FOUND && names.is_empty() {
            return Ok(());
        }
        let attributes = self.attributes(&directory)?;
        let mut entry = self.path.clone();
        entry.push(b'/');
        let head = Header::of(&entry, b'5', &about).with(attributes);
        self.entry(&head)?;
        self.levels.push(Level { directory, names: names.into_iter(), path: self.path.len(), held });
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(level) = self.levels.pop() {
            self.held -= level.held;
        }
    }

    /// Anything but a directory.
    fn file(&mut self, kind: FileType, name: &CString, about: &Stat) -> Result<(), PackError> {
        if about.st_nlink > 1 {
            if let Some(first) = self.known(about) {
                let path = self.path.clone();
                return self.entry(&Header { target: &first, ..Header::of(&path, b'1', about) });
            }
            self.hold(self.path.len() + 64)?;
            let key = (about.st_dev, about.st_ino);
            self.first_names.insert(key, (self.path.clone(), about.st_nlink - 1));
        }
        let Some(level) = self.levels.last() else { return Ok(()) };
        let flags = if kind == FileType::RegularFile { OFlags::RDONLY } else { OFlags::PATH };
        let file = self.open(&level.directory, name, flags)?;
        let target = match kind {
            FileType::Symlink => {
                readlinkat(&level.directory, name, Vec::new()).map_err(self.failed("reading the link"))?
            }
            _ => CString::default(),
        };
        let attributes = self.attributes(&file)?;
        let path = self.path.clone();
        let letter = match kind {
            FileType::Symlink => b'2',
            FileType::CharacterDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Fifo => b'6',
            _ => return self.content(&file, &Header::of(&path, b'0', about).with(attributes)),
        };
        self.entry(&Header { target: target.as_bytes(), ..Header::of(&path, letter, about) }.with(attributes))
    }

    /// The first name of a file that has been packed, which is forgotten with the last of its names.
    fn known(&mut self, about: &Stat) -> Option<Vec<u8>> {
        let key = (about.st_dev, about.st_ino);
        let (first, left) = self.first_names.get_mut(&key)?;
        *left -= 1;
        if *left > 0 {
            return Some(first.clone());
        }
        let (first, _) = self.first_names.remove(&key)?;
        self.held -= first.len() + 64;
        Some(first)
    }

    fn attributes(&mut self, file: &OwnedFd) -> Result<Attributes, PackError> {
        let bound = undercroft_protocol::command::BOUND;
        let is_bound = bound.iter().any(|bound| crate::unpack::is_below(&self.path, bound));
        let mut texts = Vec::new();
        let attributes = Attributes::of(file, is_bound, &mut |text| texts.push(text));
        texts.iter().for_each(|text| self.warn(text));
        attributes.map_err(self.failed::<Errno>("reading its attributes"))
    }

    /// An entry without content.
    fn entry(&mut self, head: &Header<'_>) -> Result<(), PackError> {
        let bytes = head.bytes();
        self.write(&bytes)?;
        self.account.entries += 1;
        (self.progress)(self.account.entries);
        Ok(())
    }
}
