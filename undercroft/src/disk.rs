//! Disks of distributions: raw, sparse files with an ext4 file system, made without root.
//!
//! 256 GiB cost half a MiB of host space when they are made, in 30 ms: a hole reads as zeros, so mke2fs need not write
//! inode tables or the journal, and the kernel need not later. (Measured with e2fsprogs 1.47; its group descriptors say
//! ITABLE_ZEROED, because it punches the whole file first.) docs/decisions.md has the numbers behind each option.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    e2fs,
    error::{Error, Result},
};

/// The size of a distribution's own disk, in bytes, unless somebody wants another. It is a limit and takes no space, but
/// Linux looks at each of a disk's block groups (128 MiB) when it is mounted: see docs/decisions.md, "How large a disk is".
pub const DEFAULT_SIZE: u64 = 64 << 30;
/// Smaller than this, in bytes, none can be made: it is the least that its journal takes.
pub(crate) const LEAST: u64 = 4 << 20;
/// From this size on, in bytes, block numbers need more than 32 bits (at 4096 bytes a block).
const WIDE: u64 = 16 << 40;
/// Below this, in MiB, a file system counts as full when a write to a disk on it has failed.
pub(crate) const FULL: u64 = 16;

/// A disk that is being made: under a temporary name in its final directory, and gone again unless it is finished.
#[derive(Debug)]
pub struct NewDisk {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl NewDisk {
    /// Makes an empty file system of this size (in bytes) for `path`.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".partial");
        let temporary = path.with_file_name(name);
        let failed = |what| {
            let path = temporary.clone();
            move |source| Error::File { what, path, source }
        };
        // What a killed process left is of no use to anybody.
        match std::fs::remove_file(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(source)),
            _ => {}
        }
        let file = create_file(&temporary)?;
        let disk = Self { file, temporary: temporary.clone(), path: path.into(), kept: false };
        format(&disk.file, &temporary, size, Journal::Yes)?;
        Ok(disk)
    }

    /// The file, for the VMM.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is whole: gives it its name, which it keeps even if the power fails now.
    pub fn keep(mut self) -> Result<File> {
        let failed =
            |source| Error::File { what: "rename a finished disk to", path: self.path.clone(), source };
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        // A path without a folder in it is in the current one.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(failed)?;
        self.kept = true;
        self.file.try_clone().map_err(|source| Error::File { what: "use", path: self.path.clone(), source })
    }

    /// What a failure to write to it really was: the host's file system may be full.
    pub fn explain(&self, error: Error) -> Error {
        explain(&self.temporary, error)
    }
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is removed before the next try.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Turns an error of something that wrote to `path` into [`Error::DiskFull`] if that is what is the matter.
pub fn explain(path: &Path, error: Error) -> Error {
    let directory = path.parent().unwrap_or(path);
    match nix::sys::statvfs::statvfs(directory) {
        Ok(about) => {
            let free_mib = about.blocks_available().saturating_mul(about.fragment_size()) >> 20;
            if free_mib < FULL { Error::DiskFull { path: path.into(), free_mib } } else { error }
        }
        Err(_) => error,
    }
}

/// Opens a finished disk.
pub fn open(path: &Path, read_only: bool) -> Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path).map_err(|source| Error::File {
        what: "open",
        path: path.into(),
        source,
    })
}

/// Whether a file system survives a crash while it is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    Yes,
    /// For what is filled once, and thrown away if that fails: each block is written once instead of twice.
    No,
}

/// Makes a file that is not there yet, for its owner alone: a disk has a root file system's secrets in it, and may be put
/// into a folder that others can look into.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|source| Error::File { what: "create", path: path.into(), source })
}

/// Makes an empty file into a file system of this size (in bytes).
pub(crate) fn format(file: &File, path: &Path, size: u64, journal: Journal) -> Result<()> {
    let failed = |source| Error::File { what: "enlarge", path: path.into(), source };
    file.set_len(size)
        .map_err(failed)
        .and_then(|()| mke2fs(path, size, journal))
        .map_err(|e| explain(path, e))
}

/// What ext4 is to have, all of it (mke2fs(8), ext4(5)). It is ext4's usual set but for three: meta_bg instead of
/// resize_inode keeps the descriptors' copies few, and the file system resizable; without 64bit descriptors are half as
/// long; and what newer versions of mke2fs add (orphan_file, metadata_csum_seed), older tools would refuse.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,\
                        extra_isize,metadata_csum,meta_bg";

/// Makes a file, which has its size, a file system.
pub(crate) fn mke2fs(path: &Path, size: u64, journal: Journal) -> Result<()> {
    let wide = if size >= WIDE { ",64bit" } else { "" };
    let mut mke2fs = e2fs::program("mke2fs");
    mke2fs
        // The host's own wishes for its file systems are not for these.
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384"])
        // Nobody else needs blocks kept for root. Groups side by side share the blocks that are touched, but Linux makes the
        // bitmaps of all of them, in memory, when it looks for a free block in one: see docs/decisions.md.
        .args(["-m", "0", "-G", "16"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0"]);
    match journal {
        Journal::Yes => {
            // 64 MiB are enough for one machine's writes, and no more than an eighth of a small disk, down to the least
            // that a journal can be.
            let mib = (size >> 23).clamp(LEAST >> 20, 64);
            mke2fs.args(["-O", &format!("{FEATURES}{wide},has_journal"), "-J", &format!("size={mib}")])
        }
        Journal::No => mke2fs.args(["-O", &format!("{FEATURES}{wide}")]),
    };
    e2fs::run("mke2fs", mke2fs.arg(path), |status| status == 0).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// The host's programs are not needed to build this crate.
    fn made(path: &Path, size: u64) -> Option<NewDisk> {
        match NewDisk::create(path, size) {
            Err(Error::NoProgram { .. }) => {
                eprintln!("skipped: mke2fs is not installed");
                None
            }
            other => Some(other.unwrap()),
        }
    }

    fn blocks(file: &File) -> u64 {
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn a_disk_costs_less_than_a_mebibyte_and_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.ext4");
        let Some(disk) = made(&path, DEFAULT_SIZE) else { return };
        assert!(!path.exists());
        assert_eq!(disk.file().metadata().unwrap().len(), DEFAULT_SIZE);
        assert_eq!(disk.file().metadata().unwrap().mode() & 0o777, 0o600);
        let cost = blocks(disk.file());
        assert!(cost < 1 << 20, "{cost} bytes");
        disk.keep().unwrap();
        assert!(path.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn file_systems_have_no_faults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.ext4");
        for (size, journal) in [
            (48 << 20, Journal::Yes),
            (1 << 30, Journal::Yes),
            (DEFAULT_SIZE, Journal::No),
            (17 << 40, Journal::Yes),
        ] {
            let file = create_file(&path).unwrap();
            match format(&file, &path, size, journal) {
                Err(Error::NoProgram { .. }) => return eprintln!("skipped: mke2fs is not installed"),
                // ext4 itself has no longer files.
                Err(Error::File { .. }) if size >= WIDE => continue,
                other => other.unwrap(),
            }
            let check = e2fs::program("e2fsck").arg("-fn").arg(&path).output();
            let said = check.unwrap();
            assert!(said.status.success(), "{size}: {}", String::from_utf8_lossy(&said.stdout));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_disk_that_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".d.ext4.partial"), "left over").unwrap();
        drop(NewDisk::create(&directory.path().join("d.ext4"), 1 << 30));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
