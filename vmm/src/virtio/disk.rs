//! The file or block device behind a disk, whichever front end ([`block`](super::block), [`scsi`](super::scsi)) the
//! guest sees.
//!
//! Raw only: the guest's byte *n* is the file's byte *n*, so there is no format to guess and nothing in the file can
//! make the VMM open another one. Each access is checked against the size that the file had when it was opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::GuestMemoryMmap;

use super::buffers::Buffers;
use super::complaints::complain;
use super::guest_io;
use super::uncached::{Uncached, set_direct};
use crate::config::DiskConfig;

/// Bytes in a sector: the unit of every address here.
pub const SECTOR: u64 = 512;

/// Bytes of a serial number (virtio 1.2, section 5.2.6, VIRTIO_BLK_T_GET_ID).
pub const SERIAL_LENGTH: usize = 20;

/// Zeros for files whose filesystem cannot make them itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Requests that disks of this process have carried out, of those that change something.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// How often disks of this process were written to or flushed so far: as long as it grows, a guest is at it.
pub(crate) fn writes() -> u64 {
    WRITES.load(Ordering::Relaxed)
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("cannot open the disk {} for {}", .path.display(), if *.read_only { "reading" } else { "writing" })]
    Open {
        /// Which.
        path: PathBuf,
        /// How.
        read_only: bool,
        /// Why not.
        source: io::Error,
    },
    /// The descriptor that was handed over is not open as it should be.
    #[error("the disk {} is to be writable, but its file descriptor is open for reading only", .path.display())]
    Access {
        /// Which.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("the disk {} is neither a file nor a block device", .path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// Another process has it.
    #[error(
        "the disk {} is in use: {}", .path.display(),
        if *.read_only { "someone writes to it" } else { "a disk that is written to can belong to one machine only" }
    )]
    InUse {
        /// Which.
        path: PathBuf,
        /// What it was wanted for.
        read_only: bool,
    },
    /// The file cannot be looked at.
    #[error("cannot find out about the disk {}", .path.display())]
    Inspect {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no whole number of sectors.
    #[error(
        "the disk {} is {bytes} bytes long; a disk is one or more sectors of 512 bytes (`truncate -s %512 FILE` fills \
         up the last one)", .path.display()
    )]
    Size {
        /// Which.
        path: PathBuf,
        /// How long it is.
        bytes: u64,
    },
    /// The serial number cannot be shown to a guest.
    #[error("the serial number {0:?} is not up to 20 printable ASCII characters")]
    Serial(String),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It goes past the end of the disk.
    #[error("it goes past the end of the disk")]
    Range,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The host has no more space for it.
    #[error("the host's filesystem is full")]
    NoSpace,
    /// The file's fault.
    #[error(transparent)]
    Io(io::Error),
}

