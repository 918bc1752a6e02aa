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

/// The region that memory may be plugged into while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Where it begins; a multiple of [`layout::GROWTH_ALIGN`], above all other RAM.
    pub address: GuestAddress,
    /// Its size in bytes, rounded up to [`layout::GROWTH_ALIGN`]: Linux adds nothing smaller.
    pub bytes: u64,
    /// How many of them are ever used.
    pub limit: u64,
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

/// Where a machine that boots with `bytes` can grow to `most`; nowhere if that is no more.
///
/// Above 4 GiB in any case: what is plugged then belongs to none of the zones that old devices need, which would be filled
/// from it.
pub fn growth(bytes: u64, most: u64) -> Option<Growth> {
    let limit = most.checked_sub(bytes).filter(|limit| *limit > 0)?;
    let (start, length) = *ranges(bytes).last()?;
    let end = (start.0 + length as u64).max(layout::HIGH_RAM_START);
    Some(Growth {
        address: GuestAddress(end.next_multiple_of(layout::GROWTH_ALIGN)),
        bytes: limit.next_multiple_of(layout::GROWTH_ALIGN),
        limit,
    })
}

/// Maps `mib` MiB of RAM, and the region that it can grow into. No page of either is populated.
///
/// # Errors
/// mmap(2)'s.
pub fn map(mib: u64, growth: Option<Growth>) -> Result<GuestMemory, Error> {
    let mut ranges = ranges(mib << 20);
    ranges.extend(growth.map(|growth| (growth.address, growth.bytes as usize)));
    GuestMemory::from_ranges(&ranges).map_err(|source| {
        let bytes: u64 = ranges.iter().map(|range| range.1 as u64).sum();
        Error::Map { mib: bytes >> 20, source }
    })
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

    #[test]
    fn what_is_plugged_later_lies_above_all_else() {
        assert_eq!(growth(512 << 20, 512 << 20), None);
        let small = growth(512 << 20, (8 << 30) + (2 << 20)).unwrap();
        assert_eq!((small.address.0, small.limit), (1 << 32, (7 << 30) + (514 << 20)));
        assert_eq!(small.bytes, (7 << 30) + (640 << 20));
        let large = growth((6 << 30) + (1 << 20), 8 << 30).unwrap();
        assert_eq!(large.address.0 % layout::GROWTH_ALIGN, 0);
        assert!(large.address.0 >= layout::HIGH_RAM_START + (6 << 30) + (1 << 20) - layout::LOW_RAM_END);
        let memory = map(512, Some(small)).unwrap();
        assert_eq!((memory.num_regions(), low_end(&memory)), (2, 512 << 20));
    }
}
