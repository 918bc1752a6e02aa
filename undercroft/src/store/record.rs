//! What a store knows of a distribution beside its disk: a small JSON file.
//!
//! Everything else is derived: its size is its disk's, a base's users are those whose records name it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    error::StoreError,
    fault,
    name::{check_name, folder},
    settings::Settings,
};
use crate::{
    digest::Digest,
    error::{Error, Result},
};

/// The longest file that is read at all, in bytes; a record has some 400.
const LONGEST: u64 = 64 << 10;
/// A record's version that is written, and the newest that is understood. Version 1 had neither settings nor a place for
/// the disk.
const VERSION: u64 = 2;
/// A record's file.
pub(super) use super::RECORD as FILE;

/// Where a distribution keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// All of them on its own disk.
    Flat,
    /// On this base, and on its own disk what it changed.
    Layered(Digest),
}

/// A distribution in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub(super) version: u64,
    /// Its name, as it was typed.
    pub name: String,
    /// Where its files are.
    pub content: Content,
    /// When it was made: seconds since 1970, UTC.
    pub created: u64,
    /// Where its own disk is, if that is not in the store: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
    /// Whether that disk was somebody's before, and stays when the distribution is removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// What is set for it.
    #[serde(default)]
    pub settings: Settings,
}

/// What every version has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) version: u64,
}

impl Record {
    /// Of one that is made now.
    pub(super) fn new(name: &str, content: Content, settings: Settings) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { version: VERSION, name: name.into(), content, created, disk: None, adopted: false, settings }
    }

    /// Writes a record to a new file, for good.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write(path, self)
    }

    /// Reads the record of a folder. Anybody may have written it.
    pub(super) fn read(path: &Path, in_folder: &str) -> Result<Self> {
        let mut record: Self = read(path)?;
        // What is written of it again is of this version.
        record.version = VERSION;
        let damaged = |reason: String| StoreError::Damaged { path: path.into(), reason };
        check_name(&record.name).map_err(|error| damaged(error.to_string()))?;
        if folder(&record.name) != in_folder {
            return Err(
                damaged(format!("it is the record of {}, which has another folder", record.name)).into()
            );
        }
        if record.disk.as_ref().is_some_and(|disk| !disk.is_absolute()) {
            return Err(damaged("expected an absolute path of its disk".into()).into());
        }
        Ok(record)
    }
}

/// Writes a new file, for good.
pub(super) fn write(path: &Path, what: &impl Serialize) -> Result<()> {
    let failed = |source: io::Error| Error::File { what: "write", path: path.into(), source };
    let mut text = serde_json::to_vec(what).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let written = OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| {
        fault::point();
        file.write_all(&text)?;
        file.sync_all()
    });
    fault::point();
    written.map_err(|error| crate::disk::explain(path, failed(error)))
}

/// Reads a record, or what has its version.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_version(path, VERSION)
}

/// Reads a versioned file, of any version up to the newest that is known.
pub(super) fn read_version<T: DeserializeOwned>(path: &Path, known: u64) -> Result<T> {
    let file = open_regular(path, false)?;
    let mut text = Vec::new();
    let failed = |source| Error::File { what: "read", path: path.into(), source };
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(failed)?;
    let damaged = |reason| StoreError::Damaged { path: path.into(), reason };
    if text.len() as u64 > LONGEST {
        return Err(damaged(format!("it is longer than {LONGEST} bytes")).into());
    }
    let json = |error: serde_json::Error| damaged(error.to_string());
    match serde_json::from_slice(&text).map_err(json)? {
        Version { version: 0 } => Err(damaged("there is no version 0".into()).into()),
        Version { version } if version <= known => Ok(serde_json::from_slice(&text).map_err(json)?),
        Version { version } => Err(StoreError::Newer { path: path.into(), version, known }.into()),
    }
}

/// Opens a file that must be one, and no link to one.
pub(super) fn open_regular(path: &Path, write: bool) -> Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path);
    let failed = |source| Error::File { what: "open", path: path.into(), source };
    let file = file.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(StoreError::Damaged { path: path.into(), reason: "it is no regular file".into() }.into());
    }
    Ok(file)
}
