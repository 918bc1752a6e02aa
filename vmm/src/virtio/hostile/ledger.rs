//! What a device was handed, noted as its queues take it: the measure for what it may have written.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::virtio::buffers::{Buffers, Segment};
use crate::virtio::device::Interrupt;
use crate::virtio::lock;
use crate::virtio::queue::Chain;

/// How many bytes of a chain's readable part are kept: more than any request whose content is looked at.
const KEPT: usize = 20 << 10;

/// A chain that a device took.
#[derive(Debug)]
pub(in crate::virtio) struct Taken {
    /// From which queue.
    pub(in crate::virtio) queue: usize,
    /// What it could read then, or the beginning of that.
    pub(in crate::virtio) readable: Vec<u8>,
    /// Whether that is all.
    pub(in crate::virtio) is_whole: bool,
    /// What it may write.
    pub(in crate::virtio) writable: Vec<Segment>,
}

/// The notes of one device, from its activation on.
#[derive(Debug, Default)]
pub(in crate::virtio) struct Ledger {
    /// Used rings: address, bytes.
    pub(in crate::virtio) rings: Vec<(u64, u64)>,
    /// Chains since somebody looked last.
    pub(in crate::virtio) chains: Vec<Taken>,
}

/// A queue was taken over: the device may write its used ring (virtio 1.2, section 2.7.8).
pub(in crate::virtio) fn note_rings(interrupt: &Interrupt, queue: &Queue) {
    if let Some(ledger) = &mut *lock(&interrupt.ledger) {
        ledger.rings.push((queue.used_ring(), 6 + 8 * u64::from(queue.size())));
    }
}

/// A chain was taken.
pub(in crate::virtio) fn note_chain(
    interrupt: &Interrupt,
    memory: &GuestMemoryMmap,
    queue: usize,
    chain: Option<&Chain>,
) {
    let mut ledger = lock(&interrupt.ledger);
    let (Some(ledger), Some(chain)) = (&mut *ledger, chain) else { return };
    let mut readable: Buffers = chain.readable.clone();
    let mut bytes = vec![0; usize::try_from(readable.len()).map_or(KEPT, |n| n.min(KEPT))];
    readable.read(memory, &mut bytes);
    ledger.chains.push(Taken {
        queue,
        readable: bytes,
        is_whole: readable.is_empty(),
        writable: chain.writable.segments().to_vec(),
    });
}
