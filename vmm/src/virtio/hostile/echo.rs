//! The transport and the queues themselves: behind them a device that gives back what it reads.

use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::{Part, Program};
use crate::virtio::device::{ActivateError, Activation};
use crate::virtio::event_loop::{Handler, Registration};
use crate::virtio::queue::{VirtQueue, cannot, work_off};
use crate::virtio::{EventLoop, VirtioDevice};

pub(super) struct Subject;

/// The most that is given back at once.
const MOST: usize = 4096;

struct Echo {
    events: EventLoop,
    active: Option<(Registration, Vec<EventFd>)>,
}

struct Queues(Vec<VirtQueue>);

impl Handler for Queues {
    fn ready(&mut self, token: u32, _: EventSet) {
        let Some(queue) = self.0.get_mut(token as usize) else { return };
        queue.heard();
        work_off(queue, |memory, mut chain| {
            let mut bytes = [0; MOST];
            let count = chain.readable.read(memory, &mut bytes);
            Some(chain.writable.write(memory, &bytes[..count]) as u32)
        });
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 256, 1]
    }

    fn features(&self) -> u64 {
        1 << 29 | 1 << 28 | 1
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config(b"configuration", offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let (mut queues, mut doorbells) = (Vec::new(), Vec::new());
        for index in 0..self.queue_sizes().len() {
            let queue = VirtQueue::take(&mut activation, index)?;
            doorbells.push(queue.doorbell().try_clone().map_err(cannot("duplicate a doorbell"))?);
            queues.push(queue);
        }
        let registration = self.events.register();
        self.events.install(&registration, Arc::new(Mutex::new(Queues(queues))));
        for (token, doorbell) in (0..).zip(&doorbells) {
            registration.watch(doorbell, token, EventSet::IN).map_err(cannot("watch a doorbell"))?;
        }
        self.active = Some((registration, doorbells));
        Ok(())
    }

    fn reset(&mut self) {
        if let Some((registration, doorbells)) = self.active.take() {
            self.events.remove(&registration);
            for doorbell in &doorbells {
                registration.forget(doorbell);
            }
        }
    }
}

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        (Self, Box::new(Echo { events: events.clone(), active: None }))
    }

    fn request(&mut self, program: &mut Program<'_>, _: usize) -> Vec<Part> {
        let count = program.below(40);
        vec![Part::Out(program.bytes(count).to_vec()), Part::In(program.number())]
    }
}
