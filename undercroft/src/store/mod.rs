//! Where distributions are kept: a folder, whole at any moment, without a database.
//!
//! ```text
//! store.json                        the version of all this
//! lock                              who changes something holds it (flock), for moments
//! bases/DIGEST.ext4                 read-only; an import, by the SHA-256 of the archive file
//! distributions/NAME/record.json    the name as it was typed, its base, when it was made
//! distributions/NAME/disk.ext4      its own disk, unless the record says that it is elsewhere
//! default.json                      the distribution that is meant when none is named
//! partial/…                         what is being made or removed
//! digests/…                         files that were hashed, to spare doing it again
//! ```
//!
//! What has its place in `bases` or `distributions` is whole. It is made in `partial` and moved by one rename(2), and
//! moved back by one before it is removed; files and folders are synced before it counts. Whatever a killed process left is
//! therefore in `partial`, where nobody has a lock on it, and the next [`Store::open`] clears it away. The same goes for a
//! base that no record names. Nothing is counted: a base's users are the records that name it. A change that one rename(2)
//! cannot make, because a disk is elsewhere or a folder's name is in its record, is written down first ([`intent`]).
//!
//! Locks are on the files themselves: who makes one, or uses a distribution's disk, is alone with it; a base's users share.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

mod adopt;
mod attach;
mod base;
mod change;
mod default;
mod distribution;
mod error;
mod fault;
mod intent;
mod lock;
mod name;
mod partial;
mod record;
mod settings;

pub use attach::{Attached, BOUND, Disks, Plugs};
pub use base::{Base, Unpack};
pub use distribution::{Held, Listed};
pub use error::StoreError;
pub use name::check_name;
pub use record::{Content, Record};
pub use settings::{Settings, Setup};

const BASES: &str = "bases";
const DISTRIBUTIONS: &str = "distributions";
const PARTIAL: &str = "partial";
const DIGESTS: &str = "digests";
const DISK: &str = "disk.ext4";
const RECORD: &str = "record.json";
/// The version of a store's folders and files as a whole.
const VERSION: u64 = 1;

/// A store. Cheap to open; any number of processes and threads may have the same one open.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    cleared: Vec<Cleared>,
}

/// Something that was not whole, or that nobody needed any more, and is gone now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleared {
    /// What it was.
    pub what: Leftover,
    /// Its file's or folder's name.
    pub name: String,
}

/// What can be cleared away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// A base whose import did not come to its end.
    Import,
    /// A distribution that was being made.
    New,
    /// A distribution that was being removed.
    Removed,
    /// A base without a distribution.
    Base,
    /// A change of a distribution, which has been finished or undone.
    Change,
}

impl fmt::Display for Cleared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Leftover::Import => "what an import left that did not come to its end",
            Leftover::New => "what was there of a distribution that was being made",
            Leftover::Removed => "the rest of a distribution that was being removed",
            Leftover::Base => "a base that no distribution uses",
            Leftover::Change => "what was left of a change of a distribution",
        };
        write!(f, "cleared away {what} ({})", self.name)
    }
}

/// Held by who changes something in a store.
struct Guard {
    _lock: File,
}

impl Store {
    /// Opens a store, makes it if there is none, and clears away what killed processes left there.
    pub fn open(directory: &Path) -> Result<Self> {
        let mut store = Self { directory: directory.into(), cleared: Vec::new() };
        for folder in ["", BASES, DISTRIBUTIONS, PARTIAL, DIGESTS] {
            let path = store.directory.join(folder);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| Error::File { what: "create", path, source })?;
        }
        let guard = store.lock()?;
        let version = store.directory.join("store.json");
        if version.exists() {
            record::read_version::<record::Version>(&version, VERSION)?;
        } else {
            let partial = partial::Partial::new(&guard, store.partial("store.json"))?;
            record::write(&partial.path, &record::Version { version: VERSION })?;
            partial.move_to(&version)?;
        }
        store.cleared = store.clear(&guard)?;
        Ok(store)
    }

    /// What [`open`](Self::open) cleared away.
    pub fn cleared(&self) -> &[Cleared] {
        &self.cleared
    }

    /// A memory for [`KnownFile::read`](crate::KnownFile::read).
    pub fn digests(&self) -> PathBuf {
        Self::digests_in(&self.directory)
    }

    /// The same, of a store that need not be open, nor be there.
    pub fn digests_in(directory: &Path) -> PathBuf {
        directory.join(DIGESTS)
    }

    /// Waits for its turn to change something.
    fn lock(&self) -> Result<Guard> {
        let path = self.directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| Error::File { what: "open", path: path.clone(), source })?;
        lock::exclusive(&file, &path)?;
        Ok(Guard { _lock: file })
    }

    fn partial(&self, name: &str) -> PathBuf {
        self.directory.join(PARTIAL).join(name)
    }

    fn clear(&self, guard: &Guard) -> Result<Vec<Cleared>> {
        let settled = self.settle_left(guard, None)?;
        let mut cleared: Vec<Cleared> =
            settled.into_iter().map(|name| Cleared { what: Leftover::Change, name }).collect();
        for name in names(&self.directory.join(PARTIAL))? {
            let path = self.partial(&name);
            if name.starts_with(intent::PREFIX) || partial::is_used(&path)? {
                continue;
            }
            let what = match name.split('-').next() {
                Some("new") => Leftover::New,
                Some("gone") => Leftover::Removed,
                Some("record" | "note" | "default.json" | "store.json") => Leftover::Change,
                _ => Leftover::Import,
            };
            match what {
                Leftover::Removed => self.remove_gone(&path)?,
                _ => partial::remove(&path)?,
            }
            cleared.push(Cleared { what, name });
        }
        let bases = self.remove_unused_bases(guard)?;
        let name = |base: &Base| base.digest().to_string();
        cleared.extend(bases.iter().map(|base| Cleared { what: Leftover::Base, name: name(base) }));
        Ok(cleared)
    }
}

/// A file's length, in bytes.
fn file_size(file: &File) -> Result<u64> {
    let about = file.metadata();
    Ok(about.map_err(|source| Error::System { what: "look at a disk", source })?.len())
}

/// The names in a folder, sorted. What is not UTF-8 is not ours.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::File { what: "list", path: folder.into(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Makes what was created, renamed or removed in a folder last.
fn sync_folder(folder: &Path) -> Result<()> {
    fault::point();
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::File { what: "sync", path: folder.into(), source })
}

/// Whether an error says that there is no such file.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(OsStr::new(".")))
}

#[cfg(test)]
mod tests;
