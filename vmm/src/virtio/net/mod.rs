//! virtio-net: one Ethernet card (virtio 1.2, section 5.1).
//!
//! Its cable goes to a process by a stream socket, on which each frame has its length before it, as QEMU's `-netdev stream`
//! has it and passt speaks it; or to a TAP device. The pieces: [`link`] the descriptor and what is on its way through it,
//! [`port`] frames between link and queues, [`checksum`] what the guest leaves to the device, [`tap`] a TAP device's calls.
//!
//! What is offered follows from what the cable can carry. A stream has no place for virtio's header, so whatever that would
//! ask of the other end is done here or not offered:
//!
//! - *Checksums of what the guest sends* are completed here, while the frame is copied. Without this feature Linux sends from
//!   one piece of memory only: it would copy each frame once more itself, into up to 64 KiB side by side, and sum it up
//!   then.
//! - *Checksums of what it receives* need no second look: the frame comes from a process of the same machine.
//! - *Segments larger than a packet* are not offered: the MTU can be 65 520, at which a packet is as large as a segment.
//! - With a *TAP device* the header goes through as it is, and the host's kernel does all of it.
//!
//! There is one pair of queues: the other end is one socket of one process. A link that is gone is a cable that was pulled
//! out (VIRTIO_NET_S_LINK_UP); [`NetControl::connect`] plugs another one in.

mod checksum;
mod link;
mod port;
mod spec;
mod tap;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use super::event_loop::{EventLoop, Registration};
use super::lock;
use super::queue::{VirtQueue, cannot};
use crate::config::{NetBackend, NetConfig};
use crate::descriptor::inherit;
pub use link::LinkError;
use link::{Kind, Link};
use port::{LINKED, Port, RECEIVE, TRANSMIT};
pub use tap::TapError;

/// Receive, transmit.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Why a network device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The descriptor is not open.
    #[error("the network's descriptor {0} is not an inherited one")]
    NotInherited(i32),
    /// Nobody listens at the unix socket.
    #[error("cannot connect the network to the unix socket {}", .path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is there cannot be used.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An eventfd could not be had.
    #[error("cannot make an eventfd for the network")]
    Event(#[source] io::Error),
}

/// What the device, its port and its control share.
struct Shared {
    kind: Kind,
    /// A link that the port is still to take.
    waiting: Mutex<Option<Link>>,
    /// What tells it.
    linked: EventFd,
    is_up: AtomicBool,
    /// The driver's, from activation to reset.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

impl Shared {
    fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Release);
    }
}

/// The host's hold on the cable.
#[derive(Clone)]
pub struct NetControl(Arc<Shared>);

impl fmt::Debug for NetControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetControl").field("is_up", &self.is_up()).finish_non_exhaustive()
    }
}

impl NetControl {
    /// Plugs the cable in somewhere else: another descriptor of the same kind. What was on its way through the one before is
    /// lost.
    ///
    /// # Errors
    /// It is none of that kind.
    pub fn connect(&self, fd: OwnedFd) -> Result<(), LinkError> {
        let link = Link::new(fd, self.0.kind)?;
        *lock(&self.0.waiting) = Some(link);
        self.0.set_up(true);
        // A counter that cannot be raised is not zero, and so wakes its reader all the same.
        let _ = self.0.linked.write(1);
        if let Some(interrupt) = &*lock(&self.0.interrupt) {
            interrupt.config_changed();
        }
        Ok(())
    }

    /// Whether the cable is plugged in.
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Acquire)
    }
}

/// A virtio-net device.
pub struct Net {
    config: [u8; spec::CONFIG_LENGTH],
    shared: Arc<Shared>,
    events: EventLoop,
    active: Option<Active>,
}

struct Active {
    registration: Registration,
    doorbells: [EventFd; 2],
    port: Arc<Mutex<Port>>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("kind", &self.shared.kind).finish_non_exhaustive()
    }
}

