//! virtio-scsi, without a kernel.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::spec::{self, op};
use super::{Scsi, ScsiControl, UnitError};
use crate::config::DiskConfig;
use crate::virtio::disk::Disk;
use crate::virtio::testing::{Driver, Part};

const REQUESTS: usize = 2;

fn image(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn disk(file: &NamedTempFile, read_only: bool) -> Disk {
    Disk::open(&DiskConfig { path: file.path().into(), read_only, serial: String::new() }).unwrap()
}

fn started() -> (Driver, ScsiControl) {
    let (scsi, control) = Scsi::new();
    (Driver::started(Box::new(scsi)), control)
}

struct Answer {
    response: u8,
    status: u8,
    /// Key, code, qualifier.
    sense: Option<[u8; 3]>,
    residual: u32,
    data: Vec<u8>,
}

fn request(driver: &mut Driver, lun: u8, cdb: &[u8], out: &[u8], room: u32) -> Answer {
    let mut head = [0; spec::REQUEST_LENGTH + spec::CDB_SIZE as usize];
    head[..4].copy_from_slice(&[1, 0, 0x40, lun]);
    head[spec::REQUEST_LENGTH..spec::REQUEST_LENGTH + cdb.len()].copy_from_slice(cdb);
    let response = spec::RESPONSE_LENGTH as u32 + spec::SENSE_SIZE;
    let (mut written, _) =
        driver.request(REQUESTS, &[Part::Out(&head), Part::Out(out), Part::In(response), Part::In(room)]);
    let (data, head) = (written.pop().unwrap(), written.pop().unwrap());
    let sense_length = u32::from_le_bytes(head[..4].try_into().unwrap());
    Answer {
        response: head[11],
        status: head[10],
        sense: (sense_length > 0).then(|| [head[14], head[24], head[25]]),
        residual: u32::from_le_bytes(head[4..8].try_into().unwrap()),
        data,
    }
}

/// A command that is to succeed; returns what it gave.
fn good(driver: &mut Driver, lun: u8, cdb: &[u8], out: &[u8], room: u32) -> Vec<u8> {
    let answer = request(driver, lun, cdb, out, room);
    assert_eq!((answer.response, answer.status, answer.sense), (spec::S_OK, spec::GOOD, None), "{cdb:x?}");
    let mut data = answer.data;
    if out.is_empty() {
        data.truncate((room - answer.residual) as usize);
    }
    data
}

/// A command that is to fail; returns its sense.
fn bad(driver: &mut Driver, lun: u8, cdb: &[u8], out: &[u8], room: u32) -> [u8; 3] {
    let answer = request(driver, lun, cdb, out, room);
    assert_eq!((answer.response, answer.status), (spec::S_OK, spec::CHECK_CONDITION), "{cdb:x?}");
    answer.sense.unwrap()
}

fn cdb10(code: u8, sector: u32, count: u16) -> [u8; 10] {
    let (s, c) = (sector.to_be_bytes(), count.to_be_bytes());
    [code, 0, s[0], s[1], s[2], s[3], 0, c[0], c[1], 0]
}

fn cdb16(code: u8, flags: u8, sector: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (code, flags);
    cdb[2..10].copy_from_slice(&sector.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

#[test]
fn units_come_and_go_while_the_controller_works() {
    let (mut driver, control) = started();
    let answer = request(&mut driver, 0, &[op::INQUIRY, 0, 0, 0, 36, 0], &[], 36);
    assert_eq!(answer.response, spec::S_BAD_TARGET, "without any disk the target is not there");
    let files: Vec<_> = (0..64).map(|_| image(1 << 20)).collect();
    for (lun, file) in (0..).zip(&files) {
        control.attach(lun * 4, disk(file, false)).unwrap();
    }
    assert!(matches!(control.attach(8, disk(&image(512), true)), Err(UnitError::Taken(8))));
    let luns = good(&mut driver, 0, &[op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], &[], 4096);
    assert_eq!(luns.len(), 8 + 64 * 8);
    assert_eq!(luns[..4], (64_u32 * 8).to_be_bytes());
    assert_eq!(luns[8 + 63 * 8..][..2], [0, 252]);
    for lun in 0..64 {
        good(&mut driver, lun * 4, &cdb10(op::WRITE_10, u32::from(lun), 1), &[lun; 512], 0);
    }
    for lun in 0..64 {
        assert_eq!(good(&mut driver, lun * 4, &cdb10(op::READ_10, lun.into(), 1), &[], 512), [lun; 512]);
    }
    assert_eq!(good(&mut driver, 1, &[op::INQUIRY, 0, 0, 0, 36, 0], &[], 36)[0], 0x7f);
    assert_eq!(bad(&mut driver, 1, &[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], &[], 0), [5, 0x25, 0]);
    control.detach(4).unwrap();
    assert!(matches!(control.detach(4), Err(UnitError::Absent(4))));
    assert_eq!(bad(&mut driver, 4, &cdb10(op::READ_10, 0, 1), &[], 512), [5, 0x25, 0]);
    // Its file is free for others now.
    disk(&files[1], false);
    assert_eq!(control.attached().len(), 63);
}

#[test]
fn a_disk_describes_itself() {
    let (mut driver, control) = started();
    let file = image(3 << 20);
    control.attach(3, disk(&file, false)).unwrap();
    let inquiry = good(&mut driver, 3, &[op::INQUIRY, 0, 0, 0, 255, 0], &[], 255);
    assert_eq!((inquiry.len(), inquiry[0], usize::from(inquiry[4]) + 5), (36, 0, 36));
    assert_eq!(&inquiry[8..32], b"UNDRCRFTDISK            ");
    let pages = good(&mut driver, 3, &[op::INQUIRY, 1, 0, 0, 255, 0], &[], 255);
    assert_eq!(pages, [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for &page in &pages[4..] {
        let data = good(&mut driver, 3, &[op::INQUIRY, 1, page, 0, 255, 0], &[], 255);
        assert_eq!(data[1], page);
        assert_eq!(usize::from(data[3]) + 4, data.len());
    }
    assert_eq!(bad(&mut driver, 3, &[op::INQUIRY, 1, 0xb9, 0, 255, 0], &[], 255), [5, 0x24, 0]);
    assert_eq!(
        good(&mut driver, 3, &cdb10(op::READ_CAPACITY_10, 0, 0), &[], 8),
        [0, 0, 0x17, 0xff, 0, 0, 2, 0]
    );
    let cdb = cdb16(op::SERVICE_ACTION_IN_16, op::READ_CAPACITY_16, 0, 32);
    let capacity = good(&mut driver, 3, &cdb, &[], 32);
    assert_eq!(capacity[..12], [0, 0, 0, 0, 0, 0, 0x17, 0xff, 0, 0, 2, 0]);
    assert_eq!(capacity[13..15], [3, 0xc0]);
    let caching = good(&mut driver, 3, &[op::MODE_SENSE_6, 0, 8, 0, 255, 0], &[], 255);
    assert_eq!(caching[..7], [23, 0, 0x10, 0, 8, 18, 4], "write cache, DPO and FUA");
    assert_eq!(caching.len(), 24);
    let all = good(&mut driver, 3, &[op::MODE_SENSE_10, 0, 0x3f, 0, 0, 0, 0, 0, 255, 0], &[], 255);
    assert_eq!(usize::from(all[1]) + 2, all.len());
    assert_eq!(bad(&mut driver, 3, &[op::MODE_SENSE_6, 0, 0x1c, 0, 255, 0], &[], 255), [5, 0x24, 0]);
    assert_eq!(good(&mut driver, 3, &[op::REQUEST_SENSE, 0, 0, 0, 18, 0], &[], 18)[..3], [0x70, 0, 0]);
    for code in [op::TEST_UNIT_READY, op::START_STOP_UNIT, op::PREVENT_ALLOW] {
        good(&mut driver, 3, &[code, 0, 0, 0, 0, 0], &[], 0);
    }
    assert_eq!(bad(&mut driver, 3, &[0xa3, 0x0c, 0, 0, 0, 0], &[], 0), [5, 0x20, 0]);
}

#[test]
fn sectors_are_written_and_read_by_commands_of_every_length() {
    let (mut driver, control) = started();
    let file = image(1 << 20);
    control.attach(0, disk(&file, false)).unwrap();
    let twelve = |code| {
        let mut cdb = [0; 12];
        (cdb[0], cdb[5], cdb[9]) = (code, 3, 2);
        cdb
    };
    let pairs: [(Vec<u8>, Vec<u8>); 4] = [
        (vec![op::WRITE_6, 0, 0, 3, 2, 0], vec![op::READ_6, 0, 0, 3, 2, 0]),
        (cdb10(op::WRITE_10, 3, 2).into(), cdb10(op::READ_10, 3, 2).into()),
        (twelve(op::WRITE_12).into(), twelve(op::READ_12).into()),
        (cdb16(op::WRITE_16, 8, 3, 2).into(), cdb16(op::READ_16, 0, 3, 2).into()),
    ];
    for (n, (write, read)) in (1..).zip(pairs) {
        good(&mut driver, 0, &write, &[n; 1024], 0);
        assert_eq!(good(&mut driver, 0, &read, &[], 1024), [n; 1024]);
    }
    assert_eq!(good(&mut driver, 0, &[op::READ_6, 0, 0, 0, 0, 0], &[], 256 * 512).len(), 256 * 512);
    good(&mut driver, 0, &cdb10(op::SYNCHRONIZE_CACHE_10, 0, 0), &[], 0);
    good(&mut driver, 0, &cdb16(op::SYNCHRONIZE_CACHE_16, 0, 0, 0), &[], 0);
    good(&mut driver, 0, &cdb10(op::VERIFY_10, 0, 8), &[], 0);
    for cdb in [cdb16(op::READ_16, 0, 2048, 1), cdb16(op::VERIFY_16, 0, u64::MAX, u32::MAX)] {
        assert_eq!(bad(&mut driver, 0, &cdb, &[], 512), [5, 0x21, 0]);
    }
    let answer = request(&mut driver, 0, &cdb10(op::READ_10, 0, 2), &[], 512);
    assert_eq!(answer.response, spec::S_OVERRUN);
    let answer = request(&mut driver, 0, &cdb10(op::WRITE_10, 0, 2), &[0; 512], 0);
    assert_eq!(answer.response, spec::S_OVERRUN);
    assert_eq!(request(&mut driver, 0, &cdb10(op::READ_10, 0, 1), &[], 800).residual, 288);
}

#[test]
fn unmapped_sectors_go_back_and_read_as_zeros() {
    let (mut driver, control) = started();
    let file = image(4 << 20);
    std::io::Write::write_all(&mut file.as_file(), &vec![1; 4 << 20]).unwrap();
    file.as_file().sync_all().unwrap();
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    control.attach(0, disk(&file, false)).unwrap();
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(1024_u64.to_be_bytes());
    list.extend(2048_u32.to_be_bytes());
    list.extend([0; 4]);
    good(&mut driver, 0, &cdb10(op::UNMAP, 0, list.len() as u16), &list, 0);
    assert!(blocks() + 2000 <= before);
    assert_eq!(good(&mut driver, 0, &cdb10(op::READ_10, 1023, 1), &[], 512), [1; 512]);
    assert_eq!(good(&mut driver, 0, &cdb10(op::READ_10, 1024, 1), &[], 512), [0; 512]);
    // With a block of zeros, without any data, and by the short command.
    for (cdb, out) in [
        (cdb16(op::WRITE_SAME_16, 8, 0, 3).to_vec(), vec![0; 512]),
        (cdb16(op::WRITE_SAME_16, 9, 4, 3).to_vec(), vec![]),
        (cdb10(op::WRITE_SAME_10, 8, 3).to_vec(), vec![0; 512]),
    ] {
        good(&mut driver, 0, &cdb, &out, 0);
    }
    for sector in 0..12 {
        let expected = if sector % 4 == 3 { 1 } else { 0 };
        assert_eq!(
            good(&mut driver, 0, &cdb10(op::READ_10, sector, 1), &[], 512),
            [expected; 512],
            "{sector}"
        );
    }
    for (cdb, out) in [
        (cdb16(op::WRITE_SAME_16, 8, 0, 3), vec![7; 512]),
        (cdb16(op::WRITE_SAME_16, 9, 0, 0), vec![]),
        (cdb16(op::WRITE_SAME_16, 9, 0, u32::MAX), vec![]),
    ] {
        assert_eq!(bad(&mut driver, 0, &cdb, &out, 0), [5, 0x24, 0]);
    }
}

#[test]
fn a_read_only_unit_says_so_and_is_not_written() {
    let (mut driver, control) = started();
    let file = image(1 << 20);
    control.attach(0, disk(&file, true)).unwrap();
    assert_eq!(good(&mut driver, 0, &[op::MODE_SENSE_6, 0, 0x3f, 0, 4, 0], &[], 4)[2], 0x80);
    assert_eq!(bad(&mut driver, 0, &cdb10(op::WRITE_10, 0, 1), &[1; 512], 0), [7, 0x27, 0]);
    assert_eq!(bad(&mut driver, 0, &cdb16(op::WRITE_SAME_16, 9, 0, 8), &[], 0), [7, 0x27, 0]);
    assert_eq!(good(&mut driver, 0, &cdb10(op::READ_10, 0, 1), &[], 512), [0; 512]);
}

#[test]
fn task_management_is_answered() {
    let (mut driver, _control) = started();
    for (subtype, expected) in [(0_u32, spec::S_OK), (5, spec::S_OK), (8, spec::S_FUNCTION_REJECTED)] {
        let mut tmf = [0; 24];
        tmf[4..8].copy_from_slice(&subtype.to_le_bytes());
        let (written, length) = driver.request(0, &[Part::Out(&tmf), Part::In(1)]);
        assert_eq!((written, length), (vec![vec![expected]], 1));
    }
    let (written, _) = driver.request(0, &[Part::Out(&[2, 0, 0, 0, 1, 0, 0, 0]), Part::In(5)]);
    assert_eq!(written, [[0; 5]]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_command_is_answered(
        cdb in prop::array::uniform16(any::<u8>()),
        code in prop::sample::select(vec![
            0_u8, 3, 8, 0x0a, 0x12, 0x1a, 0x25, 0x28, 0x2a, 0x2f, 0x35, 0x41, 0x42, 0x5a, 0x88, 0x8a, 0x8f, 0x91,
            0x93, 0x9e, 0xa0, 0xa8, 0xaa, 0xff,
        ]),
        out in prop::collection::vec(any::<u8>(), 0..1024),
        room in 0_u32..2048,
        lun in 0_u8..2,
    ) {
        let (mut driver, control) = started();
        let file = image(64 << 10);
        control.attach(0, disk(&file, false)).unwrap();
        let mut cdb = cdb;
        cdb[0] = code;
        let answer = request(&mut driver, lun, &cdb, &out, room);
        prop_assert!(answer.response <= spec::S_OVERRUN);
        prop_assert!(answer.residual <= room + out.len() as u32);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), 64 << 10);
    }
}
