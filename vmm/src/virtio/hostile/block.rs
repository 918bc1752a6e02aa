//! Requests to a disk, which may be read-only.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Part, Program};
use crate::virtio::block::Block;
use crate::virtio::disk::Disk;
use crate::virtio::{EventLoop, VirtioDevice};

/// Sectors of every disk here.
pub(super) const SECTORS: u64 = 40;

/// A disk's file, as the host knows it.
pub(super) struct Backing {
    file: File,
    is_read_only: bool,
}

impl Backing {
    /// Makes a disk and what it must look like.
    pub(super) fn new(is_read_only: bool) -> (Self, Disk) {
        let file = File::from(memfd_create(c"disk", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.write_all_at(&[0xd5; (SECTORS * 512) as usize], 0).expect("writing");
        let fd = OwnedFd::from(file.try_clone().expect("a descriptor"));
        let disk = Disk::from_fd(fd, "disk".as_ref(), is_read_only, "serial").expect("a disk");
        (Self { file, is_read_only }, disk)
    }

    /// Its length never changes, and nothing else does if it is read-only.
    pub(super) fn check(&self) {
        let length = self.file.metadata().expect("its length").len();
        assert_eq!(length, SECTORS * 512, "the disk's file changed its length");
        if self.is_read_only {
            let mut bytes = vec![0; length as usize];
            self.file.read_exact_at(&mut bytes, 0).expect("reading");
            assert!(bytes.iter().all(|&byte| byte == 0xd5), "a read-only disk was written to");
        }
    }
}

/// A sector's number: mostly about the disk's two ends.
pub(super) fn sector(program: &mut Program<'_>) -> u64 {
    match program.byte() {
        n @ 0..=199 => u64::from(n) % (SECTORS + 3),
        n @ 200..=227 => (u64::MAX >> (n & 1)) - u64::from(n - 200),
        n @ 228..=240 => (u64::MAX / 512) + u64::from(n) - 234,
        _ => program.quad(),
    }
}

pub(super) struct Subject(Backing);

impl super::Subject for Subject {
    fn new(program: &mut Program<'_>, _: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let (backing, disk) = Backing::new(program.once_in(3));
        (Self(backing), Box::new(Block::new(disk, "disk 0")))
    }

    fn request(&mut self, program: &mut Program<'_>, _: usize) -> Vec<Part> {
        // In, out, flush, identity, discard, write zeroes, and what is none.
        let kind = program.pick(&[0, 1, 4, 8, 11, 13, 1, 13, 2, u32::MAX]);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector(program).to_le_bytes());
        let mut parts = vec![Part::Out(header)];
        match kind {
            0 | 8 => parts.push(Part::In(program.number())),
            11 | 13 => {
                let mut ranges = Vec::new();
                let most = if program.once_in(8) { 70 } else { 3 };
                for _ in 0..=program.below(most) {
                    ranges.extend(sector(program).to_le_bytes());
                    ranges.extend(program.number().to_le_bytes());
                    ranges.extend(u32::from(program.byte() / 100).to_le_bytes());
                }
                parts.push(Part::Out(ranges));
            }
            _ => {
                let count = program.pick(&[512, 1024, 0, 511, 4096, 513]);
                parts.push(Part::Out(vec![program.byte(); count]));
            }
        }
        parts.push(Part::In(1));
        parts
    }

    fn end(&mut self) {
        self.0.check();
    }
}
