//! What is being made, in a place where nobody takes it for whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{DISK, Guard, fault, folder_of, is_absent, lock, record::open_regular, sync_folder};
use crate::error::{Error, Result};

/// A file or folder below `partial`, which goes unless it is moved to its place.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) path: PathBuf,
    moved: bool,
}

impl Partial {
    /// The name is free: what a killed process left there goes. Whoever uses it must have looked before.
    pub(super) fn new(_: &Guard, path: PathBuf) -> Result<Self> {
        remove(&path)?;
        Ok(Self { path, moved: false })
    }

    /// It is whole, and synced: gives it its place.
    pub(super) fn move_to(mut self, place: &Path) -> Result<()> {
        rename(&self.path, place)?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.moved {
            // At once under another name: whoever finds this one free may use it. What cannot be removed now is removed
            // when the store is next opened.
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let mut name = self.path.clone().into_os_string();
            name.push(format!("~{}~{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let _ = fs::rename(&self.path, &name).map(|()| remove(Path::new(&name)));
        }
    }
}

/// Moves something from one folder to another, for good.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::point();
    fs::rename(from, to).map_err(|source| Error::File { what: "rename to", path: to.into(), source })?;
    fault::point();
    sync_folder(folder_of(to))?;
    sync_folder(folder_of(from))
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    fault::point();
    let removed = match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { what: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// Whether somebody is making this: has the lock on its disk.
pub(super) fn is_used(path: &Path) -> Result<bool> {
    let disk = if path.is_dir() { path.join(DISK) } else { path.into() };
    match open_regular(&disk, false) {
        Ok(file) => Ok(!lock::try_exclusive(&file, &disk)?),
        Err(error) if is_absent(&error) => Ok(false),
        // Whatever it is, nobody makes it.
        Err(Error::Store(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
