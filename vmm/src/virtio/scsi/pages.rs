//! What a logical unit says of itself: INQUIRY, vital product data, capacities and mode pages.

use super::sense::{self, Sense};
use super::{MAX_UNMAP_RANGES, MAX_UNMAP_SECTORS, MAX_WRITE_SAME_SECTORS};
use crate::virtio::disk::{Disk, SECTOR};

const VENDOR: &[u8; 8] = b"UNDRCRFT";
const PRODUCT: &[u8; 16] = b"DISK            ";
const REVISION: &[u8; 4] = b"1   ";

/// Sectors of 512 bytes in a physical block of 4 KiB, as a power of two.
const PHYSICAL_EXPONENT: u8 = 3;

/// Standard INQUIRY data (SPC-4, section 6.6.2); without a disk, that nothing is and can be at this unit.
pub(super) fn inquiry(disk: Option<&Disk>) -> Vec<u8> {
    let mut data = vec![0; 36];
    data[0] = if disk.is_some() { 0 } else { 0x7f };
    // SPC-4; response data format 2; command queuing.
    data[2] = 6;
    data[3] = 2;
    data[4] = (data.len() - 5) as u8;
    data[7] = 2;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    data
}

/// A page of vital product data (SPC-4, section 7.8; SBC-3, section 6.6).
pub(super) fn vital(disk: &Disk, lun: u8, page: u8) -> Result<Vec<u8>, Sense> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
        0x80 => name(disk, lun).into_bytes(),
        0x83 => {
            // One designator: ASCII, of the logical unit, beginning with the vendor.
            let mut id = VENDOR.to_vec();
            id.extend(name(disk, lun).bytes());
            let mut body = vec![2, 1, 0, id.len() as u8];
            body.extend(id);
            body
        }
        0xb0 => limits(disk),
        0xb1 => {
            let mut body = vec![0; 60];
            // Does not rotate.
            body[1] = 1;
            body
        }
        0xb2 if disk.is_read_only() => vec![0; 4],
        // UNMAP and both kinds of WRITE SAME unmap; unmapped sectors read as zeros; thin.
        0xb2 => vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0],
        _ => return Err(sense::INVALID_FIELD),
    };
    let mut data = vec![0, page, 0, 0];
    data[2..].copy_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend(body);
    Ok(data)
}

fn name(disk: &Disk, lun: u8) -> String {
    if disk.serial().is_empty() { format!("lun-{lun}") } else { disk.serial().into() }
}

/// Block limits (SBC-3, section 6.6.4).
fn limits(disk: &Disk) -> Vec<u8> {
    let mut body = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| body[at..at + bytes.len()].copy_from_slice(bytes);
    // WSNZ: a WRITE SAME of no blocks is not one of all.
    put(0, &[1]);
    put(2, &(1_u16 << PHYSICAL_EXPONENT).to_be_bytes());
    if !disk.is_read_only() {
        put(16, &MAX_UNMAP_SECTORS.to_be_bytes());
        put(20, &MAX_UNMAP_RANGES.to_be_bytes());
        put(24, &(1_u32 << PHYSICAL_EXPONENT).to_be_bytes());
        // UGAVALID: aligned from sector 0 on.
        put(28, &(1_u32 << 31).to_be_bytes());
        put(32, &u64::from(MAX_WRITE_SAME_SECTORS).to_be_bytes());
    }
    body
}

/// READ CAPACITY (10) data (SBC-3, section 5.15): all ones if it takes the longer command.
pub(super) fn capacity_10(disk: &Disk) -> Vec<u8> {
    let last = u32::try_from(disk.sectors() - 1).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend((SECTOR as u32).to_be_bytes());
    data
}

/// READ CAPACITY (16) data (SBC-3, section 5.16).
pub(super) fn capacity_16(disk: &Disk) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(disk.sectors() - 1).to_be_bytes());
    data[8..12].copy_from_slice(&(SECTOR as u32).to_be_bytes());
    data[13] = PHYSICAL_EXPONENT;
    // LBPME, LBPRZ: unmapping is possible, and gives zeros.
    data[14] = if disk.is_read_only() { 0 } else { 0xc0 };
    data
}

/// MODE SENSE data (SPC-4, sections 6.11, 6.12, 7.5), without block descriptors.
pub(super) fn modes(disk: &Disk, cdb: &[u8], is_long: bool) -> Result<Vec<u8>, Sense> {
    let (control, page, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
    // Saved values (3) are not kept; no page has subpages.
    if control == 3 || (subpage != 0 && subpage != 0xff) {
        return Err(sense::INVALID_FIELD);
    }
    let mut pages = Vec::new();
    if matches!(page, 0x08 | 0x3f) {
        // Caching (SBC-3, section 6.5.5): there is a write cache, and it cannot be changed.
        let mut caching = [0; 20];
        caching[..2].copy_from_slice(&[0x08, 18]);
        caching[2] = if control == 1 || disk.is_read_only() { 0 } else { 0x04 };
        pages.extend(caching);
    }
    if matches!(page, 0x0a | 0x3f) {
        // Control: fixed sense data, any order of commands.
        let mut controls = [0; 12];
        controls[..2].copy_from_slice(&[0x0a, 10]);
        controls[3] = if control == 1 { 0 } else { 0x10 };
        pages.extend(controls);
    }
    if pages.is_empty() {
        return Err(sense::INVALID_FIELD);
    }
    // WP, or DPOFUA.
    let parameter = if disk.is_read_only() { 0x80 } else { 0x10 };
    let mut data = if is_long {
        let length = (pages.len() + 6) as u16;
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, parameter, 0, 0, 0, 0]
    } else {
        vec![(pages.len() + 3) as u8, 0, parameter, 0]
    };
    data.extend(pages);
    Ok(data)
}

/// REPORT LUNS data (SPC-4, section 6.33), by the peripheral device addressing method.
pub(super) fn luns(present: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut data = vec![0; 8];
    for lun in present {
        data.extend([0, lun, 0, 0, 0, 0, 0, 0]);
    }
    let length = (data.len() - 8) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}
