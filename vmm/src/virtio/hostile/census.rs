//! Bytes that went in against bytes that came out.

use super::Taken;

/// How many of each byte a guest has given out; none of which the host may see more than once.
#[derive(Debug)]
pub(super) struct Census {
    counts: [u64; 256],
    /// There was more than is counted.
    is_open: bool,
}

impl Default for Census {
    fn default() -> Self {
        Self { counts: [0; 256], is_open: false }
    }
}

impl Census {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.counts[usize::from(byte)] += 1;
        }
    }

    /// There will be bytes that were not given as they are.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// What a chain had to read, or everything if that was too much to note.
    pub(super) fn add_chain(&mut self, chain: &Taken, from: usize) {
        self.add(chain.readable.get(from..).unwrap_or_default());
        self.is_open |= !chain.is_whole;
    }

    /// The host has seen these. Panics if nobody gave them.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.is_open {
            return;
        }
        for &byte in bytes {
            let count = &mut self.counts[usize::from(byte)];
            assert!(*count > 0, "the host was given a byte {byte:#x} that the guest did not send");
            *count -= 1;
        }
    }
}
