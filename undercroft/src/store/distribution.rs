//! Distributions of a store: a folder each.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use undercroft_protocol::command::Imported;

use super::{
    Base, DISK, DISTRIBUTIONS, Guard, RECORD, Store, StoreError, Unpack, check_name, is_absent, lock,
    name::folder,
    names, partial,
    partial::Partial,
    record::{self, Content, Record, open_regular},
    settings::Settings,
    sync_folder,
};
use crate::{
    digest::{Digest, KnownFile},
    disk::{self, Journal},
    error::{Error, Result},
    import::Archive,
};

/// Every distribution of a store.
#[derive(Debug, Default)]
pub struct Listed {
    /// By name.
    pub distributions: Vec<Record>,
    /// Folders whose record cannot be read, and why.
    pub damaged: Vec<Error>,
}

/// A distribution that nobody else uses while there is a value of this.
#[derive(Debug)]
pub struct Held {
    /// What is known of it.
    pub record: Record,
    /// Its own disk, opened for writing.
    pub disk: File,
    /// Its base, unless it is flat.
    pub base: Option<Base>,
}

impl Held {
    /// The size of its own disk, in bytes.
    pub fn size(&self) -> Result<u64> {
        super::file_size(&self.disk)
    }
}

impl Store {
    /// Makes a distribution from a base, with a disk of this size (in bytes). Nothing is copied.
    pub fn create(&self, name: &str, base: &Base, size: u64) -> Result<Record> {
        let new = self.begin_empty(name, size)?;
        self.finish(new, Content::Layered(base.digest()), Settings::of_a_new_one())
    }

    /// Makes a distribution with everything on its own disk (of this size in bytes), and tells what was unpacked there.
    pub fn create_flat(
        &self,
        name: &str,
        file: &KnownFile,
        size: u64,
        by: &mut dyn Unpack,
    ) -> Result<(Record, Imported)> {
        let new = self.begin_empty(name, size)?;
        let archive = Archive::open(file.path())?;
        let unpacked = by.unpack(&new.disk, archive);
        let imported = unpacked.map_err(|error| disk::explain(&new.partial.path, error))?;
        file.check()?;
        Ok((self.finish(new, Content::Flat, Settings::of_a_new_one())?, imported))
    }

    /// With an empty file system of this size (in bytes) on its disk.
    fn begin_empty(&self, name: &str, size: u64) -> Result<New> {
        let new = self.begin(&self.lock()?, name)?;
        disk::format(&new.disk, &new.disk_path(), size, Journal::Yes)?;
        Ok(new)
    }

    /// Begins to make a distribution: its disk is an empty file.
    pub(super) fn begin(&self, guard: &Guard, name: &str) -> Result<New> {
        let partial = Partial::new(guard, self.free(guard, name)?)?;
        fs::create_dir(&partial.path).map_err(|source| Error::File {
            what: "create",
            path: partial.path.clone(),
            source,
        })?;
        let path = partial.path.join(DISK);
        let disk = disk::create_file(&path)?;
        lock::exclusive(&disk, &path)?;
        Ok(New { name: name.into(), partial, disk })
    }

    /// Where a distribution of a name is made that nobody has, and nobody makes one of.
    pub(super) fn free(&self, _: &Guard, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        let folder = folder(name);
        let path = self.partial(&format!("new-{folder}"));
        if self.folder(&folder).exists() || partial::is_used(&path)? {
            return Err(StoreError::Taken(name.into()).into());
        }
        Ok(path)
    }

    /// An error if a new distribution cannot be called that: before something is done for one that would come to nothing.
    pub fn check_free(&self, name: &str) -> Result<()> {
        self.free(&self.lock()?, name).map(drop)
    }

    /// Gives a distribution its place. Everything is synced before the store is locked: a disk that was copied takes long, and
    /// whoever wants a list would wait.
    pub(super) fn finish(&self, new: New, content: Content, settings: Settings) -> Result<Record> {
        let record = Record::new(&new.name, content, settings);
        let partial = &new.partial.path;
        new.disk.sync_all().map_err(|source| Error::File {
            what: "sync",
            path: partial.join(DISK),
            source,
        })?;
        record.write(&partial.join(RECORD))?;
        sync_folder(partial)?;
        let place = self.folder(&folder(&record.name));
        let _guard = self.lock()?;
        // The lock on what is made has kept everybody else from this name.
        new.partial.move_to(&place)?;
        Ok(record)
    }

    /// What is known of a distribution.
    pub fn distribution(&self, name: &str) -> Result<Option<Record>> {
        check_name(name)?;
        self.read(&self.lock()?, &folder(name))
    }

    /// Every distribution.
    pub fn list(&self) -> Result<Listed> {
        self.list_locked(&self.lock()?)
    }

    /// The names of the distributions that are made from a base.
    pub fn users(&self, base: &Digest) -> Result<Vec<String>> {
        let mut all = self.list()?.distributions;
        all.retain(|one| one.content == Content::Layered(*base));
        Ok(all.into_iter().map(|one| one.name).collect())
    }

