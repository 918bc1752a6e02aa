//! Which blocks are plugged, and what a guest's request does to that (virtio 1.2, section 5.15.6).

use std::io;
use std::ops::Range;

use super::{BLOCK, spec};

/// The state of the region: one bit a block, made once from the host's configuration. Nothing that a guest sends makes it
/// larger.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Where the region begins, in bytes.
    address: u64,
    /// One for each block: whether it is plugged.
    plugged: Vec<bool>,
    /// How many of them are.
    count: u64,
    /// How many the host wants.
    requested: u64,
    /// How many the host may ever want: the region's end is rounded up to what the guest can use.
    limit: u64,
}

/// An answer to the guest: the response's type, and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Response {
    kind: u16,
    state: u16,
}

impl Response {
    const fn plain(kind: u16) -> Self {
        Self { kind, state: 0 }
    }

    pub(super) const ERROR: Self = Self::plain(spec::RESP_ERROR);

    /// As it lies in memory.
    pub(super) fn bytes(self) -> [u8; spec::RESPONSE_LENGTH] {
        let mut bytes = [0; spec::RESPONSE_LENGTH];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.state.to_le_bytes());
        bytes
    }
}

impl Blocks {
    /// A region of so many bytes at `address`, of which at most `limit` are ever plugged; none are now.
    pub(super) fn new(address: u64, bytes: u64, limit: u64) -> Self {
        let blocks = usize::try_from(bytes / BLOCK).unwrap_or_default();
        Self { address, plugged: vec![false; blocks], count: 0, requested: 0, limit: limit / BLOCK }
    }

    /// The configuration space (section 5.15.4). All of the region is usable at any time: the driver plugs no more than is
    /// requested wherever it does so.
    pub(super) fn config(&self) -> [u8; spec::CONFIG_LENGTH] {
        let region = self.plugged.len() as u64 * BLOCK;
        let mut config = [0; spec::CONFIG_LENGTH];
        let fields = [BLOCK, 0, self.address, region, region, self.plugged_bytes(), self.requested * BLOCK];
        for (place, field) in config.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        config
    }

    /// Bytes that are plugged.
    pub(super) fn plugged_bytes(&self) -> u64 {
        self.count * BLOCK
    }

    /// Bytes that the host wants plugged.
    pub(super) fn requested_bytes(&self) -> u64 {
        self.requested * BLOCK
    }

    /// The host wants so many bytes, rounded down to blocks. If they are more than there can be, the most there can be.
    pub(super) fn request(&mut self, bytes: u64) -> Result<(), u64> {
        let blocks = bytes / BLOCK;
        if blocks > self.limit {
            return Err(self.limit * BLOCK);
        }
        self.requested = blocks;
        Ok(())
    }

    /// Does what a request asks for. `discard` gives a range of guest memory (address and bytes) back to the host.
    pub(super) fn answer(
        &mut self,
        request: &[u8; spec::REQUEST_LENGTH],
        mut discard: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> Response {
        let [k0, k1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = *request;
        let kind = u16::from_le_bytes([k0, k1]);
        if kind == spec::REQ_UNPLUG_ALL {
            return self.unplug(0..self.plugged.len(), &mut discard);
        }
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let Some(range) = self.range(address, u16::from_le_bytes([n0, n1])) else { return Response::ERROR };
        let plugged = self.plugged[range.clone()].iter().filter(|plugged| **plugged).count();
        match kind {
            spec::REQ_PLUG if plugged > 0 => Response::ERROR,
            spec::REQ_PLUG if self.count + range.len() as u64 > self.requested => {
                Response::plain(spec::RESP_NACK)
            }
            spec::REQ_PLUG => {
                self.count += range.len() as u64;
                self.plugged[range].fill(true);
                Response::plain(spec::RESP_ACK)
            }
            spec::REQ_UNPLUG if plugged < range.len() => Response::ERROR,
            spec::REQ_UNPLUG => self.unplug(range, &mut discard),
            spec::REQ_STATE => {
                let state = match plugged {
                    0 => spec::STATE_UNPLUGGED,
                    all if all == range.len() => spec::STATE_PLUGGED,
                    _ => spec::STATE_MIXED,
                };
                Response { kind: spec::RESP_ACK, state }
            }
            _ => Response::ERROR,
        }
    }

    /// Unplugs what is plugged of a range. What was in it is gone first: a block that is plugged again reads as zeros.
    fn unplug(
        &mut self,
        range: Range<usize>,
        discard: &mut impl FnMut(u64, u64) -> io::Result<()>,
    ) -> Response {
        if range.is_empty() {
            return Response::plain(spec::RESP_ACK);
        }
        let (from, length) = (self.address + range.start as u64 * BLOCK, range.len() as u64 * BLOCK);
        if discard(from, length).is_err() {
            return Response::plain(spec::RESP_BUSY);
        }
        for plugged in &mut self.plugged[range] {
            self.count -= u64::from(std::mem::take(plugged));
        }
        Response::plain(spec::RESP_ACK)
    }

    /// The blocks that a request names, if there are any and all of them are the region's.
    fn range(&self, address: u64, blocks: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.address)?;
        if blocks == 0 || !offset.is_multiple_of(BLOCK) {
            return None;
        }
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(usize::from(blocks))?;
        (end <= self.plugged.len()).then_some(first..end)
    }
}
