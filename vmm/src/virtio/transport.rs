//! The register block of virtio over MMIO: virtio 1.2, section 4.2.2, and the status machine of section 3.1.
//!
//! What a driver may do depends on how far it is (`Stage`): features are chosen until FEATURES_OK, queues are set up
//! between FEATURES_OK and DRIVER_OK, and from DRIVER_OK on they belong to the device and the registers about them are
//! dead. A driver that writes them then has lost its senses; it is told that the device needs a reset.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::complaints::complain;
use super::device::{Activation, Interrupt, VirtioDevice};
use super::{lock, mmio};
use crate::bus;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A device's queue is not of a length that a queue can have.
    #[error("a queue cannot hold {0} descriptors: it must be a power of two up to 32768")]
    QueueSize(u16),
    /// There are no more file descriptors.
    #[error("cannot make a queue's doorbell")]
    Doorbell(#[from] io::Error),
}

/// A virtio device at its place in the guest's address space, or a place without one.
pub struct MmioTransport {
    doorbells: Vec<EventFd>,
    interrupt: Option<Arc<Interrupt>>,
    /// Nothing for a placeholder.
    registers: Option<Mutex<Registers>>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport").field("queues", &self.doorbells.len()).finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts a transport before a device.
    ///
    /// # Errors
    /// The device wants an impossible queue, or no eventfd could be had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, TransportError> {
        let sizes = device.queue_sizes();
        let mut doorbells = Vec::with_capacity(sizes.len());
        let mut queues = Vec::with_capacity(sizes.len());
        for &size in sizes {
            queues.push(Queue::new(size).map_err(|_| TransportError::QueueSize(size))?);
            doorbells.push(EventFd::new(EFD_NONBLOCK)?);
        }
        let registers = Registers {
            doorbells: doorbells.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?,
            interrupt: interrupt.clone(),
            device,
            memory,
            queues,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        };
        Ok(Self { doorbells, interrupt: Some(interrupt), registers: Some(Mutex::new(registers)) })
    }

    /// A place where no device is: its DeviceID reads 0, and drivers leave it alone (section 4.2.2.2).
    pub fn placeholder() -> Self {
        Self { doorbells: Vec::new(), interrupt: None, registers: None }
    }

    /// The queues' doorbells, by index: to be given to KVM as ioeventfds at [`mmio::QUEUE_NOTIFY`], each with its index
    /// as the value (four bytes) that rings it.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// The device's interrupt, to be given to KVM as an irqfd. A placeholder has none.
    pub fn interrupt(&self) -> Option<&Arc<Interrupt>> {
        self.interrupt.as_ref()
    }

    /// Resets the device as its driver would: to be called before guest memory goes, when a machine ends.
    pub fn reset(&self) {
        if let Some(registers) = &self.registers {
            lock(registers).reset();
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.reset();
    }
}

impl bus::Device for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(mmio::CONFIG) {
            if let Some(registers) = &self.registers {
                lock(registers).device.read_config(at, data);
            }
            return;
        }
        // Section 4.2.2.2: the driver uses only aligned accesses of 32 bits to the registers.
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let value = match (offset, &self.registers) {
            (mmio::MAGIC_VALUE, _) => mmio::MAGIC,
            (mmio::DEVICE_VERSION, _) => mmio::VERSION,
            (mmio::VENDOR_ID, _) => mmio::VENDOR,
            (_, None) => 0,
            // Read by every interrupt's handler, so without waiting for the lock.
            (mmio::INTERRUPT_STATUS, Some(_)) => self.interrupt.as_ref().map_or(0, |i| i.status()),
            (_, Some(registers)) => lock(registers).read(offset),
        };
        *data = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(registers) = &self.registers else { return };
        if let Some(at) = offset.checked_sub(mmio::CONFIG) {
            lock(registers).device.write_config(at, data);
            return;
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match offset {
            mmio::INTERRUPT_ACK => {
                if let Some(interrupt) = &self.interrupt {
                    interrupt.acknowledge(value);
                }
            }
            // KVM rings the doorbell itself; this is for notifications that it does not know.
            mmio::QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    let _ = doorbell.write(1);
                }
            }
            _ => lock(registers).write(offset, value),
        }
    }
}

/// How far a driver is with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not (yet) settled on features.
    Negotiating,
    /// Features are settled, queues may be set up.
    Settled,
    /// DRIVER_OK: the device works.
    Live,
    /// The guest has given up.
    Failed,
}

