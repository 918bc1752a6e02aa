//! A driver without a guest: requests for a back end out of this process's own memory.
//!
//! It has one queue that is used (virtio 1.2, section 2.7, split), the second one, as virtio-fs has its requests there; the first
//! only exists. Each request has a *slot*: two descriptors, which stay where they are, and room for the request and its answer.
//! The memory is a file, as a guest's would be, and no page of it is there before it is used; slots that were used last are
//! used first.
//!
//! What comes back is checked as a guest's chains are: a process that gives back what it was not given is of no use any more.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Backend, BackendError};
use crate::memory::{self, GuestMemory};
use crate::virtio::queue::Rings;

/// Requests that are under way at a time, at most. (FUSE has at most twelve that nobody waits for, `max_background`.)
const SLOTS: u16 = 16;
/// Descriptors: a request's, and its answer's.
const QUEUE_SIZE: u16 = 2 * SLOTS;
/// Which queue has the requests.
const REQUESTS: u32 = 1;
/// Where a queue's rings are (section 2.7: the table has 16 bytes a descriptor, the available ring 6 and 2 a descriptor, the used
/// ring 6 and 8 a descriptor).
const RINGS: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// Where the slots' room begins.
const ROOM: u64 = 0x1_0000;

/// Why there is no driver, or no more.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// There is no event for it.
    #[error("cannot make an eventfd")]
    Event(#[source] io::Error),
    /// The back end is of no use.
    #[error("the back end is of no use: {0}")]
    Backend(#[from] BackendError),
    /// The back end gave something back that it did not have, or more than there is room for.
    #[error("the back end gave back descriptor {index} with {length} bytes, which it cannot have")]
    Used {
        /// The descriptor.
        index: u32,
        /// Bytes that it says to have written.
        length: u32,
    },
    /// A request has more bytes than there is room for.
    #[error("a request of {length} bytes, where there is room for {room}")]
    TooLong {
        /// Its bytes.
        length: usize,
        /// Of a slot.
        room: usize,
    },
}

/// The room for a request and its answer, while nobody else has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u16);

/// A request that was answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    slot: u16,
    /// Bytes of the answer; 0 where there is none.
    pub length: usize,
}

/// A driver. Dropping it hangs up.
#[derive(Debug)]
pub struct Driver {
    backend: Backend,
    memory: GuestMemory,
    /// Bytes of a slot's request, and of its answer.
    room: usize,
    free: Vec<u16>,
    /// Of each slot, the room for its answer while it is under way.
    under_way: [Option<usize>; SLOTS as usize],
    /// The available ring's index, and the used ring's as far as it was seen.
    available: u16,
    used: u16,
    doorbell: EventFd,
    answers: EventFd,
}

impl Driver {
    /// One whose back end is at the other end of the socket, with `room` bytes for each request, and as many for its answer.
    ///
    /// # Errors
    /// There is no memory, or nobody at the other end who speaks vhost-user.
    pub fn connect(socket: OwnedFd, room: usize) -> Result<Self, DriverError> {
        let room = room.next_multiple_of(4096);
        let bytes = ROOM + 2 * u64::from(SLOTS) * room as u64;
        let memory = memory::map_shared(bytes.div_ceil(1 << 20), None)?;
        let event = || {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            EventFd::from_value_and_flags(0, flags).map_err(|errno| DriverError::Event(errno.into()))
        };
        let (unused, doorbell, answers) = (event()?, event()?, event()?);
        let mut backend = Backend::connect(socket, &memory)?;
        let queues = [
            (0, rings(0), &unused as _, &unused as _),
            (REQUESTS, rings(REQUESTS), &doorbell as _, &answers as _),
        ];
        backend.start(1 << VIRTIO_F_VERSION_1, &queues)?;
        let (free, under_way) = ((0..SLOTS).rev().collect(), [None; SLOTS as usize]);
        Ok(Self { backend, memory, room, free, under_way, available: 0, used: 0, doorbell, answers })
    }

