//! virtio-blk and the disks behind it, without a kernel.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::{Block, spec};
use crate::bus::Device;
use crate::config::DiskConfig;
use crate::virtio::disk::{Disk, DiskError};
use crate::virtio::mmio;
use crate::virtio::testing::{Driver, MEMORY, NEXT, Part, Raw, WRITE};

fn image(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn config(file: &NamedTempFile, read_only: bool) -> DiskConfig {
    DiskConfig { path: file.path().into(), read_only, serial: "serial-1".into() }
}

fn driver(file: &NamedTempFile, read_only: bool) -> Driver {
    let disk = Disk::open(&config(file, read_only)).unwrap();
    Driver::started(Box::new(Block::new(disk, "disk test")))
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Sends a request with `data` and returns its status.
fn send(driver: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let header = header(kind, sector);
    let (written, length) = driver.request(0, &[Part::Out(&header), Part::Out(data), Part::In(1)]);
    assert_eq!(length, 1);
    written[0][0]
}

fn read(driver: &mut Driver, sector: u64, length: u32) -> (u8, Vec<u8>) {
    let header = header(spec::T_IN, sector);
    let (mut written, _) = driver.request(0, &[Part::Out(&header), Part::In(length), Part::In(1)]);
    (written[1][0], written.swap_remove(0))
}

#[test]
fn sectors_are_written_read_flushed_and_named() {
    let file = image(1 << 20);
    let mut driver = driver(&file, false);
    let mut capacity = [0; 8];
    driver.transport.read(mmio::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    let data: Vec<u8> = (0..2048_u32).map(|i| i as u8 ^ 0x5a).collect();
    assert_eq!(send(&mut driver, spec::T_OUT, 7, &data), spec::S_OK);
    assert_eq!(read(&mut driver, 7, 2048), (spec::S_OK, data.clone()));
    assert_eq!(send(&mut driver, spec::T_FLUSH, 0, &[]), spec::S_OK);
    let mut on_disk = vec![0; 2048];
    let mut reader = file.as_file();
    reader.seek(SeekFrom::Start(7 * 512)).unwrap();
    reader.read_exact(&mut on_disk).unwrap();
    assert_eq!(on_disk, data);
    let (written, _) = driver.request(0, &[Part::Out(&header(spec::T_GET_ID, 0)), Part::In(20), Part::In(1)]);
    assert_eq!(written, [b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), vec![spec::S_OK]]);
    assert_eq!(send(&mut driver, 99, 0, &[]), spec::S_UNSUPP);
}

#[test]
fn where_parts_end_means_nothing() {
    let file = image(1 << 20);
    let mut driver = driver(&file, false);
    let mut bytes = header(spec::T_OUT, 3).to_vec();
    bytes.extend([9; 1024]);
    let (written, _) = driver.request(
        0,
        &[Part::Out(&bytes[..5]), Part::Out(&bytes[5..100]), Part::Out(&bytes[100..]), Part::In(1)],
    );
    assert_eq!(written, [[spec::S_OK]]);
    let (written, length) = driver.request(
        0,
        &[Part::Out(&header(spec::T_IN, 2)), Part::In(600), Part::In(900), Part::In(1536 - 1500 + 1)],
    );
    assert_eq!(length, 1537);
    let all = written.concat();
    assert!(all[..512].iter().all(|&b| b == 0) && all[512..1536].iter().all(|&b| b == 9));
    assert_eq!(all[1536], spec::S_OK);
}

#[test]
fn what_is_outside_the_disk_or_no_whole_sector_fails() {
    let file = image(4096);
    let mut driver = driver(&file, false);
    for (sector, length) in [(8, 512), (7, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100), (0, 0)] {
        assert_eq!(
            send(&mut driver, spec::T_OUT, sector, &vec![1; length]),
            spec::S_IOERR,
            "{sector} {length}"
        );
        assert_eq!(read(&mut driver, sector, length as u32).0, spec::S_IOERR);
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
    assert!(!driver.needs_reset());
}

#[test]
fn a_read_only_disk_is_not_written_whatever_the_guest_sends() {
    let file = image(1 << 20);
    file.as_file().write_all(&[5; 4096]).unwrap();
    let mut driver = driver(&file, true);
    driver.write(mmio::DEVICE_FEATURES_SEL, 0);
    let features = u64::from(driver.read(mmio::DEVICE_FEATURES));
    assert_ne!(features & spec::F_RO, 0);
    assert_eq!(features & (spec::F_DISCARD | spec::F_WRITE_ZEROES), 0);
    assert_eq!(send(&mut driver, spec::T_OUT, 0, &[6; 512]), spec::S_IOERR);
    assert_eq!(send(&mut driver, spec::T_DISCARD, 0, &range(0, 8, 0)), spec::S_IOERR);
    assert_eq!(send(&mut driver, spec::T_WRITE_ZEROES, 0, &range(0, 8, 1)), spec::S_IOERR);
    assert_eq!(read(&mut driver, 0, 4096), (spec::S_OK, vec![5; 4096]));
}

#[test]
fn discarding_makes_holes_and_zeroing_makes_zeros() {
    let file = image(8 << 20);
    file.as_file().write_all(&vec![1; 8 << 20]).unwrap();
    file.as_file().sync_all().unwrap();
    let blocks = || file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    let mut driver = driver(&file, false);
    let two = [range(0, 4096, 0), range(8192, 2048, 0)].concat();
    assert_eq!(send(&mut driver, spec::T_DISCARD, 0, &two), spec::S_OK);
    assert!(blocks() + 6000 <= before, "{before} blocks became {}", blocks());
    assert_eq!(read(&mut driver, 0, 512), (spec::S_OK, vec![0; 512]));
    assert_eq!(read(&mut driver, 4096, 512), (spec::S_OK, vec![1; 512]));
    for flags in [0, spec::RANGE_UNMAP] {
        assert_eq!(send(&mut driver, spec::T_WRITE_ZEROES, 0, &range(4097, 3, flags)), spec::S_OK);
        assert_eq!(read(&mut driver, 4096, 512), (spec::S_OK, vec![1; 512]));
        assert_eq!(read(&mut driver, 4097, 1536), (spec::S_OK, vec![0; 1536]));
        assert_eq!(read(&mut driver, 4100, 512), (spec::S_OK, vec![1; 512]));
    }
    for (data, status) in [
        (range(0, 8, 1), spec::S_UNSUPP),
        (range(0, 8, 2), spec::S_UNSUPP),
        (range(16384, 8, 0), spec::S_IOERR),
        (range(u64::MAX, 8, 0), spec::S_IOERR),
        (range(0, u32::MAX, 0), spec::S_IOERR),
        (vec![0; 15], spec::S_IOERR),
        (vec![], spec::S_IOERR),
        (range(0, 1, 0).repeat(65), spec::S_IOERR),
    ] {
        assert_eq!(send(&mut driver, spec::T_DISCARD, 0, &data), status, "{data:?}");
    }
}

#[test]
fn a_disk_that_is_written_belongs_to_one_machine() {
    let file = image(4096);
    let writer = Disk::open(&config(&file, false)).unwrap();
    for read_only in [false, true] {
        let error = Disk::open(&config(&file, read_only)).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("is in use"), "{error}");
    }
    drop(writer);
    let readers = [Disk::open(&config(&file, true)).unwrap(), Disk::open(&config(&file, true)).unwrap()];
    assert!(matches!(Disk::open(&config(&file, false)), Err(DiskError::InUse { .. })));
    drop(readers);
    Disk::open(&config(&file, false)).unwrap();
}

#[test]
fn what_is_no_disk_is_said_to_be_none() {
    let odd = image(1000);
    assert!(matches!(Disk::open(&config(&odd, false)), Err(DiskError::Size { bytes: 1000, .. })));
    assert!(matches!(Disk::open(&config(&image(0), false)), Err(DiskError::Size { bytes: 0, .. })));
    let at = |path: &str| DiskConfig { path: PathBuf::from(path), read_only: true, serial: String::new() };
    assert!(matches!(Disk::open(&at("/dev/null")), Err(DiskError::Kind { .. })));
    assert!(matches!(Disk::open(&at("/")), Err(DiskError::Kind { .. })));
    assert!(matches!(Disk::open(&at("/nowhere")), Err(DiskError::Open { .. })));
    let file = image(512);
    let serial = DiskConfig { serial: "123456789012345678901".into(), ..config(&file, true) };
    assert!(matches!(Disk::open(&serial), Err(DiskError::Serial(_))));
    let reader = std::fs::File::open(file.path()).unwrap();
    let error = Disk::from_fd(reader.into(), file.path(), false, "").unwrap_err();
    assert!(matches!(error, DiskError::Access { .. }), "{error}");
}

#[test]
fn requests_do_not_outlive_a_reset() {
    let file = image(32 << 20);
    let mut driver = driver(&file, false);
    let header = header(spec::T_IN, 0);
    for _ in 0..60 {
        driver.add(0, &[Part::Out(&header), Part::In(256 << 10), Part::In(1)]);
    }
    driver.ring(0);
    driver.write(mmio::STATUS, 0);
    // Whatever was done is done; nothing is done after the write has returned.
    let done = driver.used(0).len();
    let picture = driver.bytes(0, MEMORY as usize);
    std::thread::yield_now();
    assert_eq!(driver.used(0).len(), 0, "after {done}");
    assert!(picture == driver.bytes(0, MEMORY as usize));
    driver.start(!(1 << 29));
    assert_eq!(read(&mut driver, 0, 512).0, spec::S_OK);
}

#[test]
fn without_a_write_cache_the_switch_is_off() {
    let file = image(4096);
    let mut driver = Driver::new(Box::new(Block::new(Disk::open(&config(&file, false)).unwrap(), "t")));
    let writeback = |driver: &Driver| {
        let mut byte = [9];
        driver.transport.read(mmio::CONFIG + spec::CONFIG_WRITEBACK, &mut byte);
        byte[0]
    };
    driver.start(!(1 << 29 | spec::F_FLUSH | spec::F_CONFIG_WCE));
    assert_eq!(writeback(&driver), 0);
    assert_eq!(send(&mut driver, spec::T_OUT, 0, &[1; 512]), spec::S_OK);
    driver.write(mmio::STATUS, 0);
    driver.start(!(1 << 29));
    assert_eq!(writeback(&driver), 1);
    driver.transport.write(mmio::CONFIG + spec::CONFIG_WRITEBACK, &[0]);
    assert_eq!(writeback(&driver), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_request_is_answered_or_stops_the_device(
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..20, any::<u64>()],
        raw in prop::collection::vec(
            (prop_oneof![0x40_0000_u64..0x41_0000, any::<u64>()], prop_oneof![0_u32..2048, any::<u32>()], any::<bool>()),
            0..6),
    ) {
        let file = image(4096);
        let mut driver = driver(&file, false);
        let at = driver.buffer(16);
        vm_memory::Bytes::write_slice(&driver.memory, &header(kind, sector), vm_memory::GuestAddress(at)).unwrap();
        let mut all = vec![Raw { address: at, length: 16, flags: 0, next: 0 }];
        for (address, length, write) in raw {
            all.push(Raw { address, length, flags: if write { WRITE } else { 0 }, next: 0 });
        }
        let last = all.len() - 1;
        for (i, raw) in all.iter_mut().enumerate().take(last) {
            raw.flags |= NEXT;
            raw.next = i as u16 + 1;
        }
        driver.describe(0, 0, &all);
        driver.offer(0, 0);
        driver.ring(0);
        driver.wait();
        prop_assert!(driver.needs_reset() || driver.used(0).len() == 1);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
    }
}
