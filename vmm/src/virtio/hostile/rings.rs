//! Queues as a hostile guest lays them out, and chains as it twists them.

use super::program::Program;
use super::{Guest, Part, Subject, land};

/// Buffers are taken from here on.
pub(super) const BUFFERS: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// How a guest lays its queues out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it should.
    Apart,
    /// The used ring lies in the descriptor table.
    UsedInTable,
    /// The used ring lies in the available ring.
    UsedInAvailable,
    /// All end where memory does, before the hole.
    AtTheEdge,
}

impl Kind {
    pub(super) fn of(number: u8) -> Self {
        match number {
            5 => Self::UsedInTable,
            6 => Self::UsedInAvailable,
            7 => Self::AtTheEdge,
            _ => Self::Apart,
        }
    }
}

/// A queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_descriptor: u16,
    index: u16,
}

impl Ring {
    pub(super) fn new(kind: Kind, queue: usize, size: u16) -> Self {
        let base = 0x1000 + 0x2000 * queue as u64;
        let plain = Self {
            size,
            descriptors: base,
            available: base + 0x1000,
            used: base + 0x1400,
            ..Self::default()
        };
        match kind {
            Kind::Apart => plain,
            Kind::UsedInTable => Self { used: plain.descriptors + 8, ..plain },
            Kind::UsedInAvailable => Self { used: plain.available + 4, ..plain },
            Kind::AtTheEdge => {
                let end = land::LOW_END - 0x2000 * queue as u64;
                let used = (end - 6 - 8 * u64::from(size)) & !3;
                let available = (used - 6 - 2 * u64::from(size)) & !1;
                let descriptors = (available - 16 * u64::from(size)) & !15;
                Self { descriptors, available, used, ..plain }
            }
        }
    }
}

/// A descriptor.
#[derive(Debug, Clone, Copy)]
struct Raw {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Raw {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

impl<S: Subject> Guest<S> {
    /// Puts a request into a queue, once in a while twisted.
    pub(super) fn add(&mut self, program: &mut Program<'_>, queue: usize, parts: Vec<Part>) {
        let mut chain = Vec::new();
        for part in parts {
            let (bytes, length, flags) = match part {
                Part::Out(bytes) => {
                    let length = bytes.len() as u32;
                    (bytes, length, 0)
                }
                Part::In(length) => (Vec::new(), length, WRITE),
            };
            let address = self.buffer(length.into());
            self.land.write(address, &bytes);
            chain.push(Raw { address, length, flags, next: 0 });
        }
        let mut is_table = false;
        for _ in 0..program.pick(&[0, 0, 0, 1, 1, 2]) {
            is_table |= self.twist(program, queue, &mut chain);
        }
        if is_table || program.once_in(6) {
            self.add_indirect(program, queue, &chain);
        } else {
            let head = self.write_chain(queue, &chain, program.once_in(40));
            self.offer(queue, head);
        }
    }

    /// Does one thing to a chain that a driver must not do, or does not; true if it must go into a table.
    fn twist(&mut self, program: &mut Program<'_>, queue: usize, chain: &mut Vec<Raw>) -> bool {
        let at = program.below(chain.len());
        let kind = program.below(12);
        let Some(raw) = chain.get_mut(at) else { return false };
        match kind {
            0 => raw.flags ^= WRITE,
            1 => {
                let address = self.place(program);
                chain[at].address = address;
            }
            2 => raw.length = program.number(),
            3 => raw.length = 0,
            4 => raw.address = self.rings[queue].used,
            5 => raw.address = self.rings[queue].available,
            6 => raw.address = self.rings[queue].descriptors,
            7 => {
                // In pieces of a few bytes.
                let (raw, size) = (*raw, program.below(7) as u32 + 1);
                let count = (raw.length / size).min(200);
                let piece =
                    |i| Raw { address: raw.address.wrapping_add(u64::from(i * size)), length: size, ..raw };
                chain.splice(at..=at, (0..count).map(piece));
            }
            8 => {
                // The same over and over: longer than any chain, or larger than memory.
                let raw = *raw;
                let count = program.pick(&[2, 16, 300, 1030]);
                chain.splice(at..at, std::iter::repeat_n(raw, count));
                return count > 16;
            }
            9 => {
                let raw = *raw;
                chain.insert(at, Raw { length: 0, ..raw });
            }
            10 => {
                chain.remove(at);
            }
            _ => raw.flags |= u16::from(program.byte()) & 0xfc,
        }
        false
    }

