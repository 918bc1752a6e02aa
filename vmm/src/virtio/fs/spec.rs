//! The numbers of virtio-fs (virtio 1.2, section 5.11), of vhost-user (QEMU's docs/interop/vhost-user.rst, protocol version 1)
//! and of the part of FUSE that an error takes (linux/fuse.h). No behaviour.

/// Device type.
pub(super) const ID: u32 = 26;
/// Bytes of the tag, padded with NULs (section 5.11.4).
pub const TAG_LENGTH: usize = 36;
/// Bytes of the configuration: the tag, and the number of request queues.
pub(super) const CONFIG_LENGTH: usize = TAG_LENGTH + 4;
/// High priority and requests (section 5.11.2). virtiofsd serves one of the latter.
pub(super) const REQUEST_QUEUES: u32 = 1;

/// Feature, vhost-user's own: there are protocol features, and rings are to be enabled.
pub(super) const F_PROTOCOL: u64 = 1 << 30;
/// Protocol feature: what was done is answered if that is asked for.
pub(super) const P_REPLY_ACK: u64 = 1 << 3;

/// Bytes of a message's header: request, flags, bytes that follow; little endian on every machine that this runs on.
pub(super) const HEADER_LENGTH: usize = 12;
/// Flags: the protocol's version.
pub(super) const VERSION: u32 = 1;
/// Flags: this is an answer.
pub(super) const REPLY: u32 = 1 << 2;
/// Flags: an answer is wanted.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// What is asked of the back end.
pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const SET_VRING_ENABLE: u32 = 18;

/// Regions of memory that every back end takes (VHOST_MEMORY_BASELINE_NREGIONS).
pub(super) const REGIONS_MAX: usize = 8;

/// Bytes of what an error is answered to and with (struct fuse_in_header as far as it counts, struct fuse_out_header).
pub(super) const FUSE_HEADER_LENGTH: usize = 16;
/// Where the request's number is, in both.
pub(super) const FUSE_UNIQUE: usize = 8;
