//! Changes of a distribution as a whole: its settings, its name, where its disk is, how large that is; and copies of it.
//!
//! Each either has happened or has not, whenever the process that makes it is killed: a record is replaced by one rename(2),
//! and so is a disk; what else there is to a change is an [`intent`](super::intent).

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{
    DISK, Guard, Held, Record, Settings, Store, StoreError, check_name, fault, folder_of,
    intent::{Intent, beside},
    lock,
    name::folder,
    partial, record, sync_folder,
};
use crate::{
    copy::{Tell, copy_sparse},
    disk,
    e2fs::{self, Superblock},
    error::{Error, Result},
};

/// Bytes of a block of our disks.
const BLOCK: u64 = 4096;

impl Store {
    /// Changes what is set for a distribution, running or not. Gives its record.
    pub fn configure(&self, name: &str, change: impl FnOnce(&mut Settings)) -> Result<Record> {
        check_name(name)?;
        let guard = self.lock()?;
        let folder = folder(name);
        self.settle_left(&guard, Some(&folder))?;
        let mut record = self.read(&guard, &folder)?.ok_or_else(|| StoreError::Unknown(name.into()))?;
        change(&mut record.settings);
        self.replace_record(&guard, &folder, &record)?;
        Ok(record)
    }

    /// Makes a second distribution of one that nobody uses: its own disk is copied (where the file system can, both have one
    /// copy of what neither has changed), the base is both's. `tell` is told bytes gone over, and of how many; its error
    /// ends it.
    pub fn clone_as(&self, name: &str, new_name: &str, tell: &mut Tell<'_>) -> Result<Record> {
        let held = self.hold(name)?;
        let new = self.begin(&self.lock()?, new_name)?;
        copy_sparse(&held.disk, &new.disk, &new.disk_path(), tell)?;
        self.finish(new, held.record.content, held.record.settings.clone())
    }

    /// Gives a distribution that nobody uses another name. It stays the default if it was.
    pub fn rename(&self, name: &str, new_name: &str) -> Result<Record> {
        check_name(new_name)?;
        let held = self.hold(name)?;
        let guard = self.lock()?;
        let (from, to) = (folder(name), folder(new_name));
        if from != to {
            self.free(&guard, new_name)?;
        }
        let noted = self.note(&guard, &from, Intent::Rename { name: new_name.into(), to: to.clone() })?;
        let renamed = match from == to {
            true => Ok(()),
            false => partial::rename(&self.folder(&from), &self.folder(&to)),
        };
        let settled = self.settle(&guard, &noted);
        renamed.and(settled)?;
        drop(held);
        self.read(&guard, &to)?.ok_or_else(|| StoreError::Unknown(new_name.into()).into())
    }

    /// Puts the disk of a distribution that nobody uses into another directory, which is made if need be and may be on
    /// another file system; `None` is the store itself. The disk is called there as the distribution is now. `tell` as for
    /// [`clone_as`](Self::clone_as); between file systems there is something to tell.
    pub fn relocate(&self, name: &str, directory: Option<&Path>, tell: &mut Tell<'_>) -> Result<Record> {
        let held = self.hold(name)?;
        let folder = folder(name);
        let old = self.disk_path(&folder, &held.record);
        let Some(new) = self.new_place(&held.record, directory)? else { return Ok(held.record) };
        let files = vec![old.clone(), new.clone(), beside(&new)?];
        if held.record.disk.is_none() {
            // The store's folders are closed to others; outside, its own mode counts, and older ones were made for all to read.
            let private = held.disk.set_permissions(Permissions::from_mode(0o600));
            private.map_err(|source| Error::File { what: "set the mode of", path: old.clone(), source })?;
        }
        let noted = self.note(&self.lock()?, &folder, Intent::Files(files))?;
        let moved = put(&held.disk, &old, &new, tell).and_then(|copy| {
            let guard = self.lock()?;
            let mut record = self.record_of(&guard, &folder, name)?;
            record.disk = directory.map(|_| new.clone());
            record.adopted = false;
            self.replace_record(&guard, &folder, &record)?;
            // Its lock, until others find it by the record.
            drop(copy);
            Ok(record)
        });
        let settled = self.settle(&self.lock()?, &noted);
        let record = moved?;
        settled.map(|()| record)
    }

