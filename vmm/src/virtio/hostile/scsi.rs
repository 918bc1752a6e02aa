//! Commands to the units of a controller: one that is written to, one that must not be, one that comes and goes.

use super::block::{Backing, sector};
use super::{Part, Program};
use crate::virtio::scsi::{Scsi, ScsiControl};
use crate::virtio::{EventLoop, VirtioDevice};

pub(super) struct Subject {
    control: ScsiControl,
    disks: Vec<Backing>,
}

/// The unit that comes and goes.
const GUEST_UNIT: u8 = 7;

/// Every operation code that means something, and two that do not.
const OPERATIONS: [u8; 29] = [
    0x28, 0x2a, 0x88, 0x8a, 0x42, 0x41, 0x93, 0x00, 0x03, 0x08, 0x0a, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x2f,
    0x35, 0x5a, 0x8f, 0x91, 0x9e, 0xa0, 0xa8, 0xaa, 0x12, 0x1a, 0x7f, 0xff,
];

impl Subject {
    fn command(program: &mut Program<'_>) -> Vec<u8> {
        let mut cdb = vec![0; 32];
        cdb[0] = program.pick(&OPERATIONS);
        cdb[1] = if program.once_in(4) { program.byte() } else { 0 };
        let (sector, count) = (sector(program), program.number());
        match cdb[0] >> 5 {
            0 => cdb[2..6].copy_from_slice(&[program.byte(), program.byte(), count as u8, 0]),
            4 => {
                cdb[1] |= if cdb[0] == 0x9e { 0x10 } else { 0 };
                cdb[2..10].copy_from_slice(&sector.to_be_bytes());
                cdb[10..14].copy_from_slice(&count.to_be_bytes());
            }
            5 => {
                cdb[2..6].copy_from_slice(&(sector as u32).to_be_bytes());
                cdb[6..10].copy_from_slice(&count.to_be_bytes());
            }
            _ => {
                cdb[2..6].copy_from_slice(&(sector as u32).to_be_bytes());
                cdb[7..9].copy_from_slice(&(count as u16).to_be_bytes());
            }
        }
        cdb
    }

    /// A list of ranges for UNMAP, whose lengths may not be true.
    fn unmap_list(program: &mut Program<'_>) -> Vec<u8> {
        let mut ranges = Vec::new();
        for _ in 0..=program.below(3) {
            ranges.extend(sector(program).to_be_bytes());
            ranges.extend(program.number().to_be_bytes());
            ranges.extend([0; 4]);
        }
        let length = if program.once_in(4) { program.word() } else { ranges.len() as u16 };
        let mut list = (length.wrapping_add(6)).to_be_bytes().to_vec();
        list.extend(length.to_be_bytes());
        list.extend([0; 4]);
        list.extend(ranges);
        list
    }
}

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, _: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let (scsi, control) = Scsi::new();
        let mut disks = Vec::new();
        for (unit, is_read_only) in [(0, false), (1, true)] {
            let (backing, disk) = Backing::new(is_read_only);
            control.attach(unit, disk).expect("a free unit");
            disks.push(backing);
        }
        (Self { control, disks }, Box::new(scsi))
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part> {
        if queue == 0 {
            // Task management, and questions about events.
            let mut request = program.number().to_le_bytes().to_vec();
            request.extend(program.number().to_le_bytes());
            request.extend([1, 0, 0x40, program.byte(), 0, 0, 0, 0]);
            return vec![Part::Out(request), Part::In(program.number() & 0x1f)];
        }
        let mut request = vec![1, 0, 0x40, program.pick(&[0, 1, 0, 1, GUEST_UNIT, 200]), 0, 0, 0, 0];
        if program.once_in(10) {
            request[program.below(8)] = program.byte();
        }
        request.extend([0; 11]);
        let cdb = Self::command(program);
        let mut data = match cdb[0] {
            0x42 => Self::unmap_list(program),
            0x41 | 0x93 => vec![program.byte() / 200; 512],
            0x0a | 0x2a | 0x8a | 0xaa => vec![program.byte(); program.pick(&[512, 4096, 1024, 511, 0])],
            _ => Vec::new(),
        };
        let mut cdb = cdb;
        if cdb[0] == 0x42 {
            let length = if program.once_in(5) { program.word() } else { data.len() as u16 };
            cdb[7..9].copy_from_slice(&length.to_be_bytes());
            data.truncate(usize::from(u16::MAX));
        }
        request.extend(cdb);
        vec![Part::Out(request), Part::Out(data), Part::In(108), Part::In(program.number())]
    }

    fn host(&mut self, _: &mut Program<'_>) {
        if self.control.detach(GUEST_UNIT).is_err() {
            let (backing, disk) = Backing::new(self.disks.len().is_multiple_of(2));
            self.control.attach(GUEST_UNIT, disk).expect("a free unit");
            self.disks.push(backing);
        }
    }

    fn end(&mut self) {
        for disk in &self.disks {
            disk.check();
        }
    }
}
