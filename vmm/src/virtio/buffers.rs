//! Pieces of guest memory that one request reads from or writes to.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A run of guest memory that was checked to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes, never 0.
    pub length: u32,
}

/// The segments of one direction of a descriptor chain, consumed from the front.
///
/// Where one segment ends and the next begins means nothing (virtio 1.2, section 2.7.4.1): devices see bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffers {
    segments: Vec<Segment>,
    first: usize,
    length: u64,
}

impl Buffers {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a segment at the end; the caller has checked it.
    pub(super) fn push(&mut self, segment: Segment) {
        if segment.length > 0 {
            self.length += u64::from(segment.length);
            self.segments.push(segment);
        }
    }

    /// Adds all of `other` at the end.
    pub(super) fn append(&mut self, other: &Self) {
        for segment in other.segments() {
            self.push(*segment);
        }
    }

    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether none are left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What is left.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    /// Takes the first `count` bytes, or all if there are fewer.
    #[must_use]
    pub fn take(&mut self, count: u64) -> Self {
        let mut front = Self::new();
        let mut wanted = count;
        while wanted > 0 && self.first < self.segments.len() {
            let segment = &mut self.segments[self.first];
            // The smaller of the two, so it fits the type of one of them.
            let n = u32::try_from(wanted).map_or(segment.length, |wanted| wanted.min(segment.length));
            front.push(Segment { address: segment.address, length: n });
            segment.address = GuestAddress(segment.address.0 + u64::from(n));
            segment.length -= n;
            if segment.length == 0 {
                self.first += 1;
            }
            self.length -= u64::from(n);
            wanted -= u64::from(n);
        }
        front
    }

    /// Drops the first `count` bytes.
    pub fn skip(&mut self, count: u64) {
        let _ = self.take(count);
    }

    /// Copies from the front out of guest memory into `to`; returns how many bytes there were.
    pub fn read(&mut self, memory: &GuestMemoryMmap, to: &mut [u8]) -> usize {
        let mut done = 0;
        for segment in self.take(to.len() as u64).segments() {
            let part = &mut to[done..done + segment.length as usize];
            if memory.read_slice(part, segment.address).is_err() {
                break;
            }
            done += part.len();
        }
        done
    }

    /// Copies `from` to the front into guest memory; returns how many bytes there was room for.
    pub fn write(&mut self, memory: &GuestMemoryMmap, from: &[u8]) -> usize {
        let mut done = 0;
        for segment in self.take(from.len() as u64).segments() {
            let part = &from[done..done + segment.length as usize];
            if memory.write_slice(part, segment.address).is_err() {
                break;
            }
            done += part.len();
        }
        done
    }

    /// Copies a structure of `N` bytes from the front; nothing if fewer are left.
    pub fn read_array<const N: usize>(&mut self, memory: &GuestMemoryMmap) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.len() >= N as u64 && self.read(memory, &mut bytes) == N).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    #[test]
    fn bytes_are_taken_across_segments() {
        let memory = memory();
        let mut buffers = Buffers::new();
        for (address, length) in [(0x100, 3), (0x200, 0), (0x300, 5)] {
            buffers.push(Segment { address: GuestAddress(address), length });
        }
        assert_eq!(buffers.len(), 8);
        assert_eq!(buffers.clone().write(&memory, b"abcdefghij"), 8);
        let mut front = buffers.take(4);
        assert_eq!((front.len(), buffers.len()), (4, 4));
        assert_eq!(front.read_array::<4>(&memory), Some(*b"abcd"));
        assert_eq!(buffers.read_array::<5>(&memory), None, "four are left, and stay");
        assert_eq!(buffers.read_array::<4>(&memory), Some(*b"efgh"));
        assert!(buffers.is_empty() && buffers.segments().is_empty());
        assert!(buffers.take(u64::MAX).is_empty());
    }
}
