//! Guest memory: private, anonymous, and not touched before the guest or the loader touches it.

use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::layout;

/// Guest memory as every part of the VMM sees it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address space or the process's limits do not allow it.
    #[error("cannot map {mib} MiB of guest memory (is `ulimit -v` set?)")]
    Map {
        /// What was asked for.
        mib: u64,
        /// What mmap(2) said.
        #[source]
        source: FromRangesError,
    },
}

/// The ranges of RAM of a machine with so many bytes: one, or two around the gap below 4 GiB that devices live in.
pub fn ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(layout::LOW_RAM_END);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(layout::HIGH_RAM_START), (bytes - low) as usize));
    }
    ranges
}

/// Maps `mib` MiB. No page of it is populated.
///
/// # Errors
/// mmap(2)'s.
pub fn map(mib: u64) -> Result<GuestMemory, Error> {
    GuestMemory::from_ranges(&ranges(mib << 20)).map_err(|source| Error::Map { mib, source })
}

/// Bytes of RAM, all ranges together.
pub fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The end of the RAM that begins at address 0.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.iter().next().map_or(0, |region| region.start_addr().0 + region.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_devices_gap_free() {
        assert_eq!(ranges(512 << 20), [(GuestAddress(0), 512 << 20)]);
        let split = ranges(6 << 30);
        assert_eq!(split[0], (GuestAddress(0), layout::LOW_RAM_END as usize));
        assert_eq!(split[1].0, GuestAddress(1 << 32));
        assert_eq!(split.iter().map(|r| r.1 as u64).sum::<u64>(), 6 << 30);
    }
}
