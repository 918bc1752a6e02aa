//! Where downloads are kept until they were imported.
//!
//! ```text
//! files/DIGEST-NAME        whole files, by their SHA-256
//! partial/KEY              what is being downloaded, or was cut off
//! partial/KEY.json         from where, and what it should be
//! images/KEY.json          what layers merge into, to spare doing it again
//! scratch/                 names of files that are being written; decompressed layers have none
//! ```
//!
//! Who uses a file has it locked (flock(2)): one that writes it alone, those that read it together. A file without a lock is
//! nobody's, and may go.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{
    error::{Result, SourceError},
    progress::{Phase, Watch},
};
use crate::digest::Digest;

const FOLDERS: [&str; 4] = ["files", "partial", "images", "scratch"];
/// How often one looks whether somebody else has finished with a file.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes that are left free on the file system when a length is known beforehand.
const SPARE: u64 = 16 << 20;

/// A folder of downloads. Any number of processes may use the same one.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

/// A whole file of the cache, which nobody removes as long as this lives.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    lock: File,
}

impl Kept {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless another uses it too.
    pub fn discard(self) {
        if alone(&self.lock) {
            // It is a cache: what stays is found by `Cache::tidy`.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Cache {
    /// Where a user's is: `$XDG_CACHE_HOME/undercroft/downloads`, or in `~/.cache`; `None` without a home.
    pub fn standard_directory() -> Option<PathBuf> {
        let absolute = |path: PathBuf| path.is_absolute().then_some(path);
        let given = std::env::var_os("XDG_CACHE_HOME").and_then(|path| absolute(path.into()));
        let home = || {
            std::env::var_os("HOME").and_then(|path| absolute(path.into())).map(|home| home.join(".cache"))
        };
        given.or_else(home).map(|cache| cache.join("undercroft/downloads"))
    }

    /// Opens it, and makes it if need be, for its owner alone.
    pub fn open(directory: &Path) -> Result<Self> {
        for folder in FOLDERS {
            let path = directory.join(folder);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(SourceError::file("create", path))?;
        }
        Ok(Self { directory: directory.into() })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes what nobody uses and nobody touched for this long; gives the bytes that this freed.
    pub fn tidy(&self, age: Duration) -> Result<u64> {
        let mut freed = 0;
        for folder in FOLDERS {
            let path = self.directory.join(folder);
            for entry in fs::read_dir(&path).map_err(SourceError::file("read", &path))? {
                let Ok(entry) = entry else { continue };
                let Ok(file) = open(&entry.path(), false) else { continue };
                let Ok(about) = file.metadata() else { continue };
                let old = about
                    .modified()
                    .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|found| found >= age));
                if old && alone(&file) {
                    let _ = fs::remove_file(entry.path());
                    freed += about.blocks() * 512;
                }
            }
        }
        Ok(freed)
    }

    /// The place of a whole file.
    fn place(&self, digest: &Digest, name: &str) -> PathBuf {
        self.directory.join("files").join(format!("{digest}-{}", file_name(name)))
    }

    /// A whole file, if it is there. What is in it is to be checked.
    pub(super) fn kept(&self, digest: &Digest, name: &str) -> Option<Kept> {
        let path = self.place(digest, name);
        let lock = open(&path, false).ok()?;
        flock(&lock, FlockOperation::LockShared).ok()?;
        is_at(&lock, &path).then_some(Kept { path, lock })
    }

    /// Gives a file that is whole its place. The file's lock goes over to the value.
    pub(super) fn keep(&self, from: &Path, lock: File, digest: &Digest, name: &str) -> Result<Kept> {
        // Somebody who uses the same file has looked whether it is whole, and is not to lose it; without anybody, who knows.
        let used = |kept: &Kept| {
            let used = !alone(&kept.lock);
            // What failed has taken the shared lock away.
            used && flock(&kept.lock, FlockOperation::LockShared).is_ok() && is_at(&kept.lock, &kept.path)
        };
        if let Some(kept) = self.kept(digest, name).filter(used) {
            let _ = fs::remove_file(from);
            return Ok(kept);
        }
        let path = self.place(digest, name);
        fs::rename(from, &path).map_err(SourceError::file("move", from))?;
        // From the writer's to a reader's: in between it is nobody's for a moment, and then it is missing with an error.
        flock(&lock, FlockOperation::LockShared).map_err(|e| SourceError::file("lock", &path)(e.into()))?;
        Ok(Kept { path, lock })
    }

    /// Opens a partial file for writing, alone; waits for whoever has it.
    pub(super) fn partial(&self, key: &str, what: &str, watch: &mut Watch<'_>) -> Result<(PathBuf, File)> {
        let path = self.directory.join("partial").join(key);
        loop {
            let file = open(&path, true).map_err(SourceError::file("create", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever had it may have moved or removed it.
                Ok(()) if is_at(&file, &path) => return Ok((path, file)),
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    watch.step(Phase::Downloading, &format!("{what} (by another command)"), 0, None)?;
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(SourceError::file("lock", path)(error.into())),
            }
        }
    }

    /// A new file with a name of its own, locked.
    pub(super) fn scratch(&self, name: &str) -> Result<(PathBuf, File)> {
        let folder = self.directory.join("scratch");
        let made = tempfile::Builder::new().prefix(&format!("{}-", file_name(name))).tempfile_in(&folder);
        let (file, path) = made
            .and_then(|file| file.keep().map_err(|error| error.error))
            .map_err(SourceError::file("create a file in", &folder))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| SourceError::file("lock", &path)(e.into()))?;
        Ok((path, file))
    }

    /// A new file without a name: gone when it is closed, however that happens.
    pub(super) fn unnamed(&self) -> Result<File> {
        let folder = self.directory.join("scratch");
        tempfile::tempfile_in(&folder).map_err(SourceError::file("create a file in", folder))
    }

    pub(super) fn image_note(&self, key: &str) -> PathBuf {
        self.directory.join("images").join(format!("{key}.json"))
    }

    /// Bytes that a normal user can still write here.
    pub(super) fn free(&self) -> Option<u64> {
        let about = rustix::fs::statvfs(&self.directory).ok()?;
        Some(about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// An error if that many more bytes do not fit.
    pub(super) fn check_room(&self, what: &str, needed: u64) -> Result<()> {
        match self.free() {
            Some(free) if needed.saturating_add(SPARE) > free => Err(SourceError::DiskFull {
                what: what.into(),
                path: self.directory.clone(),
                needed: Some(needed),
                free,
            }),
            _ => Ok(()),
        }
    }

    /// What a failed write means.
    pub(super) fn write_failed(&self, what: &str, path: &Path, source: io::Error) -> SourceError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SourceError::DiskFull {
                what: what.into(),
                path: self.directory.clone(),
                needed: None,
                free: self.free().unwrap_or(0),
            },
            _ => SourceError::File { what: "write", path: path.into(), source },
        }
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(create)
        .create(create)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed())
        .open(path)
}

/// Whether nobody else has the file now. A process that another thread starts has it too, until it executes its program: what is
/// taken for used by that stays until it is tidied. Tests start many, and are to see what they look for.
fn alone(file: &File) -> bool {
    let tries = if cfg!(test) { 100 } else { 1 };
    (0..tries).any(|_| {
        let taken = flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if cfg!(test) && !taken {
            std::thread::sleep(Duration::from_millis(10));
        }
        taken
    })
}

/// Whether it is still this file that has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |about: io::Result<fs::Metadata>| about.ok().map(|about| (about.dev(), about.ino()));
    let file = identity(file.metadata());
    file.is_some() && file == identity(fs::symlink_metadata(path))
}

/// A text as part of a file's name: what else it may hold becomes a dash.
pub(super) fn file_name(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = text.chars().map(|c| if fits(c) { c } else { '-' }).take(80).collect();
    let name = name.trim_matches(['.', '-']);
    if name.is_empty() { "download".into() } else { name.into() }
}
