//! SCSI commands on a disk.

use vm_memory::GuestMemoryMmap;

use super::sense::{self, Sense};
use super::spec::op;
use super::{MAX_UNMAP_RANGES, MAX_UNMAP_SECTORS, MAX_WRITE_SAME_SECTORS, Units, pages};
use crate::virtio::buffers::Buffers;
use crate::virtio::disk::{Disk, SECTOR};

/// A command's end, if it is not an error.
pub(super) enum Done {
    /// So many bytes were read from the data that came with it, and written to the room that did.
    Moved { read: u64, written: u64 },
    /// The data that came with it, or the room, is too small for what it asks for.
    Overrun,
}

const NOTHING: Done = Done::Moved { read: 0, written: 0 };

/// A command with what it works on.
pub(super) struct Command<'a> {
    pub(super) units: &'a Units,
    pub(super) lun: u8,
    pub(super) cdb: &'a [u8; 16],
    pub(super) memory: &'a GuestMemoryMmap,
    pub(super) out: Buffers,
    pub(super) into: Buffers,
}

impl Command<'_> {
    /// Executes it.
    pub(super) fn execute(mut self) -> Result<Done, Sense> {
        let cdb = self.cdb;
        let disk = self.units[usize::from(self.lun)].as_ref();
        // These are answered for units that are not there, too.
        match (cdb[0], disk) {
            (op::INQUIRY, _) => return self.inquiry(disk),
            (op::REPORT_LUNS, _) => {
                let present = (0..=u8::MAX).filter(|&lun| self.units[usize::from(lun)].is_some());
                return Ok(self.give(&pages::luns(present), be32(cdb, 6)));
            }
            (op::REQUEST_SENSE, _) => {
                let sense = if disk.is_some() { sense::NONE } else { sense::NO_SUCH_UNIT };
                return Ok(self.give(&sense.data(), cdb[4].into()));
            }
            _ => {}
        }
        let disk = disk.ok_or(sense::NO_SUCH_UNIT)?;
        match cdb[0] {
            op::TEST_UNIT_READY | op::PREVENT_ALLOW => Ok(NOTHING),
            op::START_STOP_UNIT => self.flush(disk),
            op::READ_CAPACITY_10 => Ok(self.give(&pages::capacity_10(disk), u32::MAX)),
            op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == op::READ_CAPACITY_16 => {
                Ok(self.give(&pages::capacity_16(disk), be32(cdb, 10)))
            }
            op::MODE_SENSE_6 => {
                let data = pages::modes(disk, cdb, false)?;
                Ok(self.give(&data, cdb[4].into()))
            }
            op::MODE_SENSE_10 => {
                let data = pages::modes(disk, cdb, true)?;
                Ok(self.give(&data, be16(cdb, 7).into()))
            }
            op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => self.read(disk),
            op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => self.write(disk),
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                self.check_range(disk)?;
                self.flush(disk)
            }
            op::VERIFY_10 | op::VERIFY_16 => {
                // BYTCHK: comparing with data.
                if cdb[1] & 0x06 != 0 {
                    return Err(sense::INVALID_FIELD);
                }
                self.check_range(disk)?;
                Ok(NOTHING)
            }
            op::UNMAP => self.unmap(disk),
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => self.write_same(disk),
            _ => Err(sense::INVALID_COMMAND),
        }
    }

    /// Gives the guest as much of `data` as it asked for and has room for.
    fn give(&mut self, data: &[u8], allocation: u32) -> Done {
        let count = usize::try_from(allocation).map_or(data.len(), |n| n.min(data.len()));
        let written = self.into.write(self.memory, &data[..count]) as u64;
        Done::Moved { read: 0, written }
    }

    fn inquiry(&mut self, disk: Option<&Disk>) -> Result<Done, Sense> {
        let (cdb, allocation) = (self.cdb, u32::from(be16(self.cdb, 3)));
        let data = match (cdb[1] & 1, cdb[2], disk) {
            (0, 0, _) => pages::inquiry(disk),
            (1, page, Some(disk)) => pages::vital(disk, self.lun, page)?,
            _ => return Err(sense::INVALID_FIELD),
        };
        Ok(self.give(&data, allocation))
    }

    /// First sector and count of a command that has them, by its length.
    fn range(&self) -> (u64, u64) {
        let cdb = self.cdb;
        match cdb[0] >> 5 {
            0 => {
                let address = u64::from(be32(cdb, 0) & 0x1f_ffff);
                (address, if cdb[4] == 0 { 256 } else { cdb[4].into() })
            }
            4 => (u64::from(be32(cdb, 2)) << 32 | u64::from(be32(cdb, 6)), be32(cdb, 10).into()),
            5 => (be32(cdb, 2).into(), be32(cdb, 6).into()),
            _ => (be32(cdb, 2).into(), be16(cdb, 7).into()),
        }
    }

    fn check_range(&self, disk: &Disk) -> Result<(), Sense> {
        let (sector, count) = self.range();
        match sector.checked_add(count) {
            Some(end) if end <= disk.sectors() => Ok(()),
            _ => Err(sense::ADDRESS_OUT_OF_RANGE),
        }
    }

    /// The protection fields of reads and writes but the shortest must be 0: there is no protection.
    fn check_protection(&self) -> Result<(), Sense> {
        if self.cdb[0] >> 5 != 0 && self.cdb[1] & 0xe0 != 0 { Err(sense::INVALID_FIELD) } else { Ok(()) }
    }

    /// FUA: what is written must be durable before the command ends.
    fn is_unit_access_forced(&self) -> bool {
        self.cdb[0] >> 5 != 0 && self.cdb[1] & 0x08 != 0
    }

    fn read(&mut self, disk: &Disk) -> Result<Done, Sense> {
        self.check_protection()?;
        self.check_range(disk)?;
        let (sector, count) = self.range();
        let length = count * SECTOR;
        if self.into.len() < length {
            return Ok(Done::Overrun);
        }
        disk.read(self.memory, self.into.take(length), sector)
            .map_err(|error| failed(&error, sense::READ_ERROR))?;
        Ok(Done::Moved { read: 0, written: length })
    }

    fn write(&mut self, disk: &Disk) -> Result<Done, Sense> {
        self.check_protection()?;
        self.check_range(disk)?;
        let (sector, count) = self.range();
        let length = count * SECTOR;
        if self.out.len() < length {
            return Ok(Done::Overrun);
        }
        disk.write(self.memory, self.out.take(length), sector)
            .map_err(|error| failed(&error, sense::WRITE_ERROR))?;
        if self.is_unit_access_forced() {
            self.flush(disk)?;
        }
        Ok(Done::Moved { read: length, written: 0 })
    }

    fn flush(&self, disk: &Disk) -> Result<Done, Sense> {
        disk.flush().map_err(|error| failed(&error, sense::WRITE_ERROR))?;
        Ok(NOTHING)
    }

    /// UNMAP (SBC-3, section 5.28).
    fn unmap(&mut self, disk: &Disk) -> Result<Done, Sense> {
        // ANCHOR.
        if self.cdb[1] & 1 != 0 {
            return Err(sense::INVALID_FIELD);
        }
        let length = u64::from(be16(self.cdb, 7));
        if length == 0 {
            return Ok(NOTHING);
        }
        if self.out.len() < length {
            return Ok(Done::Overrun);
        }
        let mut list = self.out.take(length);
        let header = list.read_array::<8>(self.memory).ok_or(sense::PARAMETER_LIST_LENGTH)?;
        let mut ranges = list.take(be16(&header, 2).into());
        if ranges.len() / 16 > MAX_UNMAP_RANGES.into() {
            return Err(sense::INVALID_FIELD);
        }
        while let Some(range) = ranges.read_array::<16>(self.memory) {
            let sector = u64::from(be32(&range, 0)) << 32 | u64::from(be32(&range, 4));
            self.zero(disk, sector, be32(&range, 8), MAX_UNMAP_SECTORS, true)?;
        }
        Ok(Done::Moved { read: length, written: 0 })
    }

    /// WRITE SAME (SBC-3, sections 5.44, 5.45), of zeros.
    fn write_same(&mut self, disk: &Disk) -> Result<Done, Sense> {
        self.check_protection()?;
        let flags = self.cdb[1];
        // ANCHOR, and the obsolete PBDATA and LBDATA.
        if flags & 0x16 != 0 {
            return Err(sense::INVALID_FIELD);
        }
        // NDOB: no data comes with it, and zeros are meant.
        let read = if self.cdb[0] == op::WRITE_SAME_16 && flags & 1 != 0 {
            0
        } else {
            match self.out.read_array::<{ SECTOR as usize }>(self.memory) {
                None => return Ok(Done::Overrun),
                Some(block) if block.iter().any(|&byte| byte != 0) => return Err(sense::INVALID_FIELD),
                Some(_) => SECTOR,
            }
        };
        let (sector, count) = self.range();
        let count = u32::try_from(count).map_err(|_| sense::INVALID_FIELD)?;
        // WSNZ.
        if count == 0 {
            return Err(sense::INVALID_FIELD);
        }
        self.zero(disk, sector, count, MAX_WRITE_SAME_SECTORS, flags & 0x08 != 0)?;
        Ok(Done::Moved { read, written: 0 })
    }

    fn zero(&self, disk: &Disk, sector: u64, count: u32, limit: u32, unmap: bool) -> Result<(), Sense> {
        if count > limit {
            return Err(sense::INVALID_FIELD);
        }
        disk.write_zeroes(sector, count.into(), unmap).map_err(|error| failed(&error, sense::WRITE_ERROR))
    }
}

/// Says on the host what its own trouble is, and in SCSI's words what the guest may know.
fn failed(error: &crate::virtio::disk::RequestError, medium: Sense) -> Sense {
    error.report();
    Sense::of(error, medium)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1])
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}
