//! Packets of virtio-vsock: virtio 1.2, section 5.10.6. Numbers, and the header's layout.
//!
//! The crate virtio-vsock is not used: it wants a packet in one descriptor or two, while Linux since 6.7 sends them in
//! as many as they take (MSG_ZEROCOPY, and since 6.17 whatever is larger than a page).

/// Device type.
pub(super) const ID: u32 = 19;
/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// The only type of socket here.
pub(super) const TYPE_STREAM: u16 = 1;

/// Op: connect.
pub(super) const OP_REQUEST: u16 = 1;
/// Op: connected.
pub(super) const OP_RESPONSE: u16 = 2;
/// Op: there is no such connection (any more).
pub(super) const OP_RST: u16 = 3;
/// Op: one or both directions end.
pub(super) const OP_SHUTDOWN: u16 = 4;
/// Op: bytes.
pub(super) const OP_RW: u16 = 5;
/// Op: here is my credit.
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
/// Op: what is your credit?
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// Shutdown flag: the sender receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Shutdown flag: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Bytes of a header.
pub(super) const HEADER_LENGTH: usize = 44;

/// A packet's header (`struct virtio_vsock_hdr`, little endian).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buffer: u32,
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let at = |from: usize, count: usize| {
            bytes[from..from + count].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        // Each is exactly as wide as what was read for it.
        Self {
            source_cid: at(0, 8),
            target_cid: at(8, 8),
            source_port: at(16, 4) as u32,
            target_port: at(20, 4) as u32,
            length: at(24, 4) as u32,
            kind: at(28, 2) as u16,
            op: at(30, 2) as u16,
            flags: at(32, 4) as u32,
            buffer: at(36, 4) as u32,
            forwarded: at(40, 4) as u32,
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.target_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.target_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buffer.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }

    /// The answer to a packet that belongs to nothing.
    pub(super) fn reset_of(&self) -> Self {
        Self {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            kind: self.kind,
            op: OP_RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_lies_as_the_specification_has_it() {
        let header = Header {
            source_cid: 0x0807_0605_0403_0201,
            target_cid: 2,
            source_port: 0x1413_1211,
            target_port: 0x1817_1615,
            length: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buffer: 0x2827_2625,
            forwarded: 0x2c2b_2a29,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..], std::array::from_fn::<u8, 28, _>(|i| 0x11 + i as u8));
    }
}
