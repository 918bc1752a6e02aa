//! A disk's reads and writes past the host's page cache.
//!
//! The guest caches what it reads and writes; a second copy in the host's page cache is memory that nobody looks at. So the
//! file is read and written directly (O_DIRECT), where its filesystem can: a request that is not aligned as that asks for goes
//! through a buffer, and the rest of the blocks that it touches in part is read first. There is one way to the file at
//! any time, so nothing has to be kept coherent. Where the filesystem cannot, what passed through the page cache is dropped
//! from it: after a read at once, after a write with the next flush, before which it cannot be.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::GuestMemoryMmap;

use super::buffers::Buffers;
use super::{guest_io, lock};

/// What direct requests are aligned to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Addresses in memory.
    pub(super) memory: u64,
    /// Offsets in the file, and lengths.
    pub(super) offset: u64,
}

/// Of a filesystem that takes O_DIRECT and does not say how (statx(2) before Linux 6.1, FUSE): a page suits all.
const ALIGNMENT_UNKNOWN: Alignment = Alignment { memory: 4096, offset: 4096 };

/// Bytes that the buffer takes at a time.
const CHUNK: usize = 128 << 10;

/// How a file is read and written.
#[derive(Debug)]
pub(super) struct Uncached {
    alignment: Alignment,
    /// Whether the file is open with O_DIRECT. Cleared when it turns out not to take it after all.
    direct: AtomicBool,
    /// For requests that are not aligned. Made when the first comes.
    bounce: Mutex<Vec<u8>>,
    /// What was written into the page cache since the last flush.
    written: Mutex<Range<u64>>,
}

impl Uncached {
    /// For a file of `bytes`; turns O_DIRECT on if the file takes it.
    pub(super) fn new(file: &File, bytes: u64) -> Self {
        let alignment = guest_io::direct_alignment(file).unwrap_or(Some(ALIGNMENT_UNKNOWN));
        // The last block of an odd file could not be written without the file growing.
        let usable = alignment.filter(|alignment| {
            let Alignment { memory, offset } = *alignment;
            let pages = [memory, offset].iter().all(|n| n.is_power_of_two() && *n <= CHUNK as u64);
            pages && bytes.is_multiple_of(offset)
        });
        let direct = usable.is_some() && set_direct(file, true).is_ok();
        Self {
            alignment: usable.unwrap_or(ALIGNMENT_UNKNOWN),
            direct: AtomicBool::new(direct),
            bounce: Mutex::default(),
            written: Mutex::new(0..0),
        }
    }

    /// Whether the page cache is not used at all.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Fills `buffers` from `offset` on.
    pub(super) fn read(
        &self,
        file: &File,
        memory: &GuestMemoryMmap,
        buffers: &Buffers,
        offset: u64,
    ) -> io::Result<()> {
        if self.is_direct() {
            let outcome = if self.is_aligned(memory, buffers, offset) {
                guest_io::read_exact_at(file, memory, buffers.clone(), offset)
            } else {
                self.read_bounced(file, memory, buffers.clone(), offset)
            };
            if !self.is_refused(file, &outcome) {
                return outcome;
            }
        }
        guest_io::read_exact_at(file, memory, buffers.clone(), offset)?;
        guest_io::drop_cached(file, &pages(offset..offset + buffers.len()));
        Ok(())
    }

    /// Writes `buffers` from `offset` on.
    pub(super) fn write(
        &self,
        file: &File,
        memory: &GuestMemoryMmap,
        buffers: &Buffers,
        offset: u64,
    ) -> io::Result<()> {
        if self.is_direct() {
            let outcome = if self.is_aligned(memory, buffers, offset) {
                guest_io::write_all_at(file, memory, buffers.clone(), offset)
            } else {
                let mut rest = buffers.clone();
                self.write_bounced(file, offset, buffers.len(), |part| {
                    rest.read(memory, part);
                })
            };
            if !self.is_refused(file, &outcome) {
                return outcome;
            }
        }
        guest_io::write_all_at(file, memory, buffers.clone(), offset)?;
        self.note(offset, buffers.len());
        Ok(())
    }

