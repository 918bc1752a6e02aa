//! A file that has its name only when it is whole.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// A file in the making, beside the place that it is to have, and gone again unless it is [kept](Self::keep). What a killed
/// process left of one goes when the next is made for the same place.
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
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl NewFile {
    /// Makes an empty file for `path`, readable for its owner only: a root file system has secrets in it.
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(Error::File { what: "write to", path: path.into(), source });
        }
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
                return Ok(Self { file, temporary, path: path.into(), kept: false });
            }
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is whole: gives it its name, which it keeps even if the power fails now. What had that name is gone.
    pub fn keep(mut self) -> Result<()> {
        let failed = |source| Error::File { what: "finish", path: self.path.clone(), source };
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.temporary, &self.path).map_err(failed)?;
        self.kept = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is taken by the next try.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        fs::write(&path, "before").unwrap();
        fs::write(folder.path().join(".x.tar.partial"), "what a killed process left").unwrap();
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"half").unwrap();
        let other = NewFile::create(&path).unwrap_err();
        assert!(other.to_string().contains(".x.tar.partial"), "{other}");
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"whole").unwrap();
        new.keep().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(NewFile::create(folder.path()).is_err());
    }
}
