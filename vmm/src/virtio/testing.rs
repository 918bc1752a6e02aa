//! A driver for tests: it negotiates through the registers and lays queues and buffers out in guest memory, rightly or,
//! where a test wants it, wrongly.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{Interrupt, VirtioDevice};
use super::{MmioTransport, mmio};
use crate::bus::Device;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const MEMORY: u64 = 32 << 20;
/// Each queue's rings have this much room, from the first on at this address.
const RINGS: u64 = 0x1_0000;
/// Buffers are taken from here on.
const BUFFERS: u64 = 4 << 20;

/// A descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// One part of a request.
pub(crate) enum Part<'a> {
    /// Bytes for the device to read.
    Out(&'a [u8]),
    /// Room for it to write.
    In(u32),
}

struct Ring {
    size: u16,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) transport: MmioTransport,
    rings: Vec<Ring>,
    next_buffer: u64,
}

impl Driver {
    /// A driver that has not said anything to its device yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap(), device)
    }

    /// The same with memory of the test's own, [`MEMORY`] bytes of it from 0 on.
    pub(crate) fn with(memory: GuestMemoryMmap, device: Box<dyn VirtioDevice>) -> Self {
        let transport = MmioTransport::new(device, memory.clone(), Interrupt::new().unwrap()).unwrap();
        Self { memory, transport, rings: Vec::new(), next_buffer: BUFFERS }
    }

    /// A driver whose device works, with all features that are offered but EVENT_IDX.
    pub(crate) fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        driver.start(!(1 << 29));
        driver
    }

    /// Takes the offered features that are in `wanted` and goes on to DRIVER_OK.
    pub(crate) fn start(&mut self, wanted: u64) {
        self.negotiate(wanted);
        for index in 0..self.transport.doorbells().len() {
            self.set_up_queue(index);
        }
        self.write(mmio::STATUS, 15);
    }

    pub(crate) fn negotiate(&mut self, wanted: u64) {
        self.write(mmio::STATUS, 1);
        self.write(mmio::STATUS, 3);
        for select in 0..2 {
            self.write(mmio::DEVICE_FEATURES_SEL, select);
            self.write(mmio::DRIVER_FEATURES_SEL, select);
            let offered = self.read(mmio::DEVICE_FEATURES);
            self.write(mmio::DRIVER_FEATURES, offered & (wanted >> (32 * select)) as u32);
        }
        self.write(mmio::STATUS, 11);
        assert_eq!(self.read(mmio::STATUS), 11);
    }

    pub(crate) fn set_up_queue(&mut self, index: usize) {
        self.write(mmio::QUEUE_SEL, index as u32);
        assert_eq!(self.read(mmio::QUEUE_READY), 0);
        let size = self.read(mmio::QUEUE_NUM_MAX) as u16;
        self.write(mmio::QUEUE_NUM, size.into());
        let base = rings(index);
        self.memory.write_slice(&[0; RINGS as usize], GuestAddress(base)).unwrap();
        for (low, high, at) in [
            (mmio::QUEUE_DESC_LOW, mmio::QUEUE_DESC_HIGH, base),
            (mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DRIVER_HIGH, base + 0x8000),
            (mmio::QUEUE_DEVICE_LOW, mmio::QUEUE_DEVICE_HIGH, base + 0xc000),
        ] {
            self.write(low, at as u32);
            self.write(high, (at >> 32) as u32);
        }
        self.write(mmio::QUEUE_READY, 1);
        self.rings.truncate(index);
        self.rings.push(Ring { size, next_descriptor: 0, available: 0, seen: 0 });
    }

    pub(crate) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub(crate) fn interrupt(&self) -> &Arc<Interrupt> {
        self.transport.interrupt().unwrap()
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.read(mmio::STATUS) & mmio::STATUS_NEEDS_RESET != 0
    }

    /// Takes a buffer of guest memory.
    pub(crate) fn buffer(&mut self, length: u64) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += length.next_multiple_of(64);
        if self.next_buffer > MEMORY {
            self.next_buffer = BUFFERS;
            return self.buffer(length);
        }
        at
    }

    /// Writes descriptors as they are given, from slot `at` on.
    pub(crate) fn describe(&self, queue: usize, at: u16, raw: &[Raw]) {
        for (slot, raw) in (u64::from(at)..).zip(raw) {
            self.describe_at(rings(queue) + 16 * slot, raw);
        }
    }

    pub(crate) fn describe_at(&self, address: u64, raw: &Raw) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&raw.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&raw.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&raw.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&raw.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    /// Puts `head` into the available ring, whatever it is.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let base = rings(queue) + 0x8000;
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.available % ring.size);
        self.memory.write_obj(head, GuestAddress(base + 4 + 2 * slot)).unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.memory.store(ring.available, GuestAddress(base + 2), Ordering::Release).unwrap();
    }

    /// Sets the available ring's index, whatever it is.
    pub(crate) fn set_available(&mut self, queue: usize, index: u16) {
        self.memory.store(index, GuestAddress(rings(queue) + 0x8002), Ordering::Release).unwrap();
    }

    pub(crate) fn ring(&self, queue: usize) {
        self.write(mmio::QUEUE_NOTIFY, queue as u32);
    }

    /// Adds a request; returns its head and where its parts are.
    pub(crate) fn add(&mut self, queue: usize, parts: &[Part<'_>]) -> (u16, Vec<u64>) {
        let size = self.rings[queue].size;
        let head = self.rings[queue].next_descriptor;
        let mut places = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let slot = self.rings[queue].next_descriptor;
            let next = (slot + 1) % size;
            self.rings[queue].next_descriptor = next;
            let (bytes, length, write) = match part {
                Part::Out(bytes) => (*bytes, bytes.len() as u32, 0),
                Part::In(length) => (&[][..], *length, WRITE),
            };
            let address = self.buffer(length.into());
            self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            let flags = write | if i + 1 < parts.len() { NEXT } else { 0 };
            self.describe(queue, slot, &[Raw { address, length, flags, next }]);
            places.push(address);
        }
        self.offer(queue, head);
        (head, places)
    }

    /// What the device has given back since the last time: heads and lengths.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let base = rings(queue) + 0xc000;
        let index: u16 = self.memory.load(GuestAddress(base + 2), Ordering::Acquire).unwrap();
        let ring = &mut self.rings[queue];
        let mut used = Vec::new();
        while ring.seen != index {
            let at = base + 4 + 8 * u64::from(ring.seen % ring.size);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            used.push((head as u16, self.memory.read_obj(GuestAddress(at + 4)).unwrap()));
            ring.seen = ring.seen.wrapping_add(1);
        }
        used
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Waits for an interrupt of a device with a thread of its own, and acknowledges it. Ten seconds are for ever.
    pub(crate) fn wait(&self) {
        let event = self.interrupt().event();
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        let count = epoll.wait(10_000, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(count, 1, "the device does not answer");
        let _ = event.read();
        self.write(mmio::INTERRUPT_ACK, self.read(mmio::INTERRUPT_STATUS));
    }

    /// Adds a request to a device with a thread, waits until it is done, and returns what is in the rooms that it had
    /// and the length that was given back.
    pub(crate) fn request(&mut self, queue: usize, parts: &[Part<'_>]) -> (Vec<Vec<u8>>, u32) {
        let (head, places) = self.add(queue, parts);
        self.ring(queue);
        let length = loop {
            if let Some((used, length)) = self.used(queue).pop() {
                assert_eq!(used, head);
                break length;
            }
            self.wait();
        };
        let written = parts
            .iter()
            .zip(places)
            .filter_map(|(part, at)| match part {
                Part::In(length) => Some(self.bytes(at, *length as usize)),
                Part::Out(_) => None,
            })
            .collect();
        (written, length)
    }
}

fn rings(queue: usize) -> u64 {
    RINGS * (1 + queue as u64)
}
