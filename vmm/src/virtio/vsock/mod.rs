//! virtio-vsock: streams between ports of the guest and unix sockets of the host (virtio 1.2, section 5.10).
//!
//! There is no vhost-vsock and no context id on the host: the VMM itself connects a guest's connection to port *P* of
//! context id 2 to the unix socket `PATH_P`, and a program that connects to `PATH` and writes `CONNECT P\n` to port *P*
//! of the guest. The program that started the VMM may hand over sockets that are connected already ([`carrier`]). The pieces:
//! [`packet`] the wire's numbers, [`connection`] one stream with its credit and its two directions, [`multiplexer`] all of
//! them between the queues and epoll.

mod carrier;
#[cfg(test)]
mod carrier_tests;
mod connection;
mod greeting;
mod multiplexer;
mod packet;
mod sockets;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, VirtioDevice};
use super::event_loop::{EventLoop, Registration};
use super::queue::{VirtQueue, cannot};
use crate::config::VsockConfig;
use carrier::Carrier;
use multiplexer::{CARRIER, LISTENER, Multiplexer, RECEIVE, TRANSMIT};

/// Receive, transmit, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Why a vsock device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context id is one of the reserved ones.
    #[error("a guest's context id is at least 3 (and not 4294967295), not {0}")]
    ContextId(u32),
    /// The carrier's descriptor is not such a socket.
    #[error("vsock.carrier_fd {0} is not an inherited socket of sequenced packets")]
    Carrier(i32),
    /// The unix socket cannot be made.
    #[error("cannot listen at the unix socket {}", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not. `InvalidInput` is a path longer than 108 bytes.
        source: io::Error,
    },
}

/// A virtio-vsock device.
pub struct Vsock {
    cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
    carrier: Option<Arc<Carrier>>,
    events: EventLoop,
    active: Option<Active>,
}

struct Active {
    registration: Registration,
    doorbells: [EventFd; 2],
    multiplexer: Arc<Mutex<Multiplexer>>,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock").field("cid", &self.cid).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Vsock {
    /// A device that listens at its unix socket from now on; programs that connect wait until the guest is there. A
    /// socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// The context id is reserved, or the socket cannot be made.
    pub fn new(config: &VsockConfig, events: EventLoop) -> Result<Self, VsockError> {
        if config.cid < 3 || config.cid == u32::MAX {
            return Err(VsockError::ContextId(config.cid));
        }
        let inherit = |fd| Carrier::inherit(fd).map(Arc::new).ok_or(VsockError::Carrier(fd));
        let carrier = config.carrier_fd.map(inherit).transpose()?;
        let path = config.socket.clone();
        let listener = listen(&path).map_err(|source| VsockError::Listen { path: path.clone(), source })?;
        Ok(Self { cid: config.cid.into(), path, listener: Arc::new(listener), carrier, events, active: None })
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether there is a unix socket at which nobody listens any more.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refusal = UnixStream::connect(path).err().map(|error| error.kind());
    is_socket && refusal == Some(io::ErrorKind::ConnectionRefused)
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        packet::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // No SEQPACKET: unix stream sockets have no record boundaries to keep.
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = VirtQueue::take(&mut activation, 0)?;
        let transmit = VirtQueue::take(&mut activation, 1)?;
        // The third queue is for events, of which there is one: that the context id changed. It does not.
        let clone =
            |queue: &VirtQueue| queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"));
        let doorbells = [clone(&receive)?, clone(&transmit)?];
        let registration = self.events.register();
        let multiplexer = Arc::new(Mutex::new(Multiplexer::new(
            self.cid,
            self.path.clone(),
            self.listener.clone(),
            self.carrier.clone(),
            registration.clone(),
            receive,
            transmit,
        )));
        self.events.install(&registration, multiplexer.clone());
        let active = Active { registration: registration.clone(), doorbells, multiplexer };
        let [receive, transmit] = &active.doorbells;
        let watched = registration
            .watch(receive, RECEIVE, EventSet::IN)
            .and_then(|()| registration.watch(transmit, TRANSMIT, EventSet::IN))
            .and_then(|()| {
                registration.watch(&*self.listener, LISTENER, EventSet::IN | EventSet::EDGE_TRIGGERED)
            })
            .and_then(|()| {
                let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
                self.carrier.iter().try_for_each(|carrier| registration.watch(&**carrier, CARRIER, events))
            });
        let outcome = watched.map_err(cannot("watch the vsock device's queues"));
        self.active = Some(active);
        outcome
    }

    fn reset(&mut self) {
        if let Some(Active { registration, doorbells, multiplexer }) = self.active.take() {
            self.events.remove(&registration);
            for doorbell in &doorbells {
                registration.forget(doorbell);
            }
            registration.forget(&*self.listener);
            if let Some(carrier) = &self.carrier {
                registration.forget(&**carrier);
            }
            // With it go the connections, and whoever holds their other ends sees them end.
            drop(multiplexer);
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
        let _ = std::fs::remove_file(&self.path);
    }
}
