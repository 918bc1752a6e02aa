//! Guest memory with a hole in it, and what it should look like.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// RAM is from 0 to here,
pub(super) const LOW_END: u64 = 0x2_0000;
/// and from here
pub(super) const HIGH: u64 = 0x3_0000;
/// to here.
pub(super) const HIGH_END: u64 = 0x4_0000;

const LOW_LENGTH: usize = LOW_END as usize;
const LENGTH: usize = LOW_LENGTH + (HIGH_END - HIGH) as usize;

/// Guest memory and a copy of it that only the guest's own writes, and what devices were allowed to write, get into.
pub(super) struct Land {
    pub(super) memory: GuestMemoryMmap,
    expected: Vec<u8>,
}

impl Land {
    pub(super) fn new() -> Self {
        let low = (GuestAddress(0), LOW_LENGTH);
        let high = (GuestAddress(HIGH), (HIGH_END - HIGH) as usize);
        let memory = GuestMemoryMmap::from_ranges(&[low, high]).expect("mmap");
        let mut land = Self { memory, expected: vec![0; LENGTH] };
        // Nothing is zeros by chance: not what a device reads where nobody wrote, nor what a balloon drops.
        for at in (0..LOW_END).chain(HIGH..HIGH_END).step_by(4096) {
            land.write(at, &[0x5a; 4096]);
        }
        land
    }

    /// The guest writes; what is no memory is lost.
    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) {
        let Some(end) = address.checked_add(bytes.len() as u64) else { return };
        for (start, stop) in [(0, LOW_END), (HIGH, HIGH_END)] {
            let (from, to) = (address.max(start), end.min(stop));
            if from < to {
                let part = &bytes[(from - address) as usize..(to - address) as usize];
                self.memory.write_slice(part, GuestAddress(from)).expect("memory");
                let at = index(from);
                self.expected[at..at + part.len()].copy_from_slice(part);
            }
        }
    }

    /// What is in memory.
    pub(super) fn now(&self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        self.memory.read_slice(&mut bytes[..LOW_LENGTH], GuestAddress(0)).expect("memory");
        self.memory.read_slice(&mut bytes[LOW_LENGTH..], GuestAddress(HIGH)).expect("memory");
        bytes
    }

    /// A device may have written here. Panics if that is no memory: then it was handed over unchecked.
    pub(super) fn allow(&mut self, now: &[u8], address: u64, length: u64) {
        let end = address.checked_add(length).expect("a range that ends");
        let is_memory = end <= LOW_END || (address >= HIGH && end <= HIGH_END);
        assert!(is_memory, "{length:#x} bytes at {address:#x} were taken for memory");
        let at = index(address)..index(address) + length as usize;
        self.expected[at.clone()].copy_from_slice(&now[at]);
    }

    /// A page may have been dropped: what is zero in it now may be so. (The rest may have been written since.)
    pub(super) fn allow_dropped(&mut self, now: &[u8], page: u64) {
        let address = page * 4096;
        if address < LOW_END || (HIGH..HIGH_END).contains(&address) {
            let at = index(address)..index(address) + 4096;
            for (expected, now) in self.expected[at.clone()].iter_mut().zip(&now[at]) {
                *expected = if *now == 0 { 0 } else { *expected };
            }
        }
    }

    /// Nothing else was written.
    pub(super) fn check(&self, now: &[u8]) {
        if now == self.expected {
            return;
        }
        if let Some(at) = now.iter().zip(&self.expected).position(|(now, expected)| now != expected) {
            let address = if at < LOW_LENGTH { at as u64 } else { (at - LOW_LENGTH) as u64 + HIGH };
            panic!("a device wrote to {address:#x}, which it was not given to write");
        }
    }
}

/// Where an address of memory is in the copy.
fn index(address: u64) -> usize {
    if address < HIGH { address as usize } else { LOW_LENGTH + (address - HIGH) as usize }
}