struct Registers {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    doorbells: Vec<EventFd>,
    queues: Vec<Queue>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl Registers {
    fn stage(&self) -> Stage {
        if self.status & mmio::STATUS_FAILED != 0 {
            Stage::Failed
        } else if self.status & mmio::STATUS_DRIVER_OK != 0 {
            Stage::Live
        } else if self.status & mmio::STATUS_FEATURES_OK != 0 {
            Stage::Settled
        } else {
            Stage::Negotiating
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            mmio::DEVICE_ID => self.device.device_type(),
            mmio::DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            mmio::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max_size())),
            mmio::QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            mmio::STATUS => {
                let needs_reset = self.status != 0 && self.interrupt.is_reset_needed();
                self.status | if needs_reset { mmio::STATUS_NEEDS_RESET } else { 0 }
            }
            // No device here has shared memory: a length of -1 says so.
            mmio::SHM_LEN_LOW..=mmio::SHM_BASE_HIGH => u32::MAX,
            mmio::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            mmio::DEVICE_FEATURES_SEL => self.device_features_select = value,
            mmio::DRIVER_FEATURES_SEL => self.driver_features_select = value,
            mmio::DRIVER_FEATURES => match self.stage() {
                Stage::Negotiating => {
                    set_half(&mut self.driver_features, self.driver_features_select, value);
                }
                _ => self.violation("chose features after FEATURES_OK"),
            },
            mmio::QUEUE_SEL => self.queue_select = value,
            mmio::STATUS => self.write_status(value),
            mmio::QUEUE_NUM
            | mmio::QUEUE_READY
            | mmio::QUEUE_DESC_LOW
            | mmio::QUEUE_DESC_HIGH
            | mmio::QUEUE_DRIVER_LOW
            | mmio::QUEUE_DRIVER_HIGH
            | mmio::QUEUE_DEVICE_LOW
            | mmio::QUEUE_DEVICE_HIGH => self.write_queue(offset, value),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        match self.stage() {
            Stage::Settled => {}
            // Linux takes its queues away when the device is reset already.
            Stage::Negotiating if offset == mmio::QUEUE_READY && value == 0 => return,
            Stage::Negotiating => return self.violation("set up a queue before FEATURES_OK"),
            Stage::Live => return self.violation("changed a queue after DRIVER_OK"),
            Stage::Failed => return,
        }
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        if offset == mmio::QUEUE_READY {
            queue.set_ready(value & 1 != 0);
            queue.set_event_idx(event_idx);
            if queue.ready() && !queue.is_valid(&self.memory) {
                queue.set_ready(false);
                self.violation("set up a queue that does not lie in memory");
            }
            return;
        }
        if queue.ready() {
            return self.violation("changed a queue that is ready");
        }
        // Queue itself keeps what it has where alignment or size are wrong, and the driver would not learn of it.
        let aligned = match offset {
            mmio::QUEUE_NUM => match u16::try_from(value) {
                Ok(size) => queue.try_set_size(size).is_ok(),
                Err(_) => false,
            },
            mmio::QUEUE_DESC_LOW => {
                queue.set_desc_table_address(Some(value), None);
                queue.desc_table() as u32 == value
            }
            mmio::QUEUE_DRIVER_LOW => {
                queue.set_avail_ring_address(Some(value), None);
                queue.avail_ring() as u32 == value
            }
            mmio::QUEUE_DEVICE_LOW => {
                queue.set_used_ring_address(Some(value), None);
                queue.used_ring() as u32 == value
            }
            mmio::QUEUE_DESC_HIGH => {
                queue.set_desc_table_address(None, Some(value));
                true
            }
            mmio::QUEUE_DRIVER_HIGH => {
                queue.set_avail_ring_address(None, Some(value));
                true
            }
            _ => {
                queue.set_used_ring_address(None, Some(value));
                true
            }
        };
        if !aligned {
            self.violation("gave a queue a size or an address that is not allowed");
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // Section 2.1.1: the driver must not clear a bit other than by a reset.
        let mut status = self.status | (value & !mmio::STATUS_NEEDS_RESET);
        let new = status & !self.status;
        if new & mmio::STATUS_FEATURES_OK != 0 && !self.are_features_acceptable() {
            // Left clear, which the driver sees when it reads the register again (section 3.1.1, step 6).
            status &= !mmio::STATUS_FEATURES_OK;
        }
        if new & mmio::STATUS_DRIVER_OK != 0 {
            if status & mmio::STATUS_FEATURES_OK == 0 {
                status &= !mmio::STATUS_DRIVER_OK;
                self.violation("said DRIVER_OK without FEATURES_OK");
            } else if status & mmio::STATUS_FAILED == 0 {
                self.status = status;
                return self.activate();
            }
        }
        self.status = status;
    }

    fn are_features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        if self.interrupt.is_reset_needed() {
            return;
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (queue, doorbell) in self.queues.iter().zip(&self.doorbells) {
            match (Queue::try_from(queue.state()), doorbell.try_clone()) {
                (Ok(queue), Ok(doorbell)) => queues.push((queue, doorbell)),
                _ => return self.violation("asked for more than there are file descriptors"),
            }
        }
        let activation = Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        };
        if let Err(error) = self.device.activate(activation) {
            self.report(&format!("cannot be activated: {error}"));
            self.interrupt.needs_reset();
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        for doorbell in &self.doorbells {
            // Notifications of before mean nothing any more.
            let _ = doorbell.read();
        }
        self.status = 0;
        self.driver_features = 0;
        self.driver_features_select = 0;
        self.device_features_select = 0;
        self.queue_select = 0;
    }

    /// The driver did what it must not; the first time it is said on the VMM's standard error.
    fn violation(&self, what: &str) {
        if !self.interrupt.is_reset_needed() {
            self.report(&format!("waits for a reset: its driver {what}"));
            self.interrupt.needs_reset();
        }
    }

    fn report(&self, what: &str) {
        complain(format_args!("the virtio device of type {} {what}", self.device.device_type()));
    }
}

/// One of the 32-bit halves of a 64-bit register; there are no features past 63.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(half),
        1 => *value = (*value & 0xffff_ffff) | u64::from(half) << 32,
        // A feature that does not exist; writing zeros there is harmless.
        _ => {}
    }
}
