//! A disk with all of a distribution's files on it, which needs no base.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use undercroft_protocol::command::{DiskAddress, Root};

use super::{Compression, Exporting, Target};
use crate::{
    Machine,
    copy::copy_sparse,
    disk::{self, Journal},
    error::{Error, Result},
    import::{Archive, ArchiveError},
    store::Attached,
};

/// An image to be written.
pub(crate) struct Image<'a> {
    /// An empty file, opened for reading and writing.
    pub(crate) file: &'a File,
    /// What people call it.
    pub(crate) name: &'a Path,
    /// Its size in bytes, if somebody wants a certain one.
    pub(crate) size: Option<u64>,
}

/// Fills an empty file.
pub(crate) fn image(
    machine: &Machine,
    attached: &Attached,
    image: &Image<'_>,
    tell: &mut (dyn FnMut(Exporting) -> Result<()> + Send),
) -> Result<()> {
    let filled = match attached.root() {
        Root::Flat { .. } => copy_sparse(attached.disk(), image.file, image.name, &mut |read, about| {
            tell(Exporting { read, about, written: read, entries: 0 })
        }),
        root => stack(machine, attached, root, image, tell),
    };
    filled.map_err(|error| full(image, error))?;
    image.file.sync_all().map_err(|source| Error::File { what: "sync", path: image.name.into(), source })
}

/// Makes a new disk, and fills it inside the VM, from an export piped into an import.
fn stack(
    machine: &Machine,
    attached: &Attached,
    root: &Root,
    image: &Image<'_>,
    tell: &mut (dyn FnMut(Exporting) -> Result<()> + Send),
) -> Result<()> {
    let size = image.size.map_or_else(|| attached.size(), Ok)?;
    image.file.set_len(size).map_err(|source| Error::File {
        what: "enlarge",
        path: image.name.into(),
        source,
    })?;
    // The file may have been opened by somebody else, and have no name here.
    let place = format!("/proc/{}/fd/{}", std::process::id(), image.file.as_raw_fd());
    disk::mke2fs(Path::new(&place), size, Journal::Yes)?;
    let address = machine.attach_disk(image.file, false)?;
    let filled = fill(machine, root, address.clone(), tell);
    // Whatever came of it; the first error counts.
    let detached = machine.detach_disk(address);
    filled.and(detached)
}

fn fill(
    machine: &Machine,
    root: &Root,
    disk: DiskAddress,
    tell: &mut (dyn FnMut(Exporting) -> Result<()> + Send),
) -> Result<()> {
    let failed = |source| Error::System { what: "make a pipe", source };
    let (reader, writer) = UnixStream::pair().map_err(failed)?;
    let name = PathBuf::from("the distribution's root");
    let (exported, imported) = std::thread::scope(|scope| {
        let name = &name;
        let packing = scope.spawn(move || {
            let file = File::from(OwnedFd::from(writer));
            let target = Target { file: &file, name, compression: Compression::None };
            machine.export(root, &target, tell)
        });
        // Dropped with the archive when the import ends, so that the export ends, too.
        let imported = Archive::stream(name, Box::new(reader))
            .map_err(Error::from)
            .and_then(|archive| machine.import(disk, archive, |_| ()));
        let exported = packing.join().unwrap_or_else(|_| {
            Err(Error::System { what: "export", source: io::Error::other("a thread panicked") })
        });
        (exported, imported)
    });
    match (exported, imported) {
        (Ok(_), Ok(_)) => Ok(()),
        // Of two errors one is what the other's end looked like.
        (Err(error), Err(Error::Archive(ArchiveError::CutOff { .. } | ArchiveError::Empty { .. })))
        | (Err(error), Ok(_)) => Err(error),
        (_, Err(error)) => Err(error),
    }
}

/// A write that failed in the VM failed for what is the matter with the file here.
fn full(image: &Image<'_>, error: Error) -> Error {
    match error {
        Error::Refused { .. } | Error::Program { .. } => {
            let about = nix::sys::statvfs::fstatvfs(image.file);
            let free = about.map_or(u64::MAX, |a| a.blocks_available().saturating_mul(a.fragment_size()));
            if free >> 20 < disk::FULL {
                Error::DiskFull { path: image.name.into(), free_mib: free >> 20 }
            } else {
                error
            }
        }
        other => other,
    }
}
