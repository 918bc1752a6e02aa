//! From a bzImage to the vmlinux in it.
//!
//! The layout is the boot protocol's (`Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header"); a payload has
//! been announced in it since version 2.08. Done once when a kernel enters the cache, and not at every boot.

use std::path::Path;

use crate::{Error, compression};

const ELF_MAGIC: &[u8] = b"\x7fELF";
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The vmlinux: `image` itself if it is an ELF file, the decompressed payload if it is a bzImage.
pub(crate) fn vmlinux(path: &Path, image: Vec<u8>) -> Result<Vec<u8>, Error> {
    let vmlinux = if image.starts_with(ELF_MAGIC) {
        image
    } else {
        let payload = locate(&image).map_err(|problem| not_a_kernel(path, problem))?;
        compression::decompress(path, image[payload].to_vec())?
    };
    check_elf(&vmlinux).map_err(|problem| not_a_kernel(path, problem))?;
    Ok(vmlinux)
}

fn not_a_kernel(path: &Path, problem: impl Into<String>) -> Error {
    Error::NotAKernel { path: path.into(), problem: problem.into() }
}

fn locate(image: &[u8]) -> Result<std::ops::Range<usize>, &'static str> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let half = |at: usize| Some(u16::from_le_bytes(*image.get(at..)?.first_chunk()?));
    let magic = image.get(HEADER_MAGIC..HEADER_MAGIC + 4);
    if half(BOOT_FLAG) != Some(0xaa55) || magic != Some(b"HdrS") {
        return Err("neither an ELF file nor a bzImage");
    }
    if half(VERSION).is_none_or(|v| v < 0x0208) {
        return Err("a bzImage older than boot protocol 2.08");
    }
    // 0 means 4, for kernels from the time before there was a field.
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        n => usize::from(n),
    };
    let range = || {
        let start = ((sectors + 1) * SECTOR).checked_add(word(PAYLOAD_OFFSET)?)?;
        let end = start.checked_add(word(PAYLOAD_LENGTH)?)?;
        (end <= image.len() && start < end).then_some(start..end)
    };
    range().ok_or("a bzImage that is cut off: its payload lies outside of it")
}

/// `EI_CLASS` 64 bit, `EI_DATA` little endian, `e_type` executable (or shared: a relocatable kernel is neither needed
/// nor refused), `e_machine` x86-64.
fn check_elf(bytes: &[u8]) -> Result<(), &'static str> {
    let header = bytes.get(..64).ok_or("cut off in the ELF header")?;
    if !header.starts_with(ELF_MAGIC) {
        return Err("no ELF file is in the bzImage");
    }
    if header[4] != 2 || header[5] != 1 {
        return Err("not a 64-bit little-endian ELF file");
    }
    match (u16::from_le_bytes([header[16], header[17]]), u16::from_le_bytes([header[18], header[19]])) {
        (2 | 3, 62) => {}
        (2 | 3, _) => return Err("made for another architecture"),
        _ => return Err("an ELF file that is no executable"),
    }
    is_whole(bytes).unwrap_or(false).then_some(()).ok_or("an ELF file that is cut off")
}

/// Whether all that the program headers (`e_phoff`, `e_phentsize`, `e_phnum`) point to lies in the file (`p_offset`,
/// `p_filesz`). The VMM checks what it loads once more; here it is told before a copy is in the cache, with the name
/// that the person knows.
fn is_whole(elf: &[u8]) -> Option<bool> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?)));
    let long = |at: usize| usize::try_from(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?)).ok();
    let (headers, size, count) = (long(32)?, half(54)?, half(56)?);
    for number in 0..count {
        let header = headers.checked_add(number.checked_mul(size)?)?;
        let end = long(header.checked_add(8)?)?.checked_add(long(header.checked_add(32)?)?)?;
        if end > elf.len() {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elf(machine: u16) -> Vec<u8> {
        let mut elf = vec![0; 128];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&0xaa55_u16.to_le_bytes());
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_comes_out() {
        let payload = zstd::encode_all(&elf(62)[..], 1).unwrap();
        assert_eq!(vmlinux(Path::new("k"), bzimage(&payload)).unwrap(), elf(62));
        assert_eq!(vmlinux(Path::new("k"), elf(62)).unwrap(), elf(62));
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let problem = |image| match vmlinux(Path::new("k"), image) {
            Err(Error::NotAKernel { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert!(problem(b"#!/bin/sh\n".to_vec()).contains("neither"));
        assert!(problem(elf(183)).contains("architecture"));
        assert!(problem(elf(62)[..40].to_vec()).contains("cut off"));
        let mut segment = elf(62);
        segment[32] = 64; // e_phoff
        segment[54] = 56; // e_phentsize
        segment[56] = 1; // e_phnum
        segment[64 + 32] = 128; // p_filesz
        assert!(vmlinux(Path::new("k"), segment.clone()).is_ok());
        assert!(problem(segment[..127].to_vec()).contains("cut off"));
        assert!(problem(segment[..100].to_vec()).contains("cut off"));
        let whole = bzimage(&elf(62));
        assert!(problem(whole[..whole.len() - 1].to_vec()).contains("outside"));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(fields in prop::collection::vec(any::<u8>(), 0x60), length in 0_usize..2000) {
            let mut image = bzimage(&elf(62));
            image[0x1f1..0x1f1 + 13].copy_from_slice(&fields[..13]);
            image[0x206..0x206 + 0x4a].copy_from_slice(&fields[13..13 + 0x4a]);
            image.truncate(length);
            let _ = vmlinux(Path::new("k"), image);
        }

        #[test]
        fn no_elf_header_makes_it_panic(fields in prop::collection::vec(any::<u8>(), 108), length in 0_usize..200) {
            let mut image = elf(62);
            image[20..].copy_from_slice(&fields);
            image.resize(length, 0xff);
            let _ = vmlinux(Path::new("k"), image);
        }
    }
}
