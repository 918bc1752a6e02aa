//! virtio-mem: memory that comes and goes in blocks while the machine runs (virtio 1.2, section 5.15).
//!
//! A region above all other RAM is set aside when the machine is made, mapped and not populated. The guest's kernel does not
//! know it as memory at boot, so that it costs the boot nothing; when the host asks for more memory the driver plugs blocks
//! of it, and when it asks for less, the driver gives back those that it can empty. What is unplugged is dropped.
//!
//! The state of the blocks is what host and guest agree on, not a fence: a guest that touches an unplugged block finds
//! zeros there, and the host the page that it touched. What bounds the guest is the region's size, which the
//! configuration gives.

mod request;
mod spec;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use super::event_loop::{EventLoop, Handler, Registration};
use super::queue::{VirtQueue, cannot, work_off};
use super::{guest_io, lock};
use request::{Blocks, Response};

/// Bytes of a block: a huge page of the host's and of the guest's, and a page block of Linux's, which it can empty as a
/// whole.
pub const BLOCK: u64 = 2 << 20;

struct Shared {
    blocks: Mutex<Blocks>,
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

/// The host's hold on a region.
#[derive(Clone)]
pub struct MemControl(Arc<Shared>);

impl fmt::Debug for MemControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemControl").field("plugged", &self.plugged()).finish_non_exhaustive()
    }
}

impl MemControl {
    /// Asks the guest to have so many bytes of the region, rounded down to [`BLOCK`]s. It does so as far as it can, in its own
    /// time.
    ///
    /// # Errors
    /// There can be so many at most.
    pub fn request(&self, bytes: u64) -> Result<(), u64> {
        lock(&self.0.blocks).request(bytes)?;
        if let Some(interrupt) = &*lock(&self.0.interrupt) {
            interrupt.config_changed();
        }
        Ok(())
    }

    /// Bytes that the guest has of it.
    pub fn plugged(&self) -> u64 {
        lock(&self.0.blocks).plugged_bytes()
    }

    /// Bytes that it was asked to have.
    pub fn requested(&self) -> u64 {
        lock(&self.0.blocks).requested_bytes()
    }
}

/// A virtio-mem device.
pub struct Mem {
    shared: Arc<Shared>,
    events: EventLoop,
    active: Option<(Registration, EventFd)>,
}

impl fmt::Debug for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mem").finish_non_exhaustive()
    }
}

impl Mem {
    /// A device for the region of guest memory of `bytes` at `address`, of which at most `limit` bytes are plugged, and the
    /// hold on it. It works on `events`.
    pub fn new(address: GuestAddress, bytes: u64, limit: u64, events: EventLoop) -> (Self, MemControl) {
        let blocks = Mutex::new(Blocks::new(address.0, bytes, limit));
        let shared = Arc::new(Shared { blocks, interrupt: Mutex::default() });
        (Self { shared: shared.clone(), events, active: None }, MemControl(shared))
    }
}

struct Requests {
    queue: VirtQueue,
    shared: Arc<Shared>,
}

impl Handler for Requests {
    fn ready(&mut self, _: u32, _: EventSet) {
        let Self { queue, shared } = self;
        queue.heard();
        work_off(queue, |memory, mut chain| {
            let discard = |address, length| guest_io::discard(memory, GuestAddress(address), length);
            let response = match chain.readable.read_array(memory) {
                Some(request) => lock(&shared.blocks).answer(&request, discard),
                None => Response::ERROR,
            };
            Some(chain.writable.write(memory, &response.bytes()) as u32)
        });
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        spec::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC | spec::F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&lock(&self.shared.blocks).config(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = VirtQueue::take(&mut activation, 0)?;
        let doorbell = queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"))?;
        let registration = self.events.register();
        let requests = Requests { queue, shared: self.shared.clone() };
        self.events.install(&registration, Arc::new(Mutex::new(requests)));
        let watched = registration.watch(&doorbell, 0, EventSet::IN);
        self.active = Some((registration, doorbell));
        *lock(&self.shared.interrupt) = Some(activation.interrupt);
        watched.map_err(cannot("watch the memory's queue"))
    }

    /// Section 5.15.5: a reset of the device leaves the blocks as they are; a driver that finds some plugged unplugs them.
    fn reset(&mut self) {
        *lock(&self.shared.interrupt) = None;
        if let Some((registration, doorbell)) = self.active.take() {
            self.events.remove(&registration);
            registration.forget(&doorbell);
        }
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        self.reset();
    }
}
