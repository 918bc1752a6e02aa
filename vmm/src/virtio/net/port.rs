//! Between the queues and the link: frames, one way and the other.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::checksum::{Nonsense, Wanted};
use super::link::{Frame, Kind, Link, LinkError};
use super::{Shared, spec};
use crate::virtio::complaints::complain;
use crate::virtio::device::Interrupt;
use crate::virtio::event_loop::{Handler, Registration};
use crate::virtio::lock;
use crate::virtio::queue::{Chain, VirtQueue, work_off};

pub(super) const RECEIVE: u32 = 0;
pub(super) const TRANSMIT: u32 = 1;
/// There is another link.
pub(super) const LINKED: u32 = 2;
const LINK: u32 = 3;

/// What works on the loop from activation to reset.
pub(super) struct Port {
    pub(super) shared: Arc<Shared>,
    pub(super) registration: Registration,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) features: u64,
    pub(super) receive: VirtQueue,
    pub(super) transmit: VirtQueue,
    pub(super) link: Option<Link>,
    pub(super) linked: EventFd,
}

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    /// It is in the guest's buffers, or can never be.
    Done,
    /// It waits for buffers.
    Waits,
}

impl Handler for Port {
    fn ready(&mut self, token: u32, events: EventSet) {
        match token {
            RECEIVE => {
                self.receive.heard();
                self.feed();
            }
            TRANSMIT => {
                self.transmit.heard();
                self.send();
            }
            LINKED => {
                let _ = self.linked.read();
                self.take_link();
            }
            _ => {
                if let Some(link) = &mut self.link {
                    let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
                    let readable = gone || events.contains(EventSet::IN);
                    let writable = gone || events.contains(EventSet::OUT);
                    link.note(readable, writable);
                    if readable {
                        self.feed();
                    }
                    if writable {
                        self.send();
                    }
                }
            }
        }
    }
}

impl Port {
    /// Takes the link that is there for it, if one is, in the place of the one that it had.
    pub(super) fn take_link(&mut self) {
        let Some(link) = lock(&self.shared.waiting).take() else { return };
        self.drop_link();
        if link.kind() == Kind::Tap
            && let Err(error) = super::tap::set_offloads(link.fd(), self.features)
        {
            complain(format_args!("the TAP device does not take what the guest's driver does: {error}"));
        }
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if let Err(error) = self.registration.watch(&link, LINK, events) {
            return self.lose(&LinkError::Unusable(error));
        }
        self.link = Some(link);
        self.feed();
        self.send();
    }

    /// Lets go of the link; a frame that is half written is lost with it.
    fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.registration.forget(&link);
        }
    }

    /// The link is gone: the guest sees its cable pulled out, and its frames are lost until there is another.
    fn lose(&mut self, why: &LinkError) {
        self.drop_link();
        complain(format_args!("the network is down until it is given another link: {why}"));
        let next = lock(&self.shared.waiting);
        // Another one may be there already.
        if next.is_none() {
            self.shared.set_up(false);
            self.interrupt.config_changed();
        }
    }

    /// Hands frames to the guest until there are none, or no buffers for them: a queue's length at a go.
    fn feed(&mut self) {
        let memory = self.receive.memory().clone();
        let is_mergeable = self.features & spec::F_MERGEABLE != 0;
        let is_valid = self.features & spec::F_GUEST_CHECKSUM != 0;
        for _ in 0..self.receive.size() {
            let Some(link) = &mut self.link else { return self.receive.signal() };
            let delivery = match link.receive() {
                Ok(Some(frame)) => deliver(&mut self.receive, &memory, &frame, is_mergeable, is_valid),
                Ok(None) => return self.receive.signal(),
                Err(error) => {
                    self.lose(&error);
                    self.receive.signal();
                    // What waited for the link to take it is lost.
                    return self.send();
                }
            };
            match delivery {
                Delivery::Done => link.consume(),
                Delivery::Waits => return self.receive.signal(),
            }
        }
        self.receive.ring();
        self.receive.signal();
    }

    /// Takes the guest's frames as far as the link has room for them.
    fn send(&mut self) {
        let Self { link, transmit, features, .. } = self;
        let mut broken = None;
        work_off(transmit, |memory, chain| {
            // Without a cable everything is lost.
            let Some(link) = link.as_mut().filter(|_| broken.is_none()) else { return Some(0) };
            match link.has_room() {
                Ok(true) => take(link, memory, chain, *features),
                Ok(false) => return None,
                Err(error) => broken = Some(error),
            }
            Some(0)
        });
        let flushed = link.as_mut().map_or(Ok(()), Link::flush);
        if let Some(error) = broken.or(flushed.err()) {
            self.lose(&error);
            // Notifications may be off: what the guest has added meanwhile is lost, too.
            self.transmit.ring();
        }
    }
}

