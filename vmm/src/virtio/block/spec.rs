//! The numbers of virtio-blk: virtio 1.2, section 5.2. No behaviour.

/// Device type.
pub(super) const ID: u32 = 2;

/// Feature: the configuration's `seg_max` is valid.
pub(super) const F_SEG_MAX: u64 = 1 << 2;
/// Feature: the disk is read-only.
pub(super) const F_RO: u64 = 1 << 5;
/// Feature: the configuration's `blk_size` is valid.
pub(super) const F_BLK_SIZE: u64 = 1 << 6;
/// Feature: there is a flush command.
pub(super) const F_FLUSH: u64 = 1 << 9;
/// Feature: the configuration's topology is valid.
pub(super) const F_TOPOLOGY: u64 = 1 << 10;
/// Feature: the driver may switch the write cache by the configuration's `writeback`.
pub(super) const F_CONFIG_WCE: u64 = 1 << 11;
/// Feature: there is a discard command.
pub(super) const F_DISCARD: u64 = 1 << 13;
/// Feature: there is a command that writes zeros.
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Request: read sectors.
pub(super) const T_IN: u32 = 0;
/// Request: write sectors.
pub(super) const T_OUT: u32 = 1;
/// Request: make durable what was written.
pub(super) const T_FLUSH: u32 = 4;
/// Request: the serial number.
pub(super) const T_GET_ID: u32 = 8;
/// Request: these sectors are not needed any more.
pub(super) const T_DISCARD: u32 = 11;
/// Request: make these sectors zeros.
pub(super) const T_WRITE_ZEROES: u32 = 13;

/// Bytes of a request's header: type, reserved, sector.
pub(super) const HEADER_LENGTH: usize = 16;
/// Bytes of one range of a discard or write-zeroes request: sector, count, flags.
pub(super) const RANGE_LENGTH: usize = 16;
/// A range's flag: sectors made zeros may be given back.
pub(super) const RANGE_UNMAP: u32 = 1;

/// Status: done.
pub(super) const S_OK: u8 = 0;
/// Status: failed.
pub(super) const S_IOERR: u8 = 1;
/// Status: no such request.
pub(super) const S_UNSUPP: u8 = 2;

/// Where in the configuration `writeback` is.
pub(super) const CONFIG_WRITEBACK: u64 = 32;
/// Bytes of the configuration, up to and with the write-zeroes fields.
pub(super) const CONFIG_LENGTH: usize = 60;