    /// Becomes readable when something was answered.
    pub fn answers(&self) -> BorrowedFd<'_> {
        self.answers.as_fd()
    }

    /// Becomes readable when the back end has ended.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.backend.socket()
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether there is room for a request.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Room for a request. A slot that is dropped is lost: it is to be [submitted](Self::submit).
    pub fn slot(&mut self) -> Option<Slot> {
        self.free.pop().map(Slot)
    }

    /// Where a request of so many bytes is written.
    ///
    /// # Errors
    /// There is not so much room.
    pub fn request(&self, slot: &Slot, length: usize) -> Result<VolatileSlice<'_, BS<'_, ()>>, DriverError> {
        self.slice(self.place(slot.0, 0), length)
    }

    /// Gives a request of so many bytes to the back end, and room for so many bytes of its answer.
    ///
    /// # Errors
    /// There is not so much room.
    // By value: who has submitted it has the room no more.
    #[expect(clippy::needless_pass_by_value)]
    pub fn submit(&mut self, slot: Slot, length: usize, answer: usize) -> Result<(), DriverError> {
        let Slot(slot) = slot;
        let (from, to) = (self.place(slot, 0), self.place(slot, 1));
        self.slice(from, length).and(self.slice(to, answer))?;
        let first = 2 * slot;
        self.describe(first, from, length as u32, VRING_DESC_F_NEXT as u16, first + 1);
        self.describe(first + 1, to, answer as u32, VRING_DESC_F_WRITE as u16, 0);
        let rings = rings(REQUESTS);
        let place = rings.available + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        self.write(first, place);
        self.available = self.available.wrapping_add(1);
        self.under_way[usize::from(slot)] = Some(answer);
        // What it points at is there for who sees it.
        let index = GuestAddress(rings.available + 2);
        self.memory.store(self.available, index, Ordering::Release).expect("the rings are in memory");
        // It is full only if it was rung 2^64 times.
        let _ = self.doorbell.write(1);
        Ok(())
    }

    /// A request that was answered, if there is one.
    ///
    /// # Errors
    /// The back end gives back what it does not have.
    pub fn answered(&mut self) -> Result<Option<Answer>, DriverError> {
        // Before the look, so that what comes after it rings anew.
        let _ = self.answers.read();
        let rings = rings(REQUESTS);
        let index = self.memory.load::<u16>(GuestAddress(rings.used + 2), Ordering::Acquire);
        if self.used == index.expect("the rings are in memory") {
            return Ok(None);
        }
        let place = rings.used + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        let [index, length]: [u32; 2] = [0, 4].map(|at| self.read(place + at));
        self.used = self.used.wrapping_add(1);
        let slot = u16::try_from(index / 2).ok().filter(|slot| index % 2 == 0 && *slot < SLOTS);
        let has = |slot: &u16| self.under_way[usize::from(*slot)].is_some_and(|room| length as usize <= room);
        match slot.filter(has) {
            Some(slot) => Ok(Some(Answer { slot, length: length as usize })),
            None => Err(DriverError::Used { index, length }),
        }
    }

    /// An answer's bytes.
    pub fn answer(&self, answer: &Answer) -> VolatileSlice<'_, BS<'_, ()>> {
        self.slice(self.place(answer.slot, 1), answer.length).expect("it was looked at when it came")
    }

    /// Its room is free for another request.
    // As above.
    #[expect(clippy::needless_pass_by_value)]
    pub fn done(&mut self, answer: Answer) {
        self.under_way[usize::from(answer.slot)] = None;
        self.free.push(answer.slot);
    }

    fn place(&self, slot: u16, which: u64) -> u64 {
        ROOM + (2 * u64::from(slot) + which) * self.room as u64
    }

    fn slice(&self, place: u64, length: usize) -> Result<VolatileSlice<'_, BS<'_, ()>>, DriverError> {
        let slice = Some(()).filter(|()| length <= self.room);
        let slice = slice.and_then(|()| self.memory.get_slice(GuestAddress(place), length).ok());
        slice.ok_or(DriverError::TooLong { length, room: self.room })
    }

    /// struct virtq_desc, section 2.7.5.
    fn describe(&self, descriptor: u16, address: u64, length: u32, flags: u16, next: u16) {
        let place = rings(REQUESTS).descriptors + 16 * u64::from(descriptor);
        self.write(address, place);
        self.write(length, place + 8);
        self.write(flags, place + 12);
        self.write(next, place + 14);
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, place: u64) {
        self.memory.write_obj(value, GuestAddress(place)).expect("the rings are in memory");
    }

    fn read<T: vm_memory::ByteValued>(&self, place: u64) -> T {
        self.memory.read_obj(GuestAddress(place)).expect("the rings are in memory")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.backend.hang_up();
    }
}

/// Where a queue is.
fn rings(queue: u32) -> Rings {
    let base = u64::from(queue) * RINGS;
    Rings { size: QUEUE_SIZE, descriptors: base, available: base + AVAILABLE, used: base + USED }
}
