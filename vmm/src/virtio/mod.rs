//! Virtio devices over memory-mapped registers.
//!
//! [`transport`] is what the guest's driver sees of every device: the register block of virtio 1.2, section 4.2. Behind
//! it stands a [`device::VirtioDevice`], which is given its [`queue`]s once the driver has said that it is ready and
//! from then on works on a thread that is no vCPU's: disks on one of their own, all others on one [`event_loop`].
//!
//! What a driver puts into its queues are claims. [`queue::VirtQueue`] checks each chain once (lengths, directions,
//! addresses, cycles) and hands out [`buffers::Buffers`] that lie in guest memory; a chain that is no chain makes the
//! device stop and ask for a reset, as section 2.1.2 has it.

pub mod balloon;
pub mod block;
pub mod buffers;
mod complaints;
pub mod console;
pub mod device;
pub mod disk;
pub mod event_loop;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod scsi;
pub mod transport;
pub mod vsock;

#[cfg(test)]
mod device_tests;
mod guest_io;
mod heap;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod transport_tests;
mod uncached;
#[cfg(test)]
mod uncached_tests;
mod worker;

pub use device::{Activation, Interrupt, VirtioDevice};
pub use event_loop::EventLoop;
pub use transport::MmioTransport;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a thread that panicked while it held the lock does not take the others along.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads from a configuration space that is `config` and zeros after it.
fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    let count = rest.len().min(data.len());
    data[..count].copy_from_slice(&rest[..count]);
}
