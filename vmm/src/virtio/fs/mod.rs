//! virtio-fs: a folder of the host's (virtio 1.2, section 5.11).
//!
//! The VMM has no part in what files are. A process beside it, virtiofsd, is given guest memory and the queues over a socket
//! (vhost-user), and works on them itself; the guest's notifications go to it straight from KVM. What comes back goes through
//! the VMM: with virtio over MMIO an interrupt means nothing without its bit in the device's InterruptStatus, which only the VMM
//! can set. So the back end rings an event of the event loop's, and that sets the bit and raises the interrupt.
//!
//! The pieces: [`queues`] what is done while the driver works, [`spec`] the numbers; the conversation with the process is
//! [`vhost_user`](crate::vhost_user)'s.
//!
//! *A back end that is gone*, or does not answer, does not come back: what it knew of the guest's open files went with it. The
//! device takes its queues over and answers whatever is in them, and comes into them, with ENOTCONN. Otherwise the guest's
//! programs would wait for ever, where no signal reaches them.

mod queues;
mod spec;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::complaints::complain;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::event_loop::{EventLoop, Registration};
use super::queue::{VirtQueue, cannot};
use super::{lock, read_config};
use crate::config::FolderConfig;
use crate::descriptor::inherit;
use crate::vhost_user::{Backend, BackendError};
use queues::{CALL, Queues};
pub use spec::TAG_LENGTH;

/// High priority, requests. As long as QEMU's virtiofsd takes; Linux asks for as many pages at once as there are descriptors.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Ring features that the device knows how to go on with when its back end is gone.
const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why a folder's device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The descriptor is not open.
    #[error("the descriptor {fd} of the folder {tag:?} is not an inherited one")]
    NotInherited {
        /// Which folder.
        tag: String,
        /// Its descriptor.
        fd: i32,
    },
    /// There is nobody to serve it.
    #[error("the folder {tag:?} has no server")]
    Backend {
        /// Which folder.
        tag: String,
        /// What is wrong with it.
        #[source]
        source: BackendError,
    },
}

/// A virtio-fs device.
pub struct Fs {
    tag: String,
    config: [u8; spec::CONFIG_LENGTH],
    /// Without, it is gone from the beginning.
    backend: Option<Backend>,
    is_gone: Arc<AtomicBool>,
    events: EventLoop,
    active: Option<Active>,
}

struct Active {
    registration: Registration,
    queues: Arc<Mutex<Queues>>,
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Fs {
    /// A device whose back end is at the other end of the inherited socket. It works on `events`, as far as it works itself;
    /// `memory` must be of files.
    ///
    /// # Errors
    /// There is no such socket, or nobody at its other end who speaks vhost-user.
    pub fn new(config: &FolderConfig, memory: &GuestMemoryMmap, events: EventLoop) -> Result<Self, FsError> {
        let tag = config.tag.clone();
        let socket = inherit(config.fd).ok_or(FsError::NotInherited { tag: tag.clone(), fd: config.fd })?;
        Self::connect(&tag, socket, memory, events).map_err(|source| FsError::Backend { tag, source })
    }

    fn connect(
        tag: &str,
        socket: OwnedFd,
        memory: &GuestMemoryMmap,
        events: EventLoop,
    ) -> Result<Self, BackendError> {
        Ok(Self::assemble(tag, Some(Backend::connect(socket, memory)?), events))
    }

    /// A device whose back end is gone already.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn orphan(tag: &str, events: EventLoop) -> Self {
        Self::assemble(tag, None, events)
    }

    fn assemble(tag: &str, backend: Option<Backend>, events: EventLoop) -> Self {
        let mut config = [0; spec::CONFIG_LENGTH];
        let length = tag.len().min(TAG_LENGTH);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        config[TAG_LENGTH..].copy_from_slice(&spec::REQUEST_QUEUES.to_le_bytes());
        let is_gone = Arc::new(AtomicBool::new(backend.is_none()));
        Self { tag: tag.into(), config, backend, is_gone, events, active: None }
    }

    fn give_up(&self, why: &BackendError) {
        if !self.is_gone.swap(true, Ordering::AcqRel) {
            complain(format_args!("the folder {:?} is gone: {why}", self.tag));
        }
        if let Some(backend) = &self.backend {
            backend.hang_up();
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        spec::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.backend.as_ref().map_or(RING_FEATURES, |backend| backend.features() & RING_FEATURES)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config, offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = [VirtQueue::take(&mut activation, 0)?, VirtQueue::take(&mut activation, 1)?];
        let event = || EventFd::new(EFD_NONBLOCK).map_err(cannot("make a folder's event"));
        let calls = [event()?, event()?];
        let socket = self.backend.as_ref().map(|backend| backend.socket().try_clone_to_owned());
        let socket = socket.transpose().map_err(cannot("duplicate a folder's socket"))?;
        let registration = self.events.register();
        let watched = calls
            .iter()
            .zip(CALL..)
            .try_for_each(|(call, token)| registration.watch(call, token, EventSet::IN));
        watched.map_err(cannot("watch a folder's queues"))?;
        if let Some(backend) = self.backend.as_mut().filter(|_| !self.is_gone.load(Ordering::Acquire)) {
            let [high, requests] = &queues;
            let parts = [
                (0, high.rings(), high.doorbell() as _, &calls[0] as _),
                (1, requests.rings(), requests.doorbell() as _, &calls[1] as _),
            ];
            if let Err(error) = backend.start(activation.features, &parts) {
                self.give_up(&error);
            }
        }
        let mut queues = Queues {
            tag: self.tag.clone(),
            queues,
            calls,
            socket,
            registration: registration.clone(),
            interrupt: activation.interrupt,
            is_gone: self.is_gone.clone(),
        };
        let ready = queues.begin().map_err(cannot("watch a folder's queues"));
        let queues = Arc::new(Mutex::new(queues));
        self.events.install(&registration, queues.clone());
        self.active = Some(Active { registration, queues });
        ready
    }

    fn reset(&mut self) {
        let Some(Active { registration, queues }) = self.active.take() else { return };
        self.events.remove(&registration);
        lock(&queues).end();
        for index in 0..QUEUE_SIZES.len() as u32 {
            if self.is_gone.load(Ordering::Acquire) {
                return;
            }
            let Some(backend) = &mut self.backend else { return };
            if let Err(error) = backend.stop(index) {
                self.give_up(&error);
            }
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}
