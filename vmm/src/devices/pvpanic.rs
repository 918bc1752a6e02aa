//! pvpanic (QEMU's docs/specs/pvpanic.rst): one port on which a guest says that its kernel has panicked.

use std::sync::Arc;

use crate::bus::Device;
use crate::end::End;
use crate::machine::Ending;

/// The kernel has panicked.
const PANICKED: u8 = 1;

/// The panic port.
#[derive(Debug)]
pub struct Pvpanic {
    ending: Arc<Ending>,
}

impl Pvpanic {
    /// A port that ends the machine through `ending`.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl Device for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Which events are understood.
        data.fill(0);
        data[0] = PANICKED;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.ending.set(End::GuestPanic(String::new()));
        }
    }
}
