//! ACPI's sleep control, sleep status and reset registers (ACPI 6.5, 4.8.3.7 and 4.8.3.6), which kernels without ACPI may
//! write just as well.

use std::sync::Arc;

use crate::arch::layout;
use crate::bus::Device;
use crate::end::End;
use crate::machine::Ending;

/// The power and reset registers.
#[derive(Debug)]
pub struct Power {
    ending: Arc<Ending>,
}

impl Power {
    /// Registers that end the machine through `ending`.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl Device for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Sleep status: the machine has not been woken up, for it never slept.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const SLEEP_CONTROL: u64 = 0;
        const RESET: u64 = layout::PORT_RESET - layout::PORT_POWER;
        match (offset, data) {
            (SLEEP_CONTROL, [value]) if u64::from(*value) == layout::POWER_OFF_VALUE => {
                self.ending.set(End::PowerOff);
            }
            (RESET, [value]) if u64::from(*value) == layout::RESET_VALUE => self.ending.set(End::Reset),
            _ => {}
        }
    }
}