    /// Writes `length` zeros from `offset` on.
    pub(super) fn write_zeros(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let outcome = self.write_bounced(file, offset, length, |part| part.fill(0));
        if self.is_direct() && self.is_refused(file, &outcome) {
            return self.write_zeros(file, offset, length);
        }
        self.note(offset, length);
        outcome
    }

    /// All that was written is on the disk.
    pub(super) fn flushed(&self, file: &File) {
        let written = std::mem::replace(&mut *lock(&self.written), 0..0);
        if !written.is_empty() {
            guest_io::drop_cached(file, &written);
        }
    }

    fn note(&self, offset: u64, length: u64) {
        if self.is_direct() || length == 0 {
            return;
        }
        let new = pages(offset..offset + length);
        let mut written = lock(&self.written);
        *written =
            if written.is_empty() { new } else { written.start.min(new.start)..written.end.max(new.end) };
    }

    fn is_aligned(&self, memory: &GuestMemoryMmap, buffers: &Buffers, offset: u64) -> bool {
        offset.is_multiple_of(self.alignment.offset)
            && buffers.segments().iter().all(|s| u64::from(s.length).is_multiple_of(self.alignment.offset))
            && guest_io::are_aligned(memory, buffers, self.alignment.memory)
    }

    /// Whether a direct request was refused for being direct: then it is done once more, and all others, another way.
    fn is_refused(&self, file: &File, outcome: &io::Result<()>) -> bool {
        let refused = matches!(outcome, Err(error) if error.raw_os_error() == Some(libc::EINVAL));
        if refused {
            self.direct.store(false, Ordering::Relaxed);
            if let Err(error) = set_direct(file, false) {
                eprintln!(
                    "undercroft-vmm: a disk's file can be used neither with O_DIRECT nor without: {error}"
                );
            }
        }
        refused
    }

    fn read_bounced(
        &self,
        file: &File,
        memory: &GuestMemoryMmap,
        mut buffers: Buffers,
        mut offset: u64,
    ) -> io::Result<()> {
        let mut bounce = lock(&self.bounce);
        while !buffers.is_empty() {
            let (whole, inside) = self.part(offset, buffers.len());
            let part = aligned(&mut bounce, self.alignment.memory, (whole.end - whole.start) as usize);
            file.read_exact_at(part, whole.start)?;
            let wanted = &part[inside.clone()];
            buffers.write(memory, wanted);
            offset += wanted.len() as u64;
        }
        Ok(())
    }

    fn write_bounced(
        &self,
        file: &File,
        mut offset: u64,
        mut length: u64,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let mut bounce = lock(&self.bounce);
        while length > 0 {
            let (whole, inside) = self.part(offset, length);
            let part = aligned(&mut bounce, self.alignment.memory, (whole.end - whole.start) as usize);
            if inside.len() < part.len() {
                file.read_exact_at(part, whole.start)?;
            }
            let count = inside.len() as u64;
            fill(&mut part[inside]);
            file.write_all_at(part, whole.start)?;
            offset += count;
            length -= count;
        }
        Ok(())
    }

    /// The whole blocks that the first bytes of a request lie in, at most [`CHUNK`], and where in them they lie.
    fn part(&self, offset: u64, length: u64) -> (Range<u64>, Range<usize>) {
        let block = if self.is_direct() { self.alignment.offset } else { 1 };
        let start = offset / block * block;
        let before = offset - start;
        let end = (before + length).next_multiple_of(block).min(CHUNK as u64);
        (start..start + end, before as usize..(before + length).min(end) as usize)
    }
}

/// Whole pages around a range.
fn pages(range: Range<u64>) -> Range<u64> {
    const PAGE: u64 = 4096;
    range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE)
}

/// The part of `bytes`, made large enough, that is aligned and `length` long.
fn aligned(bytes: &mut Vec<u8>, alignment: u64, length: usize) -> &mut [u8] {
    let alignment = alignment as usize;
    bytes.resize(bytes.len().max(CHUNK + alignment), 0);
    let start = bytes.as_ptr().align_offset(alignment);
    &mut bytes[start..start + length]
}

/// Turns O_DIRECT on or off for the open file, whoever else has a descriptor of it.
pub(super) fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, on);
    fcntl(file, FcntlArg::F_SETFL(flags))?;
    Ok(())
}