    /// Writes a chain into the descriptor table from the next free descriptor on; returns its head.
    fn write_chain(&mut self, queue: usize, chain: &[Raw], is_circle: bool) -> u16 {
        let ring = &mut self.rings[queue];
        let size = ring.size.max(1);
        let head = ring.next_descriptor % size;
        let mut slot = head;
        let mut table = Vec::new();
        for (i, raw) in chain.iter().enumerate() {
            let is_last = i + 1 == chain.len();
            let next = if is_last { head } else { (slot + 1) % size };
            let flags = raw.flags | if is_last && !is_circle { 0 } else { NEXT };
            table.push((ring.descriptors.wrapping_add(16 * u64::from(slot)), Raw { flags, next, ..*raw }));
            slot = (slot + 1) % size;
        }
        ring.next_descriptor = slot;
        for (address, raw) in table {
            self.land.write(address, &raw.bytes());
        }
        head
    }

    /// Puts a chain into an indirect table, or into one that is none.
    fn add_indirect(&mut self, program: &mut Program<'_>, queue: usize, chain: &[Raw]) {
        let address = self.buffer(16 * chain.len() as u64);
        let mut table = Vec::new();
        for (i, raw) in (1_u16..).zip(chain) {
            let flags = raw.flags | if usize::from(i) < chain.len() { NEXT } else { 0 };
            table.extend(Raw { flags, next: i, ..*raw }.bytes());
        }
        let mut length = table.len() as u32;
        match program.below(16) {
            // A table in a table, itself.
            12 => table.splice(..0, Raw { address, length, flags: INDIRECT, next: 0 }.bytes()).for_each(drop),
            // A circle.
            13 => table.splice(..0, Raw { address, length: 0, flags: NEXT, next: 0 }.bytes()).for_each(drop),
            14 => length = program.number(),
            15 => length = length.wrapping_add(8),
            _ => {}
        }
        self.land.write(address, &table);
        let head = self.write_chain(queue, &[Raw { address, length, flags: INDIRECT, next: 0 }], false);
        self.offer(queue, head);
    }

    /// Descriptors that belong to nothing, and one of them offered.
    pub(super) fn raw_descriptors(&mut self, program: &mut Program<'_>, queue: usize) {
        let slot = u64::from(program.byte());
        for i in 0..=program.below(4) as u64 {
            let address = self.place(program);
            let raw = Raw {
                address,
                length: program.number(),
                flags: u16::from(program.byte() & 7),
                next: u16::from(program.byte()),
            };
            let at = self.rings[queue].descriptors.wrapping_add(16 * (slot + i));
            self.land.write(at, &raw.bytes());
        }
        self.offer(queue, slot as u16);
    }

    /// Puts a head into the available ring, whatever it is.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.index % ring.size.max(1));
        ring.index = ring.index.wrapping_add(1);
        let ring = *ring;
        self.land.write(ring.available + 4 + 2 * slot, &head.to_le_bytes());
        self.land.write(ring.available + 2, &ring.index.to_le_bytes());
    }

    /// Sets the available ring's index, whatever it is.
    pub(super) fn set_available(&mut self, queue: usize, index: u16) {
        self.rings[queue].index = index;
        let at = self.rings[queue].available + 2;
        self.land.write(at, &index.to_le_bytes());
    }
}
