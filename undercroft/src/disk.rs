//! Disks of distributions: raw, sparse files with an ext4 file system, made without root.
//!
//! 256 GiB cost 7 MB of host space when they are made, in 30 ms: a hole reads as zeros, so mke2fs need not write inode
//! tables or the journal, and the kernel need not later. (Measured with e2fsprogs 1.47; its group descriptors say
//! ITABLE_ZEROED, because it punches the whole file first.)

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::error::{Error, Result};

/// The size of a distribution's disk, in bytes, unless somebody wants another.
pub const DEFAULT_SIZE: u64 = 256 << 30;
/// Below this, in MiB, a file system counts as full when a write to a disk on it has failed.
const FULL: u64 = 16;

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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(failed("create"))?;
        let disk = Self { file, temporary: temporary.clone(), path: path.into(), kept: false };
        disk.file.set_len(size).map_err(|e| explain(&temporary, failed("enlarge")(e)))?;
        make_file_system(&temporary).map_err(|e| explain(&temporary, e))?;
        Ok(disk)
    }

    /// The file, for the VMM.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is whole: gives it its name.
    pub fn keep(mut self) -> Result<File> {
        let failed =
            |source| Error::File { what: "rename a finished disk to", path: self.path.clone(), source };
        self.file.sync_all().map_err(failed)?;
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
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

fn make_file_system(path: &Path) -> Result<()> {
    let output = Command::new(find_mke2fs())
        .args(["-q", "-F", "-t", "ext4", "-b", "4096"])
        // Nobody else needs blocks kept for root; the journal need not be longer for one machine's writes.
        .args(["-m", "0", "-J", "size=64"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"])
        .arg(path)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoProgram { program: "mke2fs", package: "e2fsprogs" });
        }
        Err(source) => return Err(Error::System { what: "run mke2fs", source }),
        Ok(output) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").into();
    Err(Error::Program { program: "mke2fs", status: output.status, message })
}

/// A normal user's PATH often lacks the directories where Debian keeps it.
fn find_mke2fs() -> PathBuf {
    let from_path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&from_path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.find_map(|d| Some(d.join("mke2fs")).filter(|p| p.is_file())).unwrap_or_else(|| "mke2fs".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_disk_is_sparse_and_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.ext4");
        let disk = match NewDisk::create(&path, 8 << 30) {
            Err(Error::NoProgram { .. }) => return eprintln!("skipped: mke2fs is not installed"),
            other => other.unwrap(),
        };
        assert!(!path.exists());
        let about = disk.file().metadata().unwrap();
        assert_eq!(about.len(), 8 << 30);
        assert!(about.blocks() * 512 < 16 << 20, "{} blocks", about.blocks());
        disk.keep().unwrap();
        assert!(path.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_disk_that_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".d.ext4.partial"), "left over").unwrap();
        drop(NewDisk::create(&directory.path().join("d.ext4"), 1 << 30));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