    /// Whether [`relocate`](Self::relocate) has something to do for a distribution, in use or not; an error if it is seen now
    /// that it would fail. The directory is made if need be.
    pub fn can_relocate(&self, name: &str, directory: Option<&Path>) -> Result<bool> {
        let Some(new) = self.new_place(&self.known(name)?, directory)? else { return Ok(false) };
        room_beside(&new, "move a disk to", 0).map(|()| true)
    }

    /// Where a disk is to go, if it is not there; what has that name already is in its way.
    fn new_place(&self, record: &Record, directory: Option<&Path>) -> Result<Option<PathBuf>> {
        let folder = folder(&record.name);
        let new = match directory {
            None => self.folder(&folder).join(DISK),
            Some(directory) => absolute(directory)?.join(format!("{folder}.ext4")),
        };
        if new == self.disk_path(&folder, record) {
            return Ok(None);
        }
        if [&new, &beside(&new)?].into_iter().any(|file| fs::symlink_metadata(file).is_ok()) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::File { what: "move a disk to", path: new, source });
        }
        Ok(Some(new))
    }

    /// Makes the disk of a distribution that nobody uses larger or smaller; `size` is in bytes. Checked and changed is a copy,
    /// which then takes the disk's place: on file systems without shared copies this needs as much space again as the
    /// disk takes. `tell` as for [`clone_as`](Self::clone_as).
    pub fn resize(&self, name: &str, size: u64, tell: &mut Tell<'_>) -> Result<()> {
        let size = size / BLOCK * BLOCK;
        let held = self.hold(name)?;
        if held.size()? == size {
            return Ok(());
        }
        let folder = folder(name);
        let path = self.disk_path(&folder, &held.record);
        let copy = beside(&path)?;
        let noted = self.note(&self.lock()?, &folder, Intent::Files(vec![copy.clone()]))?;
        let resized =
            partial::remove(&copy).and_then(|()| self.resized(&held, &copy, size, tell)).and_then(|new| {
                let _guard = self.lock()?;
                partial::rename(&copy, &path)?;
                // Until it is found under its name it is nobody else's.
                drop(new);
                Ok(())
            });
        let settled = self.settle(&self.lock()?, &noted);
        resized.and(settled)
    }

    /// Whether [`resize`](Self::resize) has something to do for a distribution, in use or not; an error if it is seen now that
    /// it would fail. What the disk's file system needs is not: as long as that is in use, it is not counted.
    pub fn can_resize(&self, name: &str, size: u64) -> Result<bool> {
        let record = self.known(name)?;
        let path = self.disk_path(&folder(name), &record);
        let about = fs::metadata(&path).map_err(|source| Error::File {
            what: "look at",
            path: path.clone(),
            source,
        })?;
        let size = size / BLOCK * BLOCK;
        if about.len() == size {
            return Ok(false);
        }
        if size < disk::LEAST {
            return Err(StoreError::TooSmall { name: record.name, wanted: size, least: disk::LEAST }.into());
        }
        room_beside(&path, "resize", size).map(|()| true)
    }

    /// A copy of a disk, of another size.
    fn resized(&self, held: &Held, path: &Path, size: u64, tell: &mut Tell<'_>) -> Result<File> {
        let copy = disk::create_file(path)?;
        lock::exclusive(&copy, path)?;
        fault::point();
        copy_sparse(&held.disk, &copy, path, tell)?;
        same_mode(&held.disk, &copy, path)?;
        let sized = |size| {
            copy.set_len(size).map_err(|source| {
                disk::explain(path, Error::File { what: "resize", path: path.into(), source })
            })
        };
        e2fs::check(path)?;
        fault::point();
        if size > held.size()? {
            sized(size)?;
        } else {
            let superblock = Superblock::read(&copy).map_err(|source| Error::File {
                what: "read",
                path: path.into(),
                source,
            })?;
            let least = e2fs::least_size(path, superblock.map_or(BLOCK, |it| it.block))?;
            if size < least {
                let name = held.record.name.clone();
                return Err(StoreError::TooSmall { name, wanted: size, least }.into());
            }
        }
        e2fs::resize(path, size).map_err(|error| disk::explain(path, error))?;
        sized(size)?;
        fault::point();
        copy.sync_all().map_err(|source| Error::File { what: "sync", path: path.into(), source })?;
        Ok(copy)
    }

    /// The record of a distribution, held or not.
    fn known(&self, name: &str) -> Result<Record> {
        check_name(name)?;
        let (guard, folder) = (self.lock()?, folder(name));
        self.settle_left(&guard, Some(&folder))?;
        self.record_of(&guard, &folder, name)
    }

    /// The record of a distribution that is held, as it is now.
    fn record_of(&self, guard: &Guard, folder: &str, name: &str) -> Result<Record> {
        self.read(guard, folder)?.ok_or_else(|| StoreError::Unknown(name.into()).into())
    }

    pub(super) fn replace_record(&self, guard: &Guard, folder: &str, record: &Record) -> Result<()> {
        let partial = partial::Partial::new(guard, self.partial(&format!("record-{folder}.json")))?;
        record.write(&partial.path)?;
        partial.move_to(&self.folder(folder).join(record::FILE))
    }
}

