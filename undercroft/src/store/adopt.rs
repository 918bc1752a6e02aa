//! Disks from elsewhere: an image that becomes a distribution where it stands, and one that is copied.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use super::{
    Content, Guard, Record, Settings, Store, StoreError, check_name, file_size, lock,
    name::folder,
    partial::Partial,
    record::{self, open_regular},
    sync_folder,
};
use crate::{
    copy::{Tell, copy_sparse},
    e2fs::Superblock,
    error::{Error, Result},
};

impl Store {
    /// Makes an ext4 image with a root file system a flat distribution, where it stands. It stays there, too, when the
    /// distribution is removed, unless it was moved by [`relocate`](Self::relocate).
    pub fn adopt(&self, name: &str, image: &Path) -> Result<Record> {
        check_name(name)?;
        let path = image.canonicalize().map_err(|source| Error::File {
            what: "open",
            path: image.into(),
            source,
        })?;
        let disk = open_regular(&path, true)?;
        if !lock::try_exclusive(&disk, &path)? {
            return Err(StoreError::InUse(path.display().to_string()).into());
        }
        check_image(&disk, &path)?;
        let guard = self.lock()?;
        if let Some(owner) = self.owner_of(&guard, &disk, &path)? {
            return Err(StoreError::Owned { path, owner }.into());
        }
        let partial = Partial::new(&guard, self.free(&guard, name)?)?;
        let failed = |source| Error::File { what: "create", path: partial.path.clone(), source };
        fs::create_dir(&partial.path).map_err(failed)?;
        let record = Record {
            disk: Some(path),
            adopted: true,
            ..Record::new(name, Content::Flat, Settings::default())
        };
        record.write(&partial.path.join(record::FILE))?;
        sync_folder(&partial.path)?;
        partial.move_to(&self.folder(&folder(name)))?;
        Ok(record)
    }

    /// Makes a flat distribution with a copy of an ext4 image. `tell` as for [`clone_as`](Self::clone_as).
    pub fn create_from_image(&self, name: &str, image: &Path, tell: &mut Tell<'_>) -> Result<Record> {
        let from = open_regular(image, false)?;
        check_image(&from, image)?;
        // What is written to meanwhile would be copied half of one moment, half of another.
        if !lock::try_shared(&from, image)? {
            return Err(StoreError::InUse(image.display().to_string()).into());
        }
        let new = self.begin(&self.lock()?, name)?;
        copy_sparse(&from, &new.disk, &new.disk_path(), tell)?;
        self.finish(new, Content::Flat, Settings::default())
    }

    /// Whose disk a file is, if it is one of this store's.
    fn owner_of(&self, guard: &Guard, disk: &File, path: &Path) -> Result<Option<String>> {
        let about =
            disk.metadata().map_err(|source| Error::File { what: "open", path: path.into(), source })?;
        let is_it = |record: &Record| {
            fs::metadata(self.disk_path(&folder(&record.name), record))
                .is_ok_and(|other| (other.dev(), other.ino()) == (about.dev(), about.ino()))
        };
        if let Some(owner) = self.list_locked(guard)?.distributions.iter().find(|record| is_it(record)) {
            return Ok(Some(owner.name.clone()));
        }
        // A base, or what is being made.
        let inside = self.directory.canonicalize().is_ok_and(|store| path.starts_with(store));
        Ok(inside.then(|| "the store itself".into()))
    }
}

/// Whether a file begins like an ext4 file system, and is as long as that says.
fn check_image(image: &File, path: &Path) -> Result<()> {
    let refused = |reason: String| StoreError::NoImage { path: path.into(), reason };
    let read = Superblock::read(image);
    let superblock = read.map_err(|source| Error::File { what: "read", path: path.into(), source })?;
    let superblock = superblock.ok_or_else(|| match container(image) {
        Some(kind) => refused(format!(
            "expected a raw image, and it is a {kind}: `qemu-img convert -O raw {} NEW` makes one of it",
            path.display()
        )),
        None => {
            refused("expected an ext4 file system, and its magic number is not where it should be".into())
        }
    })?;
    let (size, have) = (superblock.size(), file_size(image)?);
    if size == 0 || size > have {
        let reason = format!("its file system has {size} bytes, and the file {have}: it was cut off");
        return Err(refused(reason).into());
    }
    Ok(())
}

/// What is known to hold a disk's content in another order than the disk's, by its first bytes: VHDX ([MS-VHDX] 2.2.1), VHD
/// with a table of blocks (its footer's copy at the head; one of fixed size has its footer behind the content, which is raw),
/// qcow2 (QEMU's docs/interop/qcow2.txt).
fn container(image: &File) -> Option<&'static str> {
    let mut head = [0; 8];
    image.read_exact_at(&mut head, 0).ok()?;
    match &head {
        b"vhdxfile" => Some("VHDX"),
        b"conectix" => Some("VHD that grows"),
        [b'Q', b'F', b'I', 0xfb, ..] => Some("qcow2"),
        _ => None,
    }
}
