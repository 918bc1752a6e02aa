//! The numbers of virtio-mem: virtio 1.2, section 5.15. No behaviour.

/// Device type.
pub(super) const ID: u32 = 24;

/// Feature: the driver does not touch memory that is not plugged (section 5.15.3).
pub(super) const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Bytes of a request: type, padding, address, number of blocks, padding (section 5.15.6).
pub(super) const REQUEST_LENGTH: usize = 24;
/// Request: these blocks are to be memory.
pub(super) const REQ_PLUG: u16 = 0;
/// Request: these blocks are memory no longer.
pub(super) const REQ_UNPLUG: u16 = 1;
/// Request: no block is memory any longer.
pub(super) const REQ_UNPLUG_ALL: u16 = 2;
/// Request: whether these blocks are memory.
pub(super) const REQ_STATE: u16 = 3;

/// Bytes of a response: type, padding, state.
pub(super) const RESPONSE_LENGTH: usize = 10;
/// Response: done.
pub(super) const RESP_ACK: u16 = 0;
/// Response: not now and not later, unless the host asks for more.
pub(super) const RESP_NACK: u16 = 1;
/// Response: not now.
pub(super) const RESP_BUSY: u16 = 2;
/// Response: the request is wrong.
pub(super) const RESP_ERROR: u16 = 3;

/// State: all of the blocks are plugged.
pub(super) const STATE_PLUGGED: u16 = 0;
/// State: none is.
pub(super) const STATE_UNPLUGGED: u16 = 1;
/// State: some are.
pub(super) const STATE_MIXED: u16 = 2;

/// Bytes of the configuration: block size, node and padding, address, region size, usable region size, plugged size,
/// requested size (section 5.15.4), all of 8 bytes.
pub(super) const CONFIG_LENGTH: usize = 56;
