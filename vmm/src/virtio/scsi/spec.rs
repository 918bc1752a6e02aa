//! The numbers of virtio-scsi (virtio 1.2, section 5.6) and of the SCSI commands behind it (SPC-4, SBC-3). No behaviour.

/// Device type.
pub(super) const ID: u32 = 8;

/// Bytes of the configuration.
pub(super) const CONFIG_LENGTH: usize = 36;
/// Where in the configuration the driver may say how many bytes of sense data it takes.
pub(super) const CONFIG_SENSE_SIZE: u64 = 20;
/// Where in the configuration the driver may say how long its command blocks are.
pub(super) const CONFIG_CDB_SIZE: u64 = 24;
/// What [`CONFIG_SENSE_SIZE`] holds at first.
pub(super) const SENSE_SIZE: u32 = 96;
/// What [`CONFIG_CDB_SIZE`] holds at first.
pub(super) const CDB_SIZE: u32 = 32;

/// Bytes of a request before its command block: lun, id, task attribute, priority, CRN.
pub(super) const REQUEST_LENGTH: usize = 19;
/// Bytes of a response before its sense data.
pub(super) const RESPONSE_LENGTH: usize = 12;

/// Response: the command was executed; its status says how.
pub(super) const S_OK: u8 = 0;
/// Response: the data does not fit the buffers.
pub(super) const S_OVERRUN: u8 = 1;
/// Response: there is no such target.
pub(super) const S_BAD_TARGET: u8 = 3;
/// Response: the request is none.
pub(super) const S_FAILURE: u8 = 9;
/// Response to a task management function: not one of those.
pub(super) const S_FUNCTION_REJECTED: u8 = 11;

/// Control request: a task management function.
pub(super) const T_TMF: u32 = 0;
/// Control request: which asynchronous events are there?
pub(super) const T_AN_QUERY: u32 = 1;
/// Control request: send me these.
pub(super) const T_AN_SUBSCRIBE: u32 = 2;
/// The highest task management function (query task set).
pub(super) const TMF_LAST: u32 = 7;

/// SCSI status: done.
pub(super) const GOOD: u8 = 0x00;
/// SCSI status: the sense data says why not.
pub(super) const CHECK_CONDITION: u8 = 0x02;

/// Operation codes.
pub(super) mod op {
    pub(in super::super) const TEST_UNIT_READY: u8 = 0x00;
    pub(in super::super) const REQUEST_SENSE: u8 = 0x03;
    pub(in super::super) const READ_6: u8 = 0x08;
    pub(in super::super) const WRITE_6: u8 = 0x0a;
    pub(in super::super) const INQUIRY: u8 = 0x12;
    pub(in super::super) const MODE_SENSE_6: u8 = 0x1a;
    pub(in super::super) const START_STOP_UNIT: u8 = 0x1b;
    pub(in super::super) const PREVENT_ALLOW: u8 = 0x1e;
    pub(in super::super) const READ_CAPACITY_10: u8 = 0x25;
    pub(in super::super) const READ_10: u8 = 0x28;
    pub(in super::super) const WRITE_10: u8 = 0x2a;
    pub(in super::super) const VERIFY_10: u8 = 0x2f;
    pub(in super::super) const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub(in super::super) const WRITE_SAME_10: u8 = 0x41;
    pub(in super::super) const UNMAP: u8 = 0x42;
    pub(in super::super) const MODE_SENSE_10: u8 = 0x5a;
    pub(in super::super) const READ_16: u8 = 0x88;
    pub(in super::super) const WRITE_16: u8 = 0x8a;
    pub(in super::super) const VERIFY_16: u8 = 0x8f;
    pub(in super::super) const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub(in super::super) const WRITE_SAME_16: u8 = 0x93;
    pub(in super::super) const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub(in super::super) const REPORT_LUNS: u8 = 0xa0;
    pub(in super::super) const READ_12: u8 = 0xa8;
    pub(in super::super) const WRITE_12: u8 = 0xaa;
    /// Service action of [`SERVICE_ACTION_IN_16`].
    pub(in super::super) const READ_CAPACITY_16: u8 = 0x10;
}
