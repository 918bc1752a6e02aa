//! A file that has its name only when it is whole.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};
use tempfile::TempPath;

use crate::error::{Error, Result};

/// A file in the making, in the folder that it is to be in, and gone again unless it is [kept](Self::keep).
///
/// Until then it has no name at all (open(2), `O_TMPFILE`), so that nothing is left of it however this process ends: most often
/// that is a Ctrl-C. Where the file system has no such files, as NFS, it is called `.NAME.partial`; what a killed process left
/// there goes when the next is made for the same place.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("debian.tar");
/// let new = undercroft::NewFile::create(&path)?;
/// std::io::Write::write_all(&mut new.file(), b"all of it")?;
/// assert!(!path.exists());
/// new.keep()?;
/// assert_eq!(std::fs::read(&path)?, b"all of it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NewFile {
    /// Its name in the making, if it has one. It goes before the lock: the next to have it is another's.
    temporary: Option<TempPath>,
    file: File,
    path: PathBuf,
}

impl NewFile {
    /// Makes an empty file for `path`, readable for its owner only: a root file system has secrets in it.
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(Error::File { what: "write to", path: path.into(), source });
        }
        // What cannot be its name is told now, and not when all is done.
        if let Err(source) = fs::symlink_metadata(path)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::File { what: "create", path: path.into(), source });
        }
        let unnamed =
            openat(CWD, folder_of(path), OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o600));
        match unnamed {
            Ok(file) => Ok(Self { file: file.into(), path: path.into(), temporary: None }),
            // Whatever it is, it shows again if it is not about files without a name.
            Err(_) => Self::named(path),
        }
    }

    fn named(path: &Path) -> Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".partial");
        let temporary = path.with_file_name(name);
        let failed = |source| Error::File { what: "create", path: temporary.clone(), source };
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
                .open(&temporary)
                .map_err(failed)?;
            // Whoever is at it has it locked.
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
            // It may have got its name, or gone, before it was locked.
            let mine = file.metadata().map_err(failed)?;
            if fs::symlink_metadata(&temporary)
                .is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino()))
            {
                file.set_len(0).map_err(failed)?;
                let temporary = TempPath::try_from_path(&temporary).map_err(failed)?;
                return Ok(Self { file, path: path.into(), temporary: Some(temporary) });
            }
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is whole: gives it its name, which it keeps even if the power fails now. What had that name is gone.
    pub fn keep(self) -> Result<()> {
        let failed = |source| Error::File { what: "finish", path: self.path.clone(), source };
        self.file.sync_all().map_err(failed)?;
        let folder = folder_of(&self.path);
        let temporary = match self.temporary {
            Some(temporary) => temporary,
            // A link replaces nothing, as a rename does: it has a name of its own for a moment.
            None => tempfile::Builder::new()
                .prefix(".")
                .suffix(".partial")
                .make_in(folder, |name| link(&self.file, name))
                .map_err(failed)?
                .into_temp_path(),
        };
        temporary.persist(&self.path).map_err(|error| failed(error.error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// Gives a name to a file that has none (open(2), `O_TMPFILE`, the second example).
fn link(file: &File, name: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, own, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// A path without a folder in it is in the current one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        for before in [None, Some("before")] {
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
            }
            let new = NewFile::create(&path).unwrap();
            new.file().write_all(b"half").unwrap();
            drop(new);
            assert_eq!(fs::read(&path).ok().as_deref(), before.map(str::as_bytes));
            let new = NewFile::create(&path).unwrap();
            new.file().write_all(b"whole").unwrap();
            // Whoever ends now leaves nothing.
            assert_eq!(names(folder.path()).len(), usize::from(before.is_some()));
            new.keep().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert_eq!(names(folder.path()), ["x.tar"]);
            fs::remove_file(&path).unwrap();
        }
        assert!(NewFile::create(folder.path()).is_err());
        assert!(NewFile::create(&folder.path().join("x".repeat(300))).is_err());
        assert!(NewFile::create(&folder.path().join("none/x.tar")).is_err());
    }

    #[test]
    fn where_every_file_has_a_name_it_is_one_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        fs::write(&path, "before").unwrap();
        fs::write(folder.path().join(".x.tar.partial"), "what a killed process left").unwrap();
        let new = NewFile::named(&path).unwrap();
        new.file().write_all(b"half").unwrap();
        let other = NewFile::named(&path).unwrap_err();
        assert!(other.to_string().contains(".x.tar.partial"), "{other}");
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let new = NewFile::named(&path).unwrap();
        new.file().write_all(b"whole").unwrap();
        new.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["x.tar"]);
    }
}
