//! The keyboard controller, of which only the processor's reset line is left.

use std::sync::Arc;

use crate::bus::Device;
use crate::end::End;
use crate::machine::Ending;

/// Offset of the status and command port (0x64) from the data port (0x60).
const COMMAND: u64 = 4;
/// Pulse output line 0, which is the processor's reset.
const PULSE_RESET: u8 = 0xfe;

/// An i8042 without keyboard and mouse.
#[derive(Debug)]
pub struct I8042 {
    ending: Arc<Ending>,
}

impl I8042 {
    /// A controller that resets the machine through `ending`.
    pub fn new(ending: Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl Device for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers are empty, so a command may be written. Data: nothing was typed.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [PULSE_RESET] {
            self.ending.set(End::Reset);
        }
    }
}
