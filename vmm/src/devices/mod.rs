//! What a PC has besides virtio devices: the few ports that Linux needs to boot, to print and to end.

mod cmos;
mod i8042;
mod power;
mod pvpanic;
mod serial;

pub use cmos::Cmos;
pub use i8042::I8042;
pub use power::Power;
pub use pvpanic::Pvpanic;
pub use serial::{Console, PanicWatch, Serial, output};
