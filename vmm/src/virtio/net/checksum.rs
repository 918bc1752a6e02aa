//! The Internet checksum (RFC 1071), which the guest leaves to the device.

use super::spec;

/// What the guest wants to be completed in a frame, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The first byte that is summed up.
    start: usize,
    /// Where the checksum is, from `start`.
    offset: usize,
}

/// Why a header's packet cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nonsense;

impl Wanted {
    /// Reads a header (virtio 1.2, section 5.1.6). `may_ask` says whether checksums were negotiated. Segments that are to
    /// be cut up are nonsense here: nobody offered that.
    pub(super) fn read(header: &[u8; spec::HEADER_LENGTH], may_ask: bool) -> Result<Option<Self>, Nonsense> {
        if header[1] != spec::GSO_NONE {
            return Err(Nonsense);
        }
        if header[0] & spec::FLAG_NEEDS_CHECKSUM == 0 {
            return Ok(None);
        }
        if !may_ask {
            return Err(Nonsense);
        }
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        Ok(Some(Self { start: word(6), offset: word(8) }))
    }

    /// Puts the checksum of what follows `start` into its place; what stands there already is the pseudo header's.
    pub(super) fn complete(self, frame: &mut [u8]) -> Result<(), Nonsense> {
        let at = self.start + self.offset;
        if self.start < spec::ETHERNET_LENGTH || at + 2 > frame.len() {
            return Err(Nonsense);
        }
        // In UDP zero means that there is none; in one's complement there are two zeros (RFC 768).
        let sum = match !sum(&frame[self.start..]) {
            0 => 0xffff,
            sum => sum,
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Ok(())
    }
}

/// The one's complement sum of big-endian words; an odd byte at the end counts as a word's upper half.
fn sum(bytes: &[u8]) -> u16 {
    // Whole words of eight bytes, in any byte order as long as it is one (RFC 1071, section 2 B), and their carries.
    let mut wide = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for chunk in wide.by_ref() {
        // At most 16 384 times 2^32.
        total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut rest = [0; 4];
    rest[..wide.remainder().len()].copy_from_slice(wide.remainder());
    total += u64::from(u32::from_be_bytes(rest));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // Folded to 16 bits.
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: 00 01 f2 03 f4 f5 f6 f7 is ddf2.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(sum(&[0x00, 0x01, 0xf2]), 0xf201);
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0xff; 0xffff]), 0xff00);
    }

    #[test]
    fn headers_are_believed_within_their_frame() {
        let header = |flags, gso, start: u16, offset: u16| {
            let mut header = [0; spec::HEADER_LENGTH];
            (header[0], header[1]) = (flags, gso);
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            header
        };
        assert_eq!(Wanted::read(&header(0, 0, 9, 9), false), Ok(None));
        assert_eq!(Wanted::read(&header(0, 1, 0, 0), true), Err(Nonsense), "no segmentation was offered");
        assert_eq!(Wanted::read(&header(1, 0, 34, 16), false), Err(Nonsense), "no checksums were offered");
        let mut frame = vec![1; 60];
        for (start, offset) in [(34, 25), (60, 0), (0, 0), (13, 2), (0xffff, 0xffff)] {
            let wanted = Wanted::read(&header(1, 0, start, offset), true).unwrap().unwrap();
            assert_eq!(wanted.complete(&mut frame), Err(Nonsense), "{start} {offset}");
        }
        assert_eq!(frame, [1; 60]);
        let wanted = Wanted::read(&header(1, 0, 34, 24), true).unwrap().unwrap();
        wanted.complete(&mut frame).unwrap();
        assert_eq!(sum(&frame[34..]), !0x0101, "all ones, but for what stood in its place before");
    }
}
