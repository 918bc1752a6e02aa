//! Bases: what was imported, never written to again, shared by every distribution made from it.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use undercroft_protocol::command::Imported;

use super::{
    BASES, Guard, Store, folder_of, is_absent, lock, names,
    partial::Partial,
    record::{Content, open_regular},
    sync_folder,
};
use crate::{
    digest::{Digest, KnownFile},
    disk::{self, Journal},
    error::{Error, Result},
    import::Archive,
};

/// How often one looks whether another process has finished the same import.
const LOOK: Duration = Duration::from_millis(100);

/// A base. While there is a value of it, it is not removed.
#[derive(Debug)]
pub struct Base {
    digest: Digest,
    file: File,
}

impl Base {
    /// The SHA-256 of the archive file that it was imported from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The disk, opened for reading.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Who unpacks an archive onto an empty file system: a [`Machine`](crate::Machine) does, and so may a closure.
pub trait Unpack {
    /// Unpacks it. When this returns, all of it has been written to the file, and nobody else has that open.
    fn unpack(&mut self, disk: &File, archive: Archive) -> Result<Imported>;

    /// Called now and then while another process imports the same archive. An error ends the wait.
    fn waiting(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&File, Archive) -> Result<Imported>> Unpack for F {
    fn unpack(&mut self, disk: &File, archive: Archive) -> Result<Imported> {
        self(disk, archive)
    }
}

impl Store {
    /// The base of this digest, if it is there.
    pub fn base(&self, digest: &Digest) -> Result<Option<Base>> {
        self.open_base(&self.lock()?, digest)
    }

    /// The base of this archive file: the one that is there, or else a new one, and what was unpacked for it.
    pub fn import_base(&self, file: &KnownFile, by: &mut dyn Unpack) -> Result<(Base, Option<Imported>)> {
        let digest = file.digest();
        let partial = self.partial(&format!("base-{digest}.ext4"));
        loop {
            let guard = self.lock()?;
            if let Some(base) = self.open_base(&guard, &digest)? {
                return Ok((base, None));
            }
            if !super::partial::is_used(&partial)? {
                let new = NewBase::create(&guard, partial)?;
                drop(guard);
                let imported = new.fill(by, Archive::open(file.path())?)?;
                file.check()?;
                return Ok((self.keep_base(new, digest)?, Some(imported)));
            }
            drop(guard);
            by.waiting()?;
            std::thread::sleep(LOOK);
        }
    }

    /// The base of an archive that comes through a pipe ([`Archive::stream`]). What it is shows only at its end; if the
    /// same is there already, what was unpacked goes again.
    pub fn import_stream(&self, archive: Archive, by: &mut dyn Unpack) -> Result<(Base, Option<Imported>)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let partial = self.partial(&format!("stream-{}-{number}.ext4", std::process::id()));
        let tail = archive.tail();
        let new = NewBase::create(&self.lock()?, partial)?;
        let imported = new.fill(by, archive)?;
        let Some(digest) = tail.digest()? else {
            return Err(Error::System {
                what: "import a file as a stream",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        };
        if let Some(base) = self.base(&digest)? {
            return Ok((base, None));
        }
        Ok((self.keep_base(new, digest)?, Some(imported)))
    }

    fn keep_base(&self, new: NewBase, digest: Digest) -> Result<Base> {
        new.finish()?;
        let guard = self.lock()?;
        let place = self.base_path(&digest);
        // Another may have imported a stream of the same bytes meanwhile.
        if !place.exists() {
            lock::unlock(&new.file, &new.partial.path)?;
            new.partial.move_to(&place)?;
        }
        let missing =
            || Error::File { what: "find", path: place.clone(), source: std::io::ErrorKind::NotFound.into() };
        self.open_base(&guard, &digest)?.ok_or_else(missing)
    }

    pub(super) fn open_base(&self, _: &Guard, digest: &Digest) -> Result<Option<Base>> {
        let path = self.base_path(digest);
        match open_regular(&path, false) {
            Ok(file) => {
                lock::shared(&file, &path)?;
                Ok(Some(Base { digest: *digest, file }))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn base_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(BASES).join(format!("{digest}.ext4"))
    }

    /// Removes every base that no record names and that nobody has open. None, while there is a record that cannot be read:
    /// it may name any. They take space until what is given is dropped.
    pub(super) fn remove_unused_bases(&self, guard: &Guard) -> Result<Vec<Base>> {
        let listed = self.list_locked(guard)?;
        if !listed.damaged.is_empty() {
            return Ok(Vec::new());
        }
        let used = |digest| listed.distributions.iter().any(|one| one.content == Content::Layered(digest));
        let mut removed = Vec::new();
        for name in names(&self.directory.join(BASES))? {
            let digest = name.strip_suffix(".ext4").and_then(|digest| digest.parse::<Digest>().ok());
            let Some(digest) = digest.filter(|&digest| !used(digest)) else { continue };
            let path = self.base_path(&digest);
            let file = open_regular(&path, false)?;
            if lock::try_exclusive(&file, &path)? {
                super::partial::remove(&path)?;
                sync_folder(folder_of(&path))?;
                removed.push(Base { digest, file });
            }
        }
        Ok(removed)
    }
}

/// A base that is being made; its lock tells others so.
struct NewBase {
    partial: Partial,
    file: File,
}

impl NewBase {
    fn create(guard: &Guard, path: PathBuf) -> Result<Self> {
        let partial = Partial::new(guard, path)?;
        let file = disk::create_file(&partial.path)?;
        lock::exclusive(&file, &partial.path)?;
        Ok(Self { partial, file })
    }

    fn path(&self) -> &Path {
        &self.partial.path
    }

    fn fill(&self, by: &mut dyn Unpack, archive: Archive) -> Result<Imported> {
        disk::format(&self.file, self.path(), archive.room(), Journal::No)?;
        by.unpack(&self.file, archive).map_err(|error| disk::explain(self.path(), error))
    }

    /// Nobody is to write to it any more.
    fn finish(&self) -> Result<()> {
        let sealed = fs::set_permissions(self.path(), Permissions::from_mode(0o444));
        sealed.and_then(|()| self.file.sync_all()).map_err(|source| Error::File {
            what: "finish",
            path: self.path().into(),
            source,
        })
    }
}