    /// Bytes that a distribution's own disk takes on the host: less than its size, because it is sparse.
    pub fn disk_bytes(&self, record: &Record) -> Result<u64> {
        let path = self.disk_path(&folder(&record.name), record);
        let about = fs::metadata(&path).map_err(|source| Error::File { what: "look at", path, source })?;
        Ok(std::os::unix::fs::MetadataExt::blocks(&about) * 512)
    }

    /// Takes a distribution for this process alone.
    pub fn hold(&self, name: &str) -> Result<Held> {
        check_name(name)?;
        let guard = self.lock()?;
        let folder = folder(name);
        self.settle_left(&guard, Some(&folder))?;
        let record = self.read(&guard, &folder)?.ok_or_else(|| StoreError::Unknown(name.into()))?;
        let path = self.disk_path(&folder, &record);
        let disk = open_regular(&path, true)?;
        if !lock::try_exclusive(&disk, &path)? {
            return Err(StoreError::InUse(record.name).into());
        }
        let base = match record.content {
            Content::Flat => None,
            Content::Layered(digest) => {
                let missing = || StoreError::NoBase {
                    name: record.name.clone(),
                    base: digest,
                    path: self.base_path(&digest),
                };
                Some(self.open_base(&guard, &digest)?.ok_or_else(missing)?)
            }
        };
        Ok(Held { record, disk, base })
    }

    /// Removes a distribution that nobody uses, and its base if it was the last one made from it: tells which bases went.
    /// One whose record is damaged can be removed, too. An [adopted](Record::adopted) disk stays.
    pub fn remove(&self, name: &str) -> Result<Vec<Digest>> {
        check_name(name)?;
        let guard = self.lock()?;
        let folder = folder(name);
        self.settle_left(&guard, Some(&folder))?;
        let place = self.folder(&folder);
        if !place.exists() {
            return Err(StoreError::Unknown(name.into()).into());
        }
        let disk = match self.read(&guard, &folder) {
            Ok(Some(record)) => self.disk_path(&folder, &record),
            _ => place.join(DISK),
        };
        // Held until it is gone.
        let lock = match open_regular(&disk, false) {
            Ok(file) if !lock::try_exclusive(&file, &disk)? => {
                return Err(StoreError::InUse(name.into()).into());
            }
            Ok(file) => Some(file),
            Err(error) if is_absent(&error) || matches!(error, Error::Store(_)) => None,
            Err(error) => return Err(error),
        };
        let gone = self.partial(&format!("gone-{folder}"));
        partial::remove(&gone)?;
        // From here on it is removed, whatever happens.
        partial::rename(&place, &gone)?;
        self.forget_default(&folder)?;
        let bases = self.remove_unused_bases(&guard)?;
        self.remove_gone(&gone)?;
        // Closed after others have their turn: that is when the file system gives their blocks back, of large disks for long.
        drop(guard);
        drop(lock);
        Ok(bases.iter().map(Base::digest).collect())
    }

    /// Removes the folder of a distribution that is none any more, and its disk elsewhere before it, which only the record
    /// names.
    pub(super) fn remove_gone(&self, gone: &Path) -> Result<()> {
        if let Ok(record) = record::read::<Record>(&gone.join(RECORD))
            && let Some(disk) = record.disk.filter(|disk| !record.adopted && disk.is_absolute())
        {
            partial::remove(&disk)?;
        }
        partial::remove(gone)
    }

    /// Where a distribution's own disk is.
    pub(super) fn disk_path(&self, folder: &str, record: &Record) -> PathBuf {
        record.disk.clone().unwrap_or_else(|| self.folder(folder).join(DISK))
    }

    pub(super) fn list_locked(&self, guard: &Guard) -> Result<Listed> {
        let mut listed = Listed::default();
        for folder in names(&self.directory.join(DISTRIBUTIONS))? {
            match self.read(guard, &folder) {
                Ok(record) => listed.distributions.extend(record),
                Err(error) => listed.damaged.push(error),
            }
        }
        Ok(listed)
    }

    /// The record of a folder, if there is such a folder.
    pub(super) fn read(&self, _: &Guard, folder: &str) -> Result<Option<Record>> {
        let place = self.folder(folder);
        match Record::read(&place.join(RECORD), folder) {
            Ok(record) => Ok(Some(record)),
            Err(error) if is_absent(&error) && !place.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn folder(&self, folder: &str) -> PathBuf {
        self.directory.join(DISTRIBUTIONS).join(folder)
    }
}

/// A distribution that is being made; the lock on its disk tells others so.
pub(super) struct New {
    name: String,
    partial: Partial,
    pub(super) disk: File,
}

impl New {
    pub(super) fn disk_path(&self) -> PathBuf {
        self.partial.path.join(DISK)
    }
}
