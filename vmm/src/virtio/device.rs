//! What a virtio device is to its transport, and what it is given when its driver is ready.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio;

/// A virtio device behind a [transport](super::transport::MmioTransport).
///
/// The transport calls it from vCPU threads, one call at a time. Its life is: features and configuration are read,
/// [`activate`](Self::activate) once the driver sets DRIVER_OK, [`reset`](Self::reset), and from the beginning again.
pub trait VirtioDevice: Send {
    /// The device's type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// How long each queue may be at most: a power of two, one for each queue.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits offered. VIRTIO_F_VERSION_1 is the transport's and offered always.
    fn features(&self) -> u64;

    /// Reads the configuration space at `offset`. What lies past its end stays as it is in `data` (zeros).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space at `offset`. What cannot be written is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready: from now on the queues may be worked on.
    ///
    /// # Errors
    /// The device cannot work (no thread, no file descriptor, a queue that it must have is not ready); the transport
    /// then tells the driver that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver wants the device as it was before [`activate`](Self::activate). When this returns, nothing of the
    /// device touches guest memory any more. It may be called at any time.
    fn reset(&mut self);
}

/// What a device works with from DRIVER_OK to reset.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// The features that the driver accepted, a subset of those offered and VIRTIO_F_VERSION_1.
    pub features: u64,
    /// The queues, each with the doorbell that its notifications ring. One that the driver did not set up is not
    /// `ready()`; all others were checked to lie in guest memory.
    pub queues: Vec<(Queue, EventFd)>,
    /// The device's way to tell the driver something.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot do without.
    #[error("the driver set up no queue {0}")]
    QueueMissing(usize),
    /// A file descriptor or thread could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A device's interrupt: the InterruptStatus register's bits and the event that KVM turns into an interrupt.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    event: EventFd,
    /// What hostile programs have handed over, where one is at work.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) ledger: std::sync::Mutex<Option<super::hostile::ledger::Ledger>>,
}

impl Interrupt {
    /// An interrupt that has not been raised.
    ///
    /// # Errors
    /// No eventfd could be had.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
            #[cfg(any(test, feature = "fuzzing"))]
            ledger: std::sync::Mutex::default(),
        }))
    }

    /// The event to give to KVM as an irqfd.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// A buffer was used. Whether the driver wants to hear of it is for the caller to find out
    /// ([`VirtQueue::signal`](super::queue::VirtQueue::signal) does).
    pub fn used(&self) {
        self.raise(mmio::INTERRUPT_USED_BUFFER);
    }

    /// The configuration space changed (virtio 1.2, section 4.2.2.1: its generation changes with it).
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(mmio::INTERRUPT_CONFIG_CHANGE);
    }

    /// The device met something that it cannot go on after; the driver must reset it (section 2.1.2).
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(mmio::INTERRUPT_CONFIG_CHANGE);
    }

    /// Whether [`needs_reset`](Self::needs_reset) was called since the last reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The driver wrote to InterruptACK.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The ConfigGeneration register.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The device was reset. The generation goes on, so that a reader on the way still notices.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        // The counter can only be full if nobody has read it for 2^64 - 2 interrupts.
        let _ = self.event.write(1);
    }
}
