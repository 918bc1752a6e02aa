//! Changes that one rename(2) cannot make: what they are about is written down before they begin.
//!
//! An intent is a file in `partial`, which its maker has locked. When the change has come to its end, in whatever way, the
//! intent is *settled*: what the distribution's record does not name is removed, a rename that has begun is finished. If
//! its maker was killed, the next one who opens the store, or takes the distribution, settles it. Settling can itself be
//! interrupted and done again.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Guard, PARTIAL, RECORD, Store, folder_of, is_absent, lock, name, names,
    partial::{self, Partial},
    record::{self, Record},
    sync_folder,
};
use crate::error::{Error, Result};

/// The version of an intent's file.
const VERSION: u64 = 1;
pub(super) const PREFIX: &str = "intent-";

/// What is about to be done with a distribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Intent {
    /// Its disk becomes another file, or another file its disk: those of them that its record does not name then are to go.
    Files(Vec<PathBuf>),
    /// It gets another name; `to` is that name's folder.
    Rename { name: String, to: String },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u64,
    folder: String,
    intent: Intent,
}

/// An intent that is written down. Others leave it alone as long as there is a value of this.
#[must_use = "it is to be settled"]
pub(super) struct Noted {
    path: PathBuf,
    folder: String,
    intent: Intent,
    _lock: File,
}

impl Store {
    /// Writes down what is about to be done with the distribution of a folder, which its caller holds.
    pub(super) fn note(&self, guard: &Guard, folder: &str, intent: Intent) -> Result<Noted> {
        let path = self.partial(&format!("{PREFIX}{folder}.json"));
        let written = Written { version: VERSION, folder: folder.into(), intent };
        // Under another name until it is whole: half an intent is none.
        let partial = Partial::new(guard, self.partial(&format!("note-{folder}.json")))?;
        record::write(&partial.path, &written)?;
        let file = record::open_regular(&partial.path, false)?;
        lock::exclusive(&file, &partial.path)?;
        partial.move_to(&path)?;
        Ok(Noted { path, folder: folder.into(), intent: written.intent, _lock: file })
    }

    /// Brings a change to its end, whether it succeeded or not.
    pub(super) fn settle(&self, guard: &Guard, noted: &Noted) -> Result<()> {
        self.carry_out(guard, &noted.folder, &noted.intent)?;
        partial::remove(&noted.path)?;
        sync_folder(folder_of(&noted.path))
    }

    /// Settles what killed processes intended; with a folder, only what is about its distribution. Gives the files' names.
    pub(super) fn settle_left(&self, guard: &Guard, only: Option<&str>) -> Result<Vec<String>> {
        let mut settled = Vec::new();
        for name in names(&self.directory.join(PARTIAL))? {
            if !name.starts_with(PREFIX) {
                continue;
            }
            let path = self.partial(&name);
            let written = match record::read_version::<Written>(&path, VERSION) {
                Ok(written) => written,
                // Nobody knows what it is about, so nothing that it may name is touched.
                Err(_) => continue,
            };
            let about = match &written.intent {
                Intent::Rename { to, .. } => [&written.folder, to],
                Intent::Files(_) => [&written.folder, &written.folder],
            };
            let wanted = only.is_none_or(|only| about.iter().any(|folder| *folder == only));
            if !wanted || partial::is_used(&path)? {
                continue;
            }
            self.carry_out(guard, &written.folder, &written.intent)?;
            partial::remove(&path)?;
            sync_folder(folder_of(&path))?;
            settled.push(name);
        }
        Ok(settled)
    }

    fn carry_out(&self, guard: &Guard, folder: &str, intent: &Intent) -> Result<()> {
        match intent {
            Intent::Files(files) => self.remove_unnamed(guard, folder, files),
            Intent::Rename { name, to } => self.finish_rename(guard, folder, name, to),
        }
    }

    /// Removes those files that are not the distribution's disk. A distribution that is not there has none; one whose record
    /// cannot be read may have any.
    fn remove_unnamed(&self, guard: &Guard, folder: &str, files: &[PathBuf]) -> Result<()> {
        let record = self.read(guard, folder)?;
        let disk = record.map(|record| self.disk_path(folder, &record));
        for file in files.iter().filter(|file| Some(*file) != disk.as_ref()) {
            // The folder may be on a disk that is not there at the moment.
            if file.exists() {
                partial::remove(file)?;
                sync_folder(folder_of(file))?;
            }
        }
        Ok(())
    }

    /// If the folder has its new name, its record gets the new name, too; if it has not, nothing has happened.
    fn finish_rename(&self, guard: &Guard, folder: &str, name: &str, to: &str) -> Result<()> {
        if self.folder(folder).exists() && folder != to {
            return Ok(());
        }
        let path = self.folder(to).join(RECORD);
        let mut record: Record = match record::read(&path) {
            Ok(record) => record,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let was = std::mem::replace(&mut record.name, name.into());
        if was != name {
            self.replace_record(guard, to, &record)?;
        }
        if self.named_default()?.is_some_and(|default| name::folder(&default) == folder) {
            self.write_default(guard, name)?;
        }
        Ok(())
    }
}

/// The name of a file that is being made beside another.
pub(super) fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::File {
        what: "use",
        path: path.into(),
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(".partial");
    Ok(path.with_file_name(beside))
}
