//! The numbers of virtio-fs (virtio 1.2, section 5.11) and of the part of FUSE that an error takes (linux/fuse.h). No behaviour.

/// Device type.
pub(super) const ID: u32 = 26;
/// Bytes of the tag, padded with NULs (section 5.11.4).
pub const TAG_LENGTH: usize = 36;
/// Bytes of the configuration: the tag, and the number of request queues.
pub(super) const CONFIG_LENGTH: usize = TAG_LENGTH + 4;
/// High priority and requests (section 5.11.2). virtiofsd serves one of the latter.
pub(super) const REQUEST_QUEUES: u32 = 1;

/// Bytes of what an error is answered to and with (struct fuse_in_header as far as it counts, struct fuse_out_header).
pub(super) const FUSE_HEADER_LENGTH: usize = 16;
/// Where the request's number is, in both.
pub(super) const FUSE_UNIQUE: usize = 8;