impl RequestError {
    /// Says on the VMM's standard error what is the host's trouble and not the guest's.
    pub(super) fn report(&self) {
        if let Self::Io(_) | Self::NoSpace = self {
            complain(format_args!("a request to a disk failed: {self}"));
        }
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}

/// An open disk, locked as long as it is.
#[derive(Debug)]
pub struct Disk {
    file: File,
    bytes: u64,
    read_only: bool,
    serial: String,
    /// Set if the host's page cache is to hold nothing of the disk.
    uncached: Option<Uncached>,
    /// Cleared when the file turns out not to know FALLOC_FL_ZERO_RANGE.
    can_zero_range: AtomicBool,
    /// Cleared when the file turns out not to know FALLOC_FL_PUNCH_HOLE.
    can_punch: AtomicBool,
}

impl Disk {
    /// Opens a disk.
    ///
    /// # Errors
    /// It is not there, not a disk, or in use.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let (path, read_only) = (&config.path, config.read_only);
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A fifo would keep us waiting for its other end.
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| DiskError::Open { path: path.clone(), read_only, source })?;
        Self::from_file(file, path, read_only, &config.serial)
    }

    /// Takes a disk that someone else has opened. `name` is for messages.
    ///
    /// # Errors
    /// It is not open for what it is to be used for, not a disk, or in use.
    pub fn from_fd(fd: OwnedFd, name: &Path, read_only: bool, serial: &str) -> Result<Self, DiskError> {
        let inspect = |source: nix::Error| DiskError::Inspect { path: name.into(), source: source.into() };
        let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(inspect)?;
        let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
        if mode == OFlag::O_WRONLY || (!read_only && mode != OFlag::O_RDWR) {
            return Err(DiskError::Access { path: name.into() });
        }
        Self::from_file(File::from(fd), name, read_only, serial)
    }

    fn from_file(mut file: File, path: &Path, read_only: bool, serial: &str) -> Result<Self, DiskError> {
        if serial.len() > SERIAL_LENGTH || !serial.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(DiskError::Serial(serial.into()));
        }
        let inspect = |source| DiskError::Inspect { path: path.into(), source };
        let kind = file.metadata().map_err(inspect)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind { path: path.into() });
        }
        if !guest_io::try_lock(&file, !read_only).map_err(inspect)? {
            return Err(DiskError::InUse { path: path.into(), read_only });
        }
        // Of a block device, the metadata's length is 0.
        let bytes = file.seek(SeekFrom::End(0)).map_err(inspect)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) || i64::try_from(bytes).is_err() {
            return Err(DiskError::Size { path: path.into(), bytes });
        }
        Ok(Self {
            file,
            bytes,
            read_only,
            serial: serial.into(),
            uncached: None,
            can_zero_range: AtomicBool::new(true),
            can_punch: AtomicBool::new(true),
        })
    }

    /// Has the host's page cache hold nothing of the disk. Where the filesystem takes O_DIRECT, the open file has that flag
    /// as long as this disk lives, for whoever else has a descriptor of it.
    #[must_use]
    pub fn past_page_cache(mut self) -> Self {
        self.uncached = Some(Uncached::new(&self.file, self.bytes));
        self
    }

    /// Whether the host's page cache is not used at all; otherwise what went through it is dropped from it, if
    /// [`past_page_cache`](Self::past_page_cache) was called.
    pub fn is_direct(&self) -> bool {
        self.uncached.as_ref().is_some_and(Uncached::is_direct)
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The serial number, up to 20 printable ASCII characters; may be empty.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Reads from `sector` on into all of `buffers`.
    ///
    /// # Errors
    /// Past the end, or the file's.
    pub fn read(&self, memory: &GuestMemoryMmap, buffers: Buffers, sector: u64) -> Result<(), RequestError> {
        let offset = self.check(sector, buffers.len())?;
        Ok(match &self.uncached {
            Some(uncached) => uncached.read(&self.file, memory, &buffers, offset),
            None => guest_io::read_exact_at(&self.file, memory, buffers, offset),
        }?)
    }

    /// Writes all of `buffers` from `sector` on. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// Read-only, past the end, or the file's.
    pub fn write(&self, memory: &GuestMemoryMmap, buffers: Buffers, sector: u64) -> Result<(), RequestError> {
        let offset = self.check_write(sector, buffers.len())?;
        Ok(match &self.uncached {
            Some(uncached) => uncached.write(&self.file, memory, &buffers, offset),
            None => guest_io::write_all_at(&self.file, memory, buffers, offset),
        }
        .inspect(|()| _ = WRITES.fetch_add(1, Ordering::Relaxed))?)
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// fdatasync(2)'s.
    pub fn flush(&self) -> Result<(), RequestError> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data()?;
        WRITES.fetch_add(1, Ordering::Relaxed);
        if let Some(uncached) = &self.uncached {
            uncached.flushed(&self.file);
        }
        Ok(())
    }

    /// The guest has no more use for these sectors: they go back to the host. A hint, which a file that cannot have
    /// holes ignores.
    ///
    /// # Errors
    /// Read-only, past the end, or the file's.
    pub fn discard(&self, sector: u64, sectors: u64) -> Result<(), RequestError> {
        let (offset, length) = self.check_sectors(sector, sectors)?;
        if length > 0 {
            self.punch(offset, length)?;
        }
        Ok(())
    }

    /// Makes these sectors zeros; with `unmap`, they go back to the host where that can be.
    ///
    /// # Errors
    /// Read-only, past the end, or the file's.
    pub fn write_zeroes(&self, sector: u64, sectors: u64, unmap: bool) -> Result<(), RequestError> {
        let (offset, length) = self.check_sectors(sector, sectors)?;
        if length == 0 || (unmap && self.punch(offset, length)?) || self.zero_range(offset, length)? {
            return Ok(());
        }
        if let Some(uncached) = &self.uncached {
            return Ok(uncached.write_zeros(&self.file, offset, length)?);
        }
        let mut done = 0;
        while done < length {
            let n = (length - done).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..n as usize], offset + done)?;
            done += n;
        }
        Ok(())
    }

    /// True if there is a hole now; false if this file cannot have one.
    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(&self.can_punch, mode, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<bool> {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(&self.can_zero_range, mode, offset, length)
    }

    fn fallocate(&self, can: &AtomicBool, mode: i32, offset: u64, length: u64) -> io::Result<bool> {
        if !can.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match guest_io::fallocate(&self.file, mode, offset, length) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                can.store(false, Ordering::Relaxed);
                Ok(false)
            }
            // A block device whose own blocks are larger than the range's alignment: this once by hand.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn check_sectors(&self, sector: u64, sectors: u64) -> Result<(u64, u64), RequestError> {
        let length = sectors.checked_mul(SECTOR).ok_or(RequestError::Range)?;
        Ok((self.check_write(sector, length)?, length))
    }

    fn check_write(&self, sector: u64, length: u64) -> Result<u64, RequestError> {
        if self.read_only { Err(RequestError::ReadOnly) } else { self.check(sector, length) }
    }

    /// The byte offset of `sector`, if `length` bytes from there on are the disk's.
    fn check(&self, sector: u64, length: u64) -> Result<u64, RequestError> {
        let offset = sector.checked_mul(SECTOR).ok_or(RequestError::Range)?;
        let end = offset.checked_add(length).ok_or(RequestError::Range)?;
        if end <= self.bytes { Ok(offset) } else { Err(RequestError::Range) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_direct() {
            // Whoever handed the descriptor over may go on with the file.
            let _ = set_direct(&self.file, false);
        }
    }
}