/// An error if no file of this size (in bytes) can be made in a path's folder. It has no name, and nothing in it.
fn room_beside(path: &Path, what: &'static str, size: u64) -> Result<()> {
    let tried = tempfile::tempfile_in(folder_of(path)).and_then(|file| file.set_len(size));
    tried.map_err(|source| Error::File { what, path: path.into(), source })
}

/// A directory by its real name, made if it is not there.
fn absolute(directory: &Path) -> Result<PathBuf> {
    let made = fs::create_dir_all(directory).and_then(|()| directory.canonicalize());
    made.map_err(|source| Error::File { what: "create", path: directory.into(), source })
}

/// Lets those have a copy who may have the original: an image that was adopted may be a group's.
fn same_mode(from: &File, to: &File, path: &Path) -> Result<()> {
    let mode = from.metadata().map(|about| Permissions::from_mode(about.mode() & 0o777));
    mode.and_then(|mode| to.set_permissions(mode)).map_err(|source| Error::File {
        what: "set the mode of",
        path: path.into(),
        source,
    })
}

/// Makes a file be found at another path, too, or copies it there, for good. Gives the copy, locked, if it is one.
fn put(disk: &File, old: &Path, new: &Path, tell: &mut Tell<'_>) -> Result<Option<File>> {
    fault::point();
    if !fault::refuses_links() && fs::hard_link(old, new).is_ok() {
        fault::point();
        sync_folder(folder_of(new))?;
        return Ok(None);
    }
    let temporary = beside(new)?;
    let copy = disk::create_file(&temporary)?;
    lock::exclusive(&copy, &temporary)?;
    fault::point();
    copy_sparse(disk, &copy, new, tell)?;
    same_mode(disk, &copy, new)?;
    let failed = |source| Error::File { what: "finish", path: new.into(), source };
    copy.sync_all().map_err(failed)?;
    fault::point();
    match renameat_with(CWD, &temporary, CWD, new, RenameFlags::NOREPLACE) {
        // A file system that cannot refuse; that nothing was there was looked at.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&temporary, new).map_err(failed)?,
        other => other.map_err(|error| failed(error.into()))?,
    }
    fault::point();
    sync_folder(folder_of(new))?;
    Ok(Some(copy))
}
