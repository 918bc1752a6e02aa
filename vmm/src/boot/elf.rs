//! An ELF kernel: checked first, then read straight into guest memory.
//!
//! Everything in the file is a claim. [`parse`] reads the headers (System V ABI, chapter 4 and 5) into an [`Image`] whose
//! numbers were all checked against each other, the file's length and the room in guest memory; [`Image::load`] then only
//! moves bytes. No allocation depends on the file but the segment table, whose entries are counted first.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::arch::layout;
use crate::memory::GuestMemory;

/// The first bytes of every ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// Far more than a kernel has (Linux: 5), and few enough to read at once.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Linux's notes take a few hundred bytes.
const MAX_NOTES_SIZE: u64 = 0x1_0000;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen's public/elfnote.h): the physical address of the PVH entry.
const NOTE_PVH_ENTRY: u32 = 18;

/// e_machine of the architecture this VMM was built for.
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

/// The names of the architectures somebody is likely to have a kernel for.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86 (32-bit)".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390x".into(),
        40 => "Arm (32-bit)".into(),
        62 => "x86-64".into(),
        183 => "aarch64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("unknown (e_machine {other})"),
    }
}

/// A part of the file and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Bytes from the file's start.
    offset: u64,
    /// Bytes in the file.
    file_size: u64,
    /// Guest physical address.
    address: u64,
}

/// A kernel whose headers were found good.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    segments: Vec<Segment>,
    /// Physical address of the 64-bit entry.
    pub entry: u64,
    /// Physical address of the PVH entry, if a note names one.
    pub pvh_entry: Option<u64>,
    /// First address behind the kernel and its zeroed memory.
    pub end: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads and checks the headers of `file` for a machine whose first RAM ends at `ram_end`.
///
/// # Errors
/// The file is not a 64-bit kernel for this architecture, is cut off, contradicts itself, or needs more memory than there
/// is.
pub(super) fn parse(file: &File, ram_end: u64) -> Result<Image, Error> {
    let length = file.metadata().map_err(Error::Read)?.len();
    let mut header = [0; HEADER_SIZE];
    if length < HEADER_SIZE as u64 {
        return Err(Error::Truncated { what: "its ELF header", needs: HEADER_SIZE as u64, length });
    }
    file.read_exact_at(&mut header, 0).map_err(Error::Read)?;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(Error::Malformed("it is not a 64-bit little-endian ELF file"));
    }
    let machine = u16_at(&header, 18);
    if machine != MACHINE {
        return Err(Error::Architecture(machine_name(machine)));
    }
    if ![TYPE_EXECUTABLE, TYPE_SHARED].contains(&u16_at(&header, 16)) {
        return Err(Error::Malformed(
            "the ELF file is neither an executable nor a shared object (a vmlinux is)",
        ));
    }
    if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_SIZE {
        return Err(Error::Malformed("its program headers do not have the 56 bytes of 64-bit ELF"));
    }
    let count = u16_at(&header, 56);
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(Error::Malformed("it has no program headers, or more than 128"));
    }
    let table_offset = u64_at(&header, 32);
    let table_size = usize::from(count) * PROGRAM_HEADER_SIZE;
    inside("its program headers", table_offset, table_size as u64, length)?;
    let mut table = vec![0; table_size];
    file.read_exact_at(&mut table, table_offset).map_err(Error::Read)?;

    let mut image =
        Image { segments: Vec::new(), entry: u64_at(&header, 24), pvh_entry: None, end: layout::KERNEL_MIN };
    for entry in table.chunks_exact(PROGRAM_HEADER_SIZE) {
        let (offset, file_size) = (u64_at(entry, 8), u64_at(entry, 32));
        match u32_at(entry, 0) {
            PT_LOAD => image.add(entry, offset, file_size, length, ram_end)?,
            PT_NOTE if image.pvh_entry.is_none() => {
                inside("its notes", offset, file_size, length)?;
                if file_size > MAX_NOTES_SIZE {
                    return Err(Error::Malformed("its notes are longer than 64 KiB"));
                }
                let mut notes = vec![0; file_size as usize];
                file.read_exact_at(&mut notes, offset).map_err(Error::Read)?;
                image.pvh_entry = pvh_entry(&notes);
            }
            _ => {}
        }
    }
    if image.segments.is_empty() {
        return Err(Error::Malformed("it has nothing to load"));
    }
    for entry in [Some(image.entry), image.pvh_entry].into_iter().flatten() {
        if !(layout::KERNEL_MIN..image.end).contains(&entry) {
            return Err(Error::Malformed("an entry lies outside of what it loads"));
        }
    }
    Ok(image)
}

/// Whether `size` bytes at `offset` lie within a file of `length` bytes.
fn inside(what: &'static str, offset: u64, size: u64, length: u64) -> Result<(), Error> {
    match offset.checked_add(size) {
        Some(needs) if needs <= length => Ok(()),
        needs => Err(Error::Truncated { what, needs: needs.unwrap_or(u64::MAX), length }),
    }
}

impl Image {
    fn add(
        &mut self,
        entry: &[u8],
        offset: u64,
        file_size: u64,
        length: u64,
        ram_end: u64,
    ) -> Result<(), Error> {
        let (address, memory_size) = (u64_at(entry, 24), u64_at(entry, 40));
        inside("its segments", offset, file_size, length)?;
        if file_size > memory_size {
            return Err(Error::Malformed("a segment is larger in the file than in memory"));
        }
        if memory_size == 0 {
            return Ok(());
        }
        let end = address
            .checked_add(memory_size)
            .ok_or(Error::Malformed("a segment runs past the end of memory's addresses"))?;
        if address < layout::KERNEL_MIN {
            return Err(Error::Malformed("a segment wants to lie below 1 MiB, where the boot tables are"));
        }
        if end > ram_end {
            return Err(Error::Memory { needs: end, has: ram_end });
        }
        self.segments.push(Segment { offset, file_size, address });
        self.end = self.end.max(end);
        Ok(())
    }

    /// Reads the segments into guest memory. What a segment has beyond its bytes in the file is zero already.
    ///
    /// # Errors
    /// The file cannot be read, or was cut off since it was parsed.
    pub fn load(&self, file: &mut File, memory: &GuestMemory) -> Result<(), Error> {
        for segment in &self.segments {
            file.seek(SeekFrom::Start(segment.offset)).map_err(Error::Read)?;
            let size = segment.file_size as usize;
            memory
                .read_exact_volatile_from(GuestAddress(segment.address), file, size)
                .map_err(Error::Load)?;
        }
        Ok(())
    }
}

/// Looks for the PVH entry in a note segment (name and descriptor are padded to 4 bytes).
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let (name_size, size, kind) =
            (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let descriptor = 12_usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let next = descriptor.checked_add(size.checked_next_multiple_of(4)?)?;
        let (name, value) = (notes.get(12..12 + name_size)?, notes.get(descriptor..descriptor + size)?);
        if kind == NOTE_PVH_ENTRY && name == b"Xen\0" {
            return match value.len() {
                4 => Some(u64::from(u32_at(value, 0))),
                8 => Some(u64_at(value, 0)),
                _ => None,
            };
        }
        notes = notes.get(next..)?;
    }
    None
}