/// Puts a frame of the guest's into the link. One that is none is dropped.
fn take(link: &mut Link, memory: &GuestMemoryMmap, mut chain: Chain, features: u64) {
    let Some(mut header) = chain.readable.read_array::<{ spec::HEADER_LENGTH }>(memory) else { return };
    let length = match usize::try_from(chain.readable.len()) {
        Ok(length) if (spec::ETHERNET_LENGTH..=spec::FRAME_MAX).contains(&length) => length,
        _ => return,
    };
    let may_ask = features & spec::F_CHECKSUM != 0;
    let wanted = match link.kind() {
        Kind::Stream => Wanted::read(&header, may_ask),
        // The host's kernel does what the header says, and checks it.
        Kind::Tap if header[1] != spec::GSO_NONE && features & spec::F_HOST_SEGMENTATION == 0 => {
            Err(Nonsense)
        }
        Kind::Tap => {
            header[0] &= if may_ask { spec::FLAG_NEEDS_CHECKSUM } else { 0 };
            Ok(None)
        }
    };
    let Ok(wanted) = wanted else { return };
    // One whose checksum has no place in it is dropped like one that is too short.
    let _ = link.put(&header, length, |frame| {
        if chain.readable.read(memory, frame) < frame.len() {
            return Err(Nonsense);
        }
        wanted.map_or(Ok(()), |wanted| wanted.complete(frame))
    });
}

/// Puts a frame into as many of the guest's buffers as it takes; into one only, if the driver does not know better.
fn deliver(
    queue: &mut VirtQueue,
    memory: &GuestMemoryMmap,
    frame: &Frame<'_>,
    is_mergeable: bool,
    is_valid: bool,
) -> Delivery {
    if frame.bytes.len() < spec::ETHERNET_LENGTH {
        return Delivery::Done;
    }
    let needed = (spec::HEADER_LENGTH + frame.bytes.len()) as u64;
    let most = if is_mergeable { usize::from(queue.size()) } else { 1 };
    let mut chains: Vec<Chain> = Vec::new();
    let mut room = 0;
    while room < needed {
        let next = if chains.len() < most { queue.pop() } else { None };
        match next {
            Some(chain) => {
                room += chain.writable.len();
                chains.push(chain);
            }
            None if chains.len() < most && queue.enable_notifications() => {}
            None => {
                let is_hopeless = chains.len() == most;
                chains.iter().for_each(|_| queue.unpop());
                return if is_hopeless { Delivery::Done } else { Delivery::Waits };
            }
        }
    }
    let mut header = frame.header.unwrap_or_default();
    if frame.header.is_none() && is_valid {
        // It came from a process of this machine: nothing between can have changed a bit of it.
        header[0] = spec::FLAG_DATA_VALID;
    }
    // At most a queue's length.
    header[spec::HEADER_BUFFERS..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let (mut header, mut bytes) = (&header[..], frame.bytes);
    for mut chain in chains {
        let head = chain.writable.write(memory, header);
        header = &header[head..];
        let body = if header.is_empty() { chain.writable.write(memory, bytes) } else { 0 };
        bytes = &bytes[body..];
        // At most a frame.
        queue.push(chain.head, (head + body) as u32);
    }
    Delivery::Done
}
