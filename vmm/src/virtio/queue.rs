//! A virtqueue as a device sees it: chains come out checked, and go back used.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::{Buffers, Segment};
use super::complaints::complain;
use super::device::{ActivateError, Activation, Interrupt};
#[cfg(any(test, feature = "fuzzing"))]
use super::hostile::ledger;

/// The most segments in one chain. A chain may not be longer than its queue (virtio 1.2, section 2.7.5.3.1), but Linux
/// puts longer ones into indirect tables; no device here invites more than a quarter of this.
const MAX_SEGMENTS: usize = 1024;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (section 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A request: what the driver gave the device to read and to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The index by which the chain is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

/// How a driver broke the rules of virtqueues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The available ring's index is further ahead than the queue is long, or cannot be read.
    #[error("the available ring's index is impossible")]
    AvailableIndex,
    /// A chain's head is no descriptor.
    #[error("descriptor {0} does not exist")]
    Head(u16),
    /// A chain goes in a circle, leaves its table, or its indirect table is none.
    #[error("the chain at descriptor {0} does not end as it should")]
    Endless(u16),
    /// A chain has more parts than any request needs.
    #[error("the chain at descriptor {0} has more than {MAX_SEGMENTS} parts")]
    TooLong(u16),
    /// A descriptor names what is no guest memory.
    #[error("the chain at descriptor {head} names {length:#x} bytes at {address:#x}, which is no memory")]
    Address {
        /// The chain.
        head: u16,
        /// Where.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A readable descriptor follows a writable one (section 2.7.4.2).
    #[error("the chain at descriptor {0} has a readable part after a writable one")]
    Order(u16),
}

/// Where a queue lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// How many descriptors it has.
    pub size: u16,
    /// The descriptor table's guest physical address.
    pub descriptors: u64,
    /// The available ring's.
    pub available: u64,
    /// The used ring's.
    pub used: u64,
}

/// One queue of an activated device.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    doorbell: EventFd,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    /// The driver broke the rules.
    broken: bool,
    /// Chains were given back since the driver was last considered for an interrupt.
    unsignalled: bool,
    #[cfg(any(test, feature = "fuzzing"))]
    index: usize,
}

impl VirtQueue {
    /// Takes over queue `index` of an activation.
    ///
    /// # Errors
    /// The driver did not set it up.
    pub fn take(activation: &mut Activation, index: usize) -> Result<Self, ActivateError> {
        Self::take_optional(activation, index)?.ok_or(ActivateError::QueueMissing(index))
    }

