//! virtio-blk: a disk that is there from the boot on (virtio 1.2, section 5.2).
//!
//! One queue, one thread. Requests are worked off in the order in which they came, straight between the file and the
//! guest's buffers.

mod request;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{ActivateError, Activation, VirtioDevice};
use super::disk::Disk;
use super::queue::{VirtQueue, cannot, work_off_until};
use super::worker::Worker;
use request::Requests;

const QUEUE_SIZE: u16 = 256;
/// The most segments of data in one request; with header and status, a chain still fits its queue.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most sectors that one discard or write-zeroes range has: 1 GiB.
const RANGE_SECTORS: u32 = 1 << 21;
/// The most ranges that one such request has.
const RANGES: u32 = 64;

/// A virtio-blk device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    name: String,
    writeback: Arc<AtomicBool>,
    worker: Option<Worker>,
}

impl Block {
    /// A device for `disk`, whose thread is called `name`.
    pub fn new(disk: Disk, name: impl Into<String>) -> Self {
        Self {
            disk: Arc::new(disk),
            name: name.into(),
            writeback: Arc::new(AtomicBool::new(true)),
            worker: None,
        }
    }

    fn config(&self) -> [u8; spec::CONFIG_LENGTH] {
        let mut config = [0; spec::CONFIG_LENGTH];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors().to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // Physical blocks of 4 KiB: what the host's page cache works in.
        put(24, &[3]);
        put(26, &8_u16.to_le_bytes());
        put(spec::CONFIG_WRITEBACK as usize, &[u8::from(self.writeback.load(Ordering::Relaxed))]);
        put(34, &1_u16.to_le_bytes());
        put(36, &RANGE_SECTORS.to_le_bytes());
        put(40, &RANGES.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &RANGE_SECTORS.to_le_bytes());
        put(52, &RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        spec::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | spec::F_SEG_MAX
            | spec::F_BLK_SIZE
            | spec::F_TOPOLOGY;
        common
            | if self.disk.is_read_only() {
                spec::F_RO
            } else {
                spec::F_FLUSH | spec::F_CONFIG_WCE | spec::F_DISCARD | spec::F_WRITE_ZEROES
            }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (spec::CONFIG_WRITEBACK, &[value]) = (offset, data) {
            self.writeback.store(value & 1 != 0, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = VirtQueue::take(&mut activation, 0)?;
        // Section 5.2.5.1: a driver that knows neither of flushes nor of the switch counts on every write being
        // durable when it ends. One that knows the switch may have set it before DRIVER_OK.
        if activation.features & (spec::F_FLUSH | spec::F_CONFIG_WCE) == 0 {
            self.writeback.store(false, Ordering::Relaxed);
        }
        let requests = Requests { disk: self.disk.clone(), writeback: self.writeback.clone() };
        let worker = Worker::start(&self.name, vec![queue], move |queues, is_stopped| {
            work_off_until(&mut queues[0], is_stopped, |memory, chain| Some(requests.work(memory, chain)));
        });
        self.worker = Some(worker.map_err(cannot("start a disk's thread"))?);
        Ok(())
    }

    fn reset(&mut self) {
        // Waits for the request that is being worked on.
        self.worker = None;
        self.writeback.store(true, Ordering::Relaxed);
    }
}
