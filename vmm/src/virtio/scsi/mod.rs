//! virtio-scsi: one controller whose disks come and go while the machine runs (virtio 1.2, section 5.6).
//!
//! Target 0, logical units 0 to 255, one request queue, one thread. The guest is not told of new units by an event; it
//! is asked to scan. A unit's number says which disk it is, and the same [`Disk`] is behind virtio-blk.

mod command;
mod pages;
mod request;
mod sense;
mod spec;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{ActivateError, Activation, VirtioDevice};
use super::disk::Disk;
use super::queue::{VirtQueue, cannot, work_off_until};
use super::worker::Worker;

/// How many logical units there can be.
pub const MAX_UNITS: usize = 256;

/// Control, events, requests.
const QUEUE_SIZES: [u16; 3] = [16, 16, 256];
/// The most segments of data in one request; with its header and response, a chain still fits its queue.
const SEGMENTS: u32 = QUEUE_SIZES[2] as u32 - 2;
/// The most sectors that one request moves.
const MAX_SECTORS: u32 = 0xffff;
/// The most sectors in one range of UNMAP: 1 GiB.
const MAX_UNMAP_SECTORS: u32 = 1 << 21;
/// The most ranges in one UNMAP.
const MAX_UNMAP_RANGES: u32 = 64;
/// The most sectors of one WRITE SAME: 1 GiB.
const MAX_WRITE_SAME_SECTORS: u32 = 1 << 21;

type Units = [Option<Disk>; MAX_UNITS];

/// Why a disk could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// Another disk is there.
    #[error("logical unit {0} is taken")]
    Taken(u8),
    /// No disk is there.
    #[error("there is no disk at logical unit {0}")]
    Absent(u8),
}

/// The host's hold on a controller: disks come and go by it.
#[derive(Clone)]
pub struct ScsiControl(Arc<RwLock<Units>>);

impl fmt::Debug for ScsiControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ScsiControl").field(&self.attached()).finish()
    }
}

impl ScsiControl {
    /// Puts a disk at a unit. The guest sees it when it next scans the unit.
    ///
    /// # Errors
    /// The unit is taken.
    pub fn attach(&self, lun: u8, disk: Disk) -> Result<(), UnitError> {
        let mut units = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let unit = &mut units[usize::from(lun)];
        if unit.is_some() {
            return Err(UnitError::Taken(lun));
        }
        *unit = Some(disk);
        Ok(())
    }

    /// Takes a unit's disk away, once the request that it is at has ended. When this returns its file is closed. The
    /// guest should have let go of it before, which is also when Linux flushes it: from now on it gets errors.
    ///
    /// # Errors
    /// There is none.
    pub fn detach(&self, lun: u8) -> Result<(), UnitError> {
        let disk = self.0.write().unwrap_or_else(PoisonError::into_inner)[usize::from(lun)].take();
        disk.map(drop).ok_or(UnitError::Absent(lun))
    }

    /// The units that have disks.
    pub fn attached(&self) -> Vec<u8> {
        let units = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (0..=u8::MAX).filter(|&lun| units[usize::from(lun)].is_some()).collect()
    }
}

/// A virtio-scsi controller.
pub struct Scsi {
    units: Arc<RwLock<Units>>,
    sense_size: Arc<AtomicU32>,
    cdb_size: Arc<AtomicU32>,
    worker: Option<Worker>,
}

impl fmt::Debug for Scsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scsi").finish_non_exhaustive()
    }
}

impl Scsi {
    /// A controller without disks, and the hold on it.
    pub fn new() -> (Self, ScsiControl) {
        let units = Arc::new(RwLock::new([const { None }; MAX_UNITS]));
        let scsi = Self {
            units: units.clone(),
            sense_size: Arc::new(AtomicU32::new(spec::SENSE_SIZE)),
            cdb_size: Arc::new(AtomicU32::new(spec::CDB_SIZE)),
            worker: None,
        };
        (scsi, ScsiControl(units))
    }
}

impl VirtioDevice for Scsi {
    fn device_type(&self) -> u32 {
        spec::ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; spec::CONFIG_LENGTH];
        let words = [
            // Request queues.
            1,
            SEGMENTS,
            MAX_SECTORS,
            // Commands a unit.
            128,
            // Bytes of an event.
            16,
            self.sense_size.load(Ordering::Relaxed),
            self.cdb_size.load(Ordering::Relaxed),
            // Highest channel and target.
            0,
            // Highest unit.
            MAX_UNITS as u32 - 1,
        ];
        for (field, word) in config.chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        super::read_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            spec::CONFIG_SENSE_SIZE if value <= 252 => self.sense_size.store(value, Ordering::Relaxed),
            spec::CONFIG_CDB_SIZE if (16..=260).contains(&value) => {
                self.cdb_size.store(value, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let control = VirtQueue::take(&mut activation, 0)?;
        // The second is for events; none are sent.
        let requests = VirtQueue::take(&mut activation, 2)?;
        let units = self.units.clone();
        let (sense_size, cdb_size) = (self.sense_size.clone(), self.cdb_size.clone());
        let worker = Worker::start("scsi", vec![requests, control], move |queues, is_stopped| {
            let sense_size = sense_size.load(Ordering::Relaxed) as usize;
            let cdb_size = cdb_size.load(Ordering::Relaxed) as usize;
            let [requests, control] = queues else { return };
            let mut execute_all = || {
                work_off_until(requests, is_stopped, |memory, chain| {
                    let units = units.read().unwrap_or_else(PoisonError::into_inner);
                    Some(request::work(&units, memory, chain, cdb_size, sense_size))
                });
            };
            execute_all();
            work_off_until(control, is_stopped, |memory, chain| {
                // A task may only be said to be aborted when nothing of it touches memory any more: so first
                // everything that was asked for before.
                execute_all();
                Some(request::control(memory, chain))
            });
        });
        self.worker = Some(worker.map_err(cannot("start the scsi controller's thread"))?);
        Ok(())
    }

    fn reset(&mut self) {
        // Waits for the request that is being worked on.
        self.worker = None;
        self.sense_size.store(spec::SENSE_SIZE, Ordering::Relaxed);
        self.cdb_size.store(spec::CDB_SIZE, Ordering::Relaxed);
    }
}
