//! Guest memory: not touched before the guest or the loader touches it; private and anonymous, or, where a process beside the
//! VMM serves a device, a file in memory that can be handed to it.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
    /// There is no file in memory to be had.
    #[error("cannot make {mib} MiB of guest memory that can be shared (memfd_create)")]
    Share {
        /// What was asked for.
        mib: u64,
        /// Why not.
        #[source]
        source: io::Error,
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

/// Maps `mib` MiB of RAM, and the region that it can grow into: this process's own. No page of either is populated.
///
/// # Errors
/// mmap(2)'s.
pub fn map(mib: u64, growth: Option<Growth>) -> Result<GuestMemory, Error> {
    let ranges = all_ranges(mib, growth);
    GuestMemory::from_ranges(&ranges).map_err(|source| Error::Map { mib: mebibytes(&ranges), source })
}

/// The same of a memfd that other processes can be given, by each region's descriptor and offset.
///
/// It is the host's shmem: it has huge pages only where `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says so, which is
/// `never` unless somebody has changed it; and what goes back is a hole in the file, for each process that has it mapped.
///
/// # Errors
/// memfd_create(2)'s, ftruncate(2)'s and mmap(2)'s.
pub fn map_shared(mib: u64, growth: Option<Growth>) -> Result<GuestMemory, Error> {
    let ranges = all_ranges(mib, growth);
    let mib = mebibytes(&ranges);
    let cannot = |source| Error::Share { mib, source };
    let file = share(mib << 20).map_err(cannot)?;
    let mut start = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for (address, length) in ranges {
        let file = file.try_clone().map_err(cannot)?;
        regions.push((address, length, Some(FileOffset::new(file, start))));
        start += length as u64;
    }
    GuestMemory::from_ranges_with_files(regions).map_err(|source| Error::Map { mib, source })
}

fn all_ranges(mib: u64, growth: Option<Growth>) -> Vec<(GuestAddress, usize)> {
    let mut ranges = ranges(mib << 20);
    ranges.extend(growth.map(|growth| (growth.address, growth.bytes as usize)));
    ranges
}

/// Of all ranges, which are whole MiB each.
fn mebibytes(ranges: &[(GuestAddress, usize)]) -> u64 {
    ranges.iter().map(|range| range.1 as u64).sum::<u64>() >> 20
}

/// A file in memory of this length, for good: who else has it cannot cut it off, which would end this process by SIGBUS at its
/// next access.
fn share(bytes: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"guest memory", flags)?);
    file.set_len(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
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
        for memory in [map(512, Some(small)).unwrap(), map_shared(512, Some(small)).unwrap()] {
            assert_eq!((memory.num_regions(), low_end(&memory)), (2, 512 << 20));
        }
    }

    #[test]
    fn shared_memory_cannot_be_cut_off() {
        use std::os::unix::fs::MetadataExt;
        let memory = map_shared(8 << 10, None).unwrap();
        for (region, start) in memory.iter().zip([0, layout::LOW_RAM_END]) {
            let backing = region.file_offset().unwrap();
            assert_eq!((backing.start(), backing.file().metadata().unwrap().blocks()), (start, 0));
            assert!(backing.file().set_len(0).is_err() && backing.file().set_len(16 << 30).is_err());
        }
    }
}
