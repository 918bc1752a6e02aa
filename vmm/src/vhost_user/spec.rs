//! The numbers of vhost-user (QEMU's docs/interop/vhost-user.rst, protocol version 1). No behaviour.

/// Feature, vhost-user's own: there are protocol features, and rings are to be enabled.
pub(crate) const F_PROTOCOL: u64 = 1 << 30;
/// Protocol feature: what was done is answered if that is asked for.
pub(crate) const P_REPLY_ACK: u64 = 1 << 3;

/// Bytes of a message's header: request, flags, bytes that follow; little endian on every machine that this runs on.
pub(crate) const HEADER_LENGTH: usize = 12;
/// Flags: the protocol's version.
pub(crate) const VERSION: u32 = 1;
/// Flags: this is an answer.
pub(crate) const REPLY: u32 = 1 << 2;
/// Flags: an answer is wanted.
pub(crate) const NEED_REPLY: u32 = 1 << 3;

/// What is asked of the back end.
pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const SET_VRING_ENABLE: u32 = 18;

/// Regions of memory that every back end takes (VHOST_MEMORY_BASELINE_NREGIONS).
pub(crate) const REGIONS_MAX: usize = 8;
