//! virtio-rng: the host's random numbers (virtio 1.2, section 5.4).

use std::fmt;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::event_loop::{EventLoop, Handler, Registration};
use super::guest_io;
use super::queue::{VirtQueue, cannot, work_off};

/// Device type.
const ID: u32 = 4;
/// The most that one request gets, whatever room it has: a request of gigabytes would hold up all other devices.
const MAX_BYTES: usize = 4096;

/// A virtio-rng device.
pub struct Rng {
    events: EventLoop,
    active: Option<(Registration, EventFd)>,
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng").finish_non_exhaustive()
    }
}

impl Rng {
    /// A device that works on `events`.
    pub fn new(events: EventLoop) -> Self {
        Self { events, active: None }
    }
}

struct Requests(VirtQueue);

impl Handler for Requests {
    fn ready(&mut self, _: u32, _: EventSet) {
        self.0.heard();
        work_off(&mut self.0, |memory, mut chain| {
            let mut bytes = [0; MAX_BYTES];
            let wanted = usize::try_from(chain.writable.len()).map_or(MAX_BYTES, |n| n.min(MAX_BYTES));
            // Section 5.4.6.1: the driver looks at how much it got; without randomness that is nothing, never zeros.
            let written = match guest_io::random(&mut bytes[..wanted]) {
                Ok(()) => chain.writable.write(memory, &bytes[..wanted]),
                Err(_) => 0,
            };
            Some(written as u32)
        });
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = VirtQueue::take(&mut activation, 0)?;
        let doorbell = queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"))?;
        let registration = self.events.register();
        self.events.install(&registration, Arc::new(Mutex::new(Requests(queue))));
        let watched = registration.watch(&doorbell, 0, EventSet::IN);
        self.active = Some((registration, doorbell));
        watched.map_err(cannot("watch the rng's queue"))
    }

    fn reset(&mut self) {
        if let Some((registration, doorbell)) = self.active.take() {
            self.events.remove(&registration);
            registration.forget(&doorbell);
        }
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.reset();
    }
}
