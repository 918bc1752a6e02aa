//! Copying disks: shared blocks where the file system has them, else the content without the holes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};

use crate::error::{Error, Result};

/// Bytes that are copied at a time.
const CHUNK: u64 = 8 << 20;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);

/// Who is told how many bytes were gone over, and of how many; an error ends the copy and is given back.
pub(crate) type Tell<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Makes an empty file a copy of another, whose holes are holes of it. `name` is the new file's. It is not synced.
pub(crate) fn copy_sparse(from: &File, to: &File, name: &Path, tell: &mut Tell<'_>) -> Result<()> {
    let failed =
        |source| crate::disk::explain(name, Error::File { what: "copy to", path: name.into(), source });
    let size = from.metadata().map_err(failed)?.len();
    tell(0, size)?;
    // FICLONE (ioctl_ficlone(2)): btrfs, xfs and bcachefs can; what cannot says so in several ways.
    if ioctl_ficlone(to, from).is_ok() {
        return tell(size, size);
    }
    to.set_len(size).map_err(failed)?;
    let mut at = 0;
    let mut told = Instant::now();
    let mut in_kernel = true;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(failed(error.into())),
        };
        let end = seek(from, SeekFrom::Hole(start)).map_err(|error| failed(error.into()))?.min(size);
        at = start;
        while at < end {
            let wanted = (end - at).min(CHUNK);
            at += piece(from, to, at, wanted, &mut in_kernel).map_err(failed)?;
            if told.elapsed() >= TELL {
                told = Instant::now();
                tell(at, size)?;
            }
        }
    }
    tell(size, size)
}

/// Copies some bytes to the same place; gives how many.
fn piece(from: &File, to: &File, at: u64, wanted: u64, in_kernel: &mut bool) -> io::Result<u64> {
    if *in_kernel {
        let (mut source, mut target) = (at, at);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted as usize) {
            Ok(length @ 1..) => return Ok(length as u64),
            // Nothing of a file that was longer a moment ago, and what some file systems say for what they cannot.
            Ok(0) | Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                *in_kernel = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; wanted.min(1 << 20) as usize];
    from.read_exact_at(&mut buffer, at)?;
    to.write_all_at(&buffer, at)?;
    Ok(buffer.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn content_comes_along_and_holes_stay_holes() {
        let from = file();
        for (at, text) in [(0, "first"), (5 << 20, "middle"), (63 << 20, "last")] {
            from.write_all_at(text.as_bytes(), at).unwrap();
        }
        from.set_len(1 << 30).unwrap();
        let to = file();
        let mut told = Vec::new();
        copy_sparse(&from, &to, Path::new("to"), &mut |at, of| {
            told.push((at, of));
            Ok(())
        })
        .unwrap();
        assert_eq!((told.first(), told.last()), (Some(&(0, 1 << 30)), Some(&(1 << 30, 1 << 30))));
        assert_eq!(to.metadata().unwrap().len(), 1 << 30);
        for (at, text) in [(0, "first"), (5 << 20, "middle"), (63 << 20, "last\0\0")] {
            let mut bytes = vec![9; text.len()];
            to.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, text.as_bytes());
        }
        assert!(to.metadata().unwrap().blocks() < 256, "{}", to.metadata().unwrap().blocks());
    }

    #[test]
    fn without_the_kernels_help_it_is_the_same() {
        let (from, to) = (file(), file());
        from.write_all_at(&[7; 3000], 100).unwrap();
        to.set_len(3100).unwrap();
        assert_eq!(piece(&from, &to, 100, 3000, &mut false).unwrap(), 3000);
        let mut bytes = vec![0; 3100];
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[100..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn who_is_told_can_end_it() {
        let error = copy_sparse(&file(), &file(), Path::new("to"), &mut |_, _| Err(Error::Cancelled));
        assert!(matches!(error, Err(Error::Cancelled)));
    }
}
