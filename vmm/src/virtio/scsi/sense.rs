//! Why a command failed, in SCSI's words (SPC-4, section 4.5).

use crate::virtio::disk::RequestError;

/// A sense key with its additional code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sense {
    pub(super) key: u8,
    pub(super) code: u8,
    pub(super) qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense { key, code, qualifier }
}

pub(super) const NONE: Sense = sense(0, 0, 0);
pub(super) const WRITE_ERROR: Sense = sense(3, 0x0c, 0);
pub(super) const READ_ERROR: Sense = sense(3, 0x11, 0);
pub(super) const PARAMETER_LIST_LENGTH: Sense = sense(5, 0x1a, 0);
pub(super) const INVALID_COMMAND: Sense = sense(5, 0x20, 0);
pub(super) const ADDRESS_OUT_OF_RANGE: Sense = sense(5, 0x21, 0);
pub(super) const INVALID_FIELD: Sense = sense(5, 0x24, 0);
pub(super) const NO_SUCH_UNIT: Sense = sense(5, 0x25, 0);
pub(super) const WRITE_PROTECTED: Sense = sense(7, 0x27, 0);
/// What Linux turns into ENOSPC.
pub(super) const NO_SPACE: Sense = sense(7, 0x27, 7);

/// Bytes of sense data in the fixed format.
pub(super) const LENGTH: usize = 18;

impl Sense {
    /// Sense data in the fixed format (SPC-4, section 4.5.3).
    pub(super) fn data(self) -> [u8; LENGTH] {
        let mut data = [0; LENGTH];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = LENGTH as u8 - 8;
        data[12] = self.code;
        data[13] = self.qualifier;
        data
    }

    /// What a disk's error is called; `medium` is the name of an error of the file itself.
    pub(super) fn of(error: &RequestError, medium: Self) -> Self {
        match error {
            RequestError::Range => ADDRESS_OUT_OF_RANGE,
            RequestError::ReadOnly => WRITE_PROTECTED,
            RequestError::NoSpace => NO_SPACE,
            RequestError::Io(_) => medium,
        }
    }
}
