//! Two address spaces of devices: I/O ports and memory-mapped I/O.

use std::fmt;
use std::sync::Arc;

/// A device that the guest reaches by port or memory accesses.
///
/// It is shared between the vCPU threads, so it locks for itself what it must. `offset` counts bytes from the start of
/// the range that the device was put at; `data` is as long as the guest's access (1, 2, 4 or 8 bytes).
pub trait Device: Send + Sync {
    /// The guest reads; what the device does not fill stays as it was (all ones).
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The range is empty or runs past the end of the address space.
    #[error("the range of {size:#x} bytes at {base:#x} is empty or does not end")]
    Range {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// Another device is there.
    #[error("the range of {size:#x} bytes at {base:#x} overlaps another device's")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
}

struct Entry {
    base: u64,
    size: u64,
    device: Arc<dyn Device>,
}

/// An address space of devices, filled before the machine runs and only read afterwards.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base; ranges do not overlap.
    entries: Vec<Entry>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|e| (e.base, e.size))).finish()
    }
}

impl Bus {
    /// Puts a device at `base..base + size`.
    ///
    /// # Errors
    /// The range is empty, wraps around, or overlaps one that is taken.
    pub fn insert(&mut self, base: u64, size: u64, device: Arc<dyn Device>) -> Result<(), Error> {
        let last =
            size.checked_sub(1).and_then(|n| base.checked_add(n)).ok_or(Error::Range { base, size })?;
        let at = self.entries.partition_point(|e| e.base <= last);
        if at > 0 && self.entries[at - 1].base + (self.entries[at - 1].size - 1) >= base {
            return Err(Error::Overlap { base, size });
        }
        self.entries.insert(at, Entry { base, size, device });
        Ok(())
    }

    /// Reads from whatever is at `address`; false if nothing is.
    ///
    /// An access that begins in a device's range and ends outside it is nobody's.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.read(offset, data);
        true
    }

    /// Writes to whatever is at `address`; false if nothing is.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.write(offset, data);
        true
    }

    fn find(&self, address: u64, length: usize) -> Option<(&dyn Device, u64)> {
        let at = self.entries.partition_point(|e| e.base <= address).checked_sub(1)?;
        let entry = &self.entries[at];
        let offset = address - entry.base;
        (offset.checked_add(length as u64)? <= entry.size).then_some((&*entry.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
            data.fill(7);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
        }
    }

    #[test]
    fn accesses_reach_the_device_that_holds_them_whole() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        bus.insert(0xff0, 0x10, Arc::new(Recorder::default())).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x1004, &mut data));
        assert_eq!(data, [7; 4]);
        assert!(bus.write(0x100c, &data));
        assert!(!bus.write(0x100e, &data), "it would end outside");
        assert!(!bus.read(0x1010, &mut data));
        assert!(!bus.read(0xfee, &mut data));
        assert_eq!(*device.0.lock().unwrap(), [(4, 4), (12, 4)]);
    }

    #[test]
    fn ranges_neither_overlap_nor_wrap() {
        let mut bus = Bus::default();
        let device = || Arc::new(Recorder::default());
        bus.insert(0x1000, 0x10, device()).unwrap();
        assert_eq!(bus.insert(0x100f, 1, device()), Err(Error::Overlap { base: 0x100f, size: 1 }));
        assert_eq!(bus.insert(0xfff, 2, device()), Err(Error::Overlap { base: 0xfff, size: 2 }));
        assert_eq!(bus.insert(0x800, 0x1000, device()), Err(Error::Overlap { base: 0x800, size: 0x1000 }));
        assert_eq!(bus.insert(0x2000, 0, device()), Err(Error::Range { base: 0x2000, size: 0 }));
        assert_eq!(bus.insert(u64::MAX, 2, device()), Err(Error::Range { base: u64::MAX, size: 2 }));
        bus.insert(u64::MAX, 1, device()).unwrap();
    }
}
