//! Disks past the host's page cache: what the file holds, and what the page cache does.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::buffers::{Buffers, Segment};
use super::disk::Disk;
use super::guest_io;
use super::uncached::{Uncached, set_direct};
use crate::config::DiskConfig;

const MEMORY: usize = 4 << 20;
const BYTES: usize = 256 << 10;

/// In the build's directory: a temporary one may be a tmpfs, which is a page cache.
fn image(bytes: u64) -> NamedTempFile {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
    std::fs::create_dir_all(&directory).unwrap();
    let file = NamedTempFile::new_in(directory).unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn disk(file: &NamedTempFile) -> Disk {
    Disk::open(&DiskConfig { path: file.path().into(), ..Default::default() }).unwrap().past_page_cache()
}

fn buffers(at: u64, lengths: &[u32]) -> Buffers {
    let mut buffers = Buffers::new();
    let mut address = at;
    for &length in lengths {
        buffers.push(Segment { address: GuestAddress(address), length });
        address += u64::from(length);
    }
    buffers
}

/// Bytes of the file in the page cache, by fincore(1)'s own way: mincore(2), through util-linux's program.
fn cached(file: &File) -> Option<u64> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let output = std::process::Command::new("fincore").args(["-nbr", "-o", "RES", &path]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Eight MiB, read and written, leave next to nothing, with O_DIRECT and without.
#[test]
fn the_page_cache_keeps_nothing() {
    const LENGTH: u64 = 8 << 20;
    let file = image(LENGTH);
    if cached(file.as_file()).is_none() {
        eprintln!("skipped: there is no fincore (util-linux)");
        return;
    }
    let memory = memory();
    memory.write_slice(&[5; 1 << 20], GuestAddress(0)).unwrap();
    let fill = |disk: &Disk| {
        for at in 0..LENGTH >> 20 {
            disk.write(&memory, buffers(0, &[1 << 20]), at << 11).unwrap();
        }
        disk.flush().unwrap();
        for at in 0..LENGTH >> 20 {
            disk.read(&memory, buffers(0, &[1 << 20]), at << 11).unwrap();
        }
        cached(file.as_file()).unwrap()
    };
    let plain = Disk::open(&DiskConfig { path: file.path().into(), ..Default::default() }).unwrap();
    assert_eq!(fill(&plain), LENGTH, "the control: a disk as any file");
    drop(plain);
    guest_io::drop_cached(file.as_file(), &(0..LENGTH));
    let direct = disk(&file);
    let kept = fill(&direct);
    assert!(kept <= LENGTH / 64, "{kept} bytes stay, direct: {}", direct.is_direct());
    drop(direct);
    // A size that is no multiple of any block but a sector: not every filesystem can do that directly.
    file.as_file().set_len(LENGTH + 512).unwrap();
    let odd = disk(&file);
    let kept = fill(&odd);
    assert!(kept <= LENGTH / 64, "{kept} bytes stay, direct: {}", odd.is_direct());
}

#[test]
fn o_direct_goes_with_the_disk() {
    let file = image(BYTES as u64);
    let flags = |file: &File| nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let before = flags(file.as_file());
    let fd = file.as_file().try_clone().unwrap().into();
    let disk = Disk::from_fd(fd, file.path(), false, "").unwrap().past_page_cache();
    assert_eq!(flags(file.as_file()) & libc::O_DIRECT != 0, disk.is_direct());
    drop(disk);
    assert_eq!(flags(file.as_file()), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any requests, aligned or not, leave in the file what they would leave in an array of bytes.
    #[test]
    fn every_request_does_what_it_would_do_cached(
        requests in prop::collection::vec((0..4_u8, 0..511_u64, 1..64_u64, 0..2000_u64, 1..6_usize), 1..24)
    ) {
        let file = image(BYTES as u64);
        let (disk, memory) = (disk(&file), memory());
        let mut model = vec![0; BYTES];
        for (number, (kind, sector, sectors, at, parts)) in requests.into_iter().enumerate() {
            let sectors = sectors.min(512 - sector);
            let (from, length) = ((sector * 512) as usize, (sectors * 512) as usize);
            // Parts that are no whole sectors, at odd addresses; half of them at even ones.
            let at = if at % 2 == 0 { at / 2 * 4096 % (1 << 20) } else { at };
            let first = if parts == 1 { length } else { (length / parts).max(1) };
            let lengths = [first as u32, (length - first) as u32];
            match kind {
                0 => {
                    memory.write_slice(&vec![number as u8 + 1; length], GuestAddress(at)).unwrap();
                    disk.write(&memory, buffers(at, &lengths), sector).unwrap();
                    model[from..from + length].fill(number as u8 + 1);
                }
                1 => {
                    disk.write_zeroes(sector, sectors, number % 2 == 0).unwrap();
                    model[from..from + length].fill(0);
                }
                2 => disk.flush().unwrap(),
                _ => {
                    disk.read(&memory, buffers(at, &lengths), sector).unwrap();
                    let mut bytes = vec![0; length];
                    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                    prop_assert_eq!(&bytes, &model[from..from + length]);
                }
            }
        }
        let mut bytes = vec![0; BYTES];
        let other = File::open(file.path()).unwrap();
        other.read_exact_at(&mut bytes, 0).unwrap();
        prop_assert!(bytes == model);
        prop_assert_eq!(other.metadata().unwrap().len(), BYTES as u64);
    }
}

/// By hand, as for a filesystem that makes no zeros itself: whole blocks and parts of them, over more than the buffer holds.
#[test]
fn zeros_by_hand_touch_nothing_else() {
    let file = image(BYTES as u64);
    let uncached = Uncached::new(file.as_file(), BYTES as u64);
    for (offset, length) in [(512, 512), (4096, 4096), (4608, 7680), (1536, BYTES - 2048)] {
        if uncached.is_direct() {
            set_direct(file.as_file(), false).unwrap();
        }
        file.as_file().write_all_at(&[9; BYTES], 0).unwrap();
        if uncached.is_direct() {
            set_direct(file.as_file(), true).unwrap();
        }
        uncached.write_zeros(file.as_file(), offset as u64, length as u64).unwrap();
        let mut bytes = vec![0; BYTES];
        File::open(file.path()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        let zeros = offset..offset + length;
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 9 }));
    }
}