impl Net {
    /// A device whose cable is plugged in where `config` says, and the hold on it. It works on `events`.
    ///
    /// # Errors
    /// There is nothing of the kind.
    pub fn new(config: &NetConfig, events: EventLoop) -> Result<(Self, NetControl), NetError> {
        let (kind, fd) = match &config.backend {
            NetBackend::Stream => (Kind::Stream, None),
            NetBackend::Tap => (Kind::Tap, None),
            NetBackend::StreamFd(fd) => (Kind::Stream, Some(inherited(*fd)?)),
            NetBackend::TapFd(fd) => (Kind::Tap, Some(inherited(*fd)?)),
            NetBackend::StreamPath(path) => {
                let connect = |source| NetError::Connect { path: path.clone(), source };
                (Kind::Stream, Some(UnixStream::connect(path).map_err(connect)?.into()))
            }
        };
        let link = fd.map(|fd| Link::new(fd, kind)).transpose()?;
        Self::assemble(config, kind, link, events)
    }

    fn assemble(
        config: &NetConfig,
        kind: Kind,
        link: Option<Link>,
        events: EventLoop,
    ) -> Result<(Self, NetControl), NetError> {
        let mut bytes = [0; spec::CONFIG_LENGTH];
        bytes[..6].copy_from_slice(&config.mac.0);
        bytes[spec::CONFIG_PAIRS..][..2].copy_from_slice(&1_u16.to_le_bytes());
        bytes[spec::CONFIG_MTU..][..2].copy_from_slice(&config.mtu.to_le_bytes());
        let linked = EventFd::new(EFD_NONBLOCK).map_err(NetError::Event)?;
        let is_up = AtomicBool::new(link.is_some());
        let (waiting, interrupt) = (Mutex::new(link), Mutex::default());
        let shared = Arc::new(Shared { kind, waiting, linked, is_up, interrupt });
        Ok((Self { config: bytes, shared: shared.clone(), events, active: None }, NetControl(shared)))
    }
}

fn inherited(fd: i32) -> Result<OwnedFd, NetError> {
    inherit(fd).ok_or(NetError::NotInherited(fd))
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        spec::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let own = spec::F_MAC | spec::F_MTU | spec::F_STATUS | spec::F_MERGEABLE;
        let checksums = spec::F_CHECKSUM | spec::F_GUEST_CHECKSUM;
        let segments = match self.shared.kind {
            Kind::Stream => 0,
            Kind::Tap => {
                spec::F_GUEST_TSO4 | spec::F_GUEST_TSO6 | spec::F_GUEST_ECN | spec::F_HOST_SEGMENTATION
            }
        };
        own | checksums | segments | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config;
        let status = if self.shared.is_up.load(Ordering::Acquire) { spec::STATUS_LINK_UP } else { 0 };
        config[spec::CONFIG_STATUS..][..2].copy_from_slice(&status.to_le_bytes());
        super::read_config(&config, offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = VirtQueue::take(&mut activation, 0)?;
        let transmit = VirtQueue::take(&mut activation, 1)?;
        let clone =
            |queue: &VirtQueue| queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"));
        let doorbells = [clone(&receive)?, clone(&transmit)?];
        let linked = self.shared.linked.try_clone().map_err(cannot("duplicate the network's event"))?;
        let registration = self.events.register();
        let port = Arc::new(Mutex::new(Port {
            shared: self.shared.clone(),
            registration: registration.clone(),
            interrupt: activation.interrupt.clone(),
            features: activation.features,
            receive,
            transmit,
            link: None,
            linked,
        }));
        *lock(&self.shared.interrupt) = Some(activation.interrupt);
        self.events.install(&registration, port.clone());
        let watched = registration
            .watch(&doorbells[0], RECEIVE, EventSet::IN)
            .and_then(|()| registration.watch(&doorbells[1], TRANSMIT, EventSet::IN))
            .and_then(|()| registration.watch(&self.shared.linked, LINKED, EventSet::IN));
        self.active = Some(Active { registration, doorbells, port });
        // The loop takes the link that waits.
        let _ = self.shared.linked.write(1);
        watched.map_err(cannot("watch the network's queues"))
    }

    fn reset(&mut self) {
        let Some(Active { registration, doorbells, port }) = self.active.take() else { return };
        self.events.remove(&registration);
        *lock(&self.shared.interrupt) = None;
        for doorbell in &doorbells {
            registration.forget(doorbell);
        }
        registration.forget(&self.shared.linked);
        // The cable stays plugged in for the next driver.
        if let Some(link) = lock(&port).link.take() {
            registration.forget(&link);
            lock(&self.shared.waiting).get_or_insert(link);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}