    /// Takes over queue `index` of an activation, if the driver set it up.
    ///
    /// # Errors
    /// Its doorbell cannot be duplicated.
    pub fn take_optional(activation: &mut Activation, index: usize) -> Result<Option<Self>, ActivateError> {
        let Some((slot, doorbell)) = activation.queues.get_mut(index) else { return Ok(None) };
        let queue = std::mem::take(slot);
        if !queue.ready() {
            return Ok(None);
        }
        let doorbell = doorbell
            .try_clone()
            .map_err(|source| ActivateError::Io { what: "duplicate a queue's doorbell", source })?;
        #[cfg(any(test, feature = "fuzzing"))]
        ledger::note_rings(&activation.interrupt, &queue);
        Ok(Some(Self {
            queue,
            doorbell,
            memory: activation.memory.clone(),
            interrupt: activation.interrupt.clone(),
            broken: false,
            unsignalled: false,
            #[cfg(any(test, feature = "fuzzing"))]
            index,
        }))
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where its rings are, for somebody else to work on it.
    pub(super) fn rings(&self) -> Rings {
        Rings {
            size: self.queue.size(),
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
        }
    }

    /// Goes on where that somebody has stopped: at the first chain that was not given back, if chains were given back in the
    /// order in which they came. If they were not, the driver finds some back twice.
    pub(super) fn take_over(&mut self) {
        let index = |ring: u64| {
            let at = GuestAddress(ring.checked_add(2)?);
            self.memory.load::<u16>(at, Ordering::Acquire).ok().map(u16::from_le)
        };
        let (available, used) = (index(self.queue.avail_ring()), index(self.queue.used_ring()));
        match (available, used) {
            (Some(available), Some(used)) if available.wrapping_sub(used) <= self.queue.size() => {
                self.queue.set_next_avail(used);
                self.queue.set_next_used(used);
            }
            _ => self.violate(&Violation::AvailableIndex),
        }
    }

    /// What rings when the driver has added chains.
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Silences the doorbell. False if it had not rung.
    pub fn heard(&self) -> bool {
        self.doorbell.read().is_ok()
    }

    /// Rings one's own doorbell, to go on later where one stopped for others' sake.
    pub fn ring(&self) {
        let _ = self.doorbell.write(1);
    }

    /// How many chains the queue holds: what a device works off at one go before it lets others have a turn.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain, if there is one.
    ///
    /// After a violation there is none, ever, and the driver was told that the device needs a reset.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.broken {
            return None;
        }
        match self.try_pop() {
            Ok(chain) => {
                #[cfg(any(test, feature = "fuzzing"))]
                ledger::note_chain(&self.interrupt, &self.memory, self.index, chain.as_ref());
                chain
            }
            Err(violation) => {
                self.violate(&violation);
                None
            }
        }
    }

    /// Puts the chain that was popped last back; it will be popped again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Stops the queue: the driver did what it must not.
    pub fn violate(&mut self, violation: &dyn std::error::Error) {
        if !self.broken {
            self.broken = true;
            complain(format_args!("a virtio device stops until it is reset: {violation}"));
            self.interrupt.needs_reset();
        }
    }

    /// Gives a chain back, `written` bytes of it written.
    pub fn push(&mut self, head: u16, written: u32) {
        if !self.broken && self.queue.add_used(&self.memory, head, written).is_err() {
            self.violate(&Violation::Head(head));
        }
        self.unsignalled = true;
    }

    /// Interrupts the driver, if it wants to hear of the chains given back since the last time.
    pub fn signal(&mut self) {
        if std::mem::take(&mut self.unsignalled) && !self.broken && self.is_signal_wanted() {
            self.interrupt.used();
        }
    }

    /// Asks for no notifications while the queue is worked off anyway.
    pub fn disable_notifications(&mut self) {
        // The ring was checked to be memory; and this is advice only.
        let _ = self.queue.disable_notification(&self.memory);
    }

    /// Asks for notifications again. True if chains came in meanwhile, for which there will be none.
    pub fn enable_notifications(&mut self) -> bool {
        !self.broken && self.queue.enable_notification(&self.memory).unwrap_or(false)
    }

    fn is_signal_wanted(&mut self) -> bool {
        if self.queue.event_idx_enabled() {
            return self.queue.needs_notification(&self.memory).unwrap_or(true);
        }
        // What was used must be visible before the flag is read: the driver clears it and then looks at the ring.
        fence(Ordering::SeqCst);
        let flags = self.memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        flags.map_or(true, |flags| u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, Violation> {
        let size = self.queue.size();
        let mut available = self.queue.iter(&self.memory).map_err(|_| Violation::AvailableIndex)?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        if descriptors.head_index() >= size {
            return Err(Violation::Head(descriptors.head_index()));
        }
        check(&self.memory, descriptors).map(Some)
    }
}

/// Walks a chain once. The iterator itself ends silently at what it cannot follow; so a chain whose last part that it
/// yields still promises another one was cut off.
fn check<M>(memory: &GuestMemoryMmap, descriptors: DescriptorChain<M>) -> Result<Chain, Violation>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let head = descriptors.head_index();
    let mut chain = Chain { head, ..Chain::default() };
    let mut more = true;
    let mut count = 0;
    let mut writing = false;
    for descriptor in descriptors {
        more = descriptor.has_next();
        count += 1;
        if count > MAX_SEGMENTS {
            return Err(Violation::TooLong(head));
        }
        let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
        if segment.length > 0
            && !memory.check_range(segment.address, segment.length as usize, Permissions::No)
        {
            return Err(Violation::Address { head, address: segment.address.0, length: segment.length });
        }
        if descriptor.is_write_only() {
            writing = true;
            chain.writable.push(segment);
        } else if writing {
            return Err(Violation::Order(head));
        } else {
            chain.readable.push(segment);
        }
    }
    if more { Err(Violation::Endless(head)) } else { Ok(chain) }
}

/// Lets `work` go through what is in `queue`, at most one queue's length of chains at a go, so that a driver that adds
/// as fast as they are taken cannot keep a thread to itself. `work` returns how many bytes it wrote, or nothing to put
/// the chain back and stop (it will be offered again when [`VirtQueue::ring`] or the driver rings).
pub fn work_off(queue: &mut VirtQueue, work: impl FnMut(&GuestMemoryMmap, Chain) -> Option<u32>) {
    work_off_until(queue, &|| false, work);
}

/// [`work_off`] that takes no further chain once `is_stopped`.
pub(super) fn work_off_until(
    queue: &mut VirtQueue,
    is_stopped: &dyn Fn() -> bool,
    mut work: impl FnMut(&GuestMemoryMmap, Chain) -> Option<u32>,
) {
    let memory = queue.memory.clone();
    let mut budget = queue.size();
    queue.disable_notifications();
    'again: loop {
        while !is_stopped() {
            let Some(chain) = queue.pop() else { break };
            let head = chain.head;
            match work(&memory, chain) {
                Some(written) => queue.push(head, written),
                None => {
                    queue.unpop();
                    // Notifications stay off: there is something in the queue that waits for another event.
                    break 'again;
                }
            }
            budget = budget.saturating_sub(1);
            if budget == 0 {
                queue.ring();
                break 'again;
            }
        }
        if is_stopped() || !queue.enable_notifications() {
            break;
        }
    }
    queue.signal();
}

/// Wraps an error with what was tried.
pub(super) fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> ActivateError {
    move |source| ActivateError::Io { what, source }
}
