//! One request of virtio-blk (virtio 1.2, section 5.2.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestMemoryMmap;

use super::{RANGE_SECTORS, RANGES, spec};
use crate::virtio::buffers::Buffers;
use crate::virtio::disk::{Disk, RequestError, SECTOR, SERIAL_LENGTH};
use crate::virtio::queue::Chain;

/// What requests are worked on with.
pub(super) struct Requests {
    pub(super) disk: Arc<Disk>,
    pub(super) writeback: Arc<AtomicBool>,
}

/// Why a request was not done: its status.
enum Refusal {
    Failed,
    Unsupported,
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        error.report();
        Self::Failed
    }
}

impl Requests {
    /// Does what a chain asks for; returns how many bytes of it were written, the status's included.
    pub(super) fn work(&self, memory: &GuestMemoryMmap, chain: Chain) -> u32 {
        let Chain { readable: mut out, writable: mut into, .. } = chain;
        // The status is the last byte, wherever that lies.
        let Some(data) = into.len().checked_sub(1) else { return 0 };
        let data = into.take(data);
        let (status, written) = match self.request(memory, &mut out, data) {
            Ok(written) => (spec::S_OK, written),
            Err(Refusal::Failed) => (spec::S_IOERR, 0),
            Err(Refusal::Unsupported) => (spec::S_UNSUPP, 0),
        };
        into.write(memory, &[status]);
        // A chain is shorter than 2^32 bytes, as the queue's iterator sees to.
        u32::try_from(written).unwrap_or(u32::MAX - 1) + 1
    }

    fn request(
        &self,
        memory: &GuestMemoryMmap,
        out: &mut Buffers,
        mut into: Buffers,
    ) -> Result<u64, Refusal> {
        let header = out.read_array::<{ spec::HEADER_LENGTH }>(memory).ok_or(Refusal::Failed)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        match kind {
            spec::T_IN => {
                let length = into.len();
                whole_sectors(length)?;
                self.disk.read(memory, into, sector)?;
                Ok(length)
            }
            spec::T_OUT => {
                whole_sectors(out.len())?;
                self.disk.write(memory, std::mem::take(out), sector)?;
                self.settle()?;
                Ok(0)
            }
            spec::T_FLUSH => {
                self.disk.flush()?;
                Ok(0)
            }
            spec::T_GET_ID => {
                let mut serial = [0; SERIAL_LENGTH];
                let given = self.disk.serial().as_bytes();
                serial[..given.len()].copy_from_slice(given);
                Ok(into.write(memory, &serial) as u64)
            }
            spec::T_DISCARD | spec::T_WRITE_ZEROES => {
                self.ranges(memory, kind, out)?;
                self.settle()?;
                Ok(0)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn ranges(&self, memory: &GuestMemoryMmap, kind: u32, out: &mut Buffers) -> Result<(), Refusal> {
        let length = out.len();
        if length == 0
            || !length.is_multiple_of(spec::RANGE_LENGTH as u64)
            || length > u64::from(RANGES) * spec::RANGE_LENGTH as u64
        {
            return Err(Refusal::Failed);
        }
        while let Some(range) = out.read_array::<{ spec::RANGE_LENGTH }>(memory) {
            let (sector, sectors, flags) = (le64(&range, 0), le32(&range, 8), le32(&range, 12));
            // Section 5.2.6.2: an unknown flag, and unmap on a discard, are unsupported.
            if flags & !spec::RANGE_UNMAP != 0 || (kind == spec::T_DISCARD && flags != 0) {
                return Err(Refusal::Unsupported);
            }
            if sectors > RANGE_SECTORS {
                return Err(Refusal::Failed);
            }
            if kind == spec::T_DISCARD {
                self.disk.discard(sector, sectors.into())?;
            } else {
                self.disk.write_zeroes(sector, sectors.into(), flags & spec::RANGE_UNMAP != 0)?;
            }
        }
        Ok(())
    }

    /// After a write: without a write cache it is durable now.
    fn settle(&self) -> Result<(), Refusal> {
        if !self.writeback.load(Ordering::Relaxed) {
            self.disk.flush()?;
        }
        Ok(())
    }
}

fn whole_sectors(length: u64) -> Result<(), Refusal> {
    if length > 0 && length.is_multiple_of(SECTOR) { Ok(()) } else { Err(Refusal::Failed) }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
