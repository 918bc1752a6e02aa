//! Good kernels, damaged ones, and whatever proptest makes of them.

use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

const MIB: u64 = 1 << 20;
const LOAD_AT: u64 = 16 * MIB;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// An ELF kernel: one segment of `code` at 16 MiB with a page of zeroed memory, and a note with the PVH entry.
fn vmlinux_file(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&(LOAD_AT as u32).to_le_bytes());
    let mut file = vec![0; HEADERS];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2_u16.to_le_bytes());
    put(&mut file, 18, &62_u16.to_le_bytes());
    put(&mut file, 24, &LOAD_AT.to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &56_u16.to_le_bytes());
    put(&mut file, 56, &2_u16.to_le_bytes());
    let (code_at, note_at) = (HEADERS as u64, (HEADERS + code.len()) as u64);
    for (header, kind, offset, size, extra) in
        [(64, 1_u32, code_at, code.len() as u64, 4096), (120, 4, note_at, note.len() as u64, 0)]
    {
        put(&mut file, header, &kind.to_le_bytes());
        put(&mut file, header + 8, &offset.to_le_bytes());
        put(&mut file, header + 24, &LOAD_AT.to_le_bytes());
        put(&mut file, header + 32, &size.to_le_bytes());
        put(&mut file, header + 40, &(size + extra).to_le_bytes());
    }
    file.extend_from_slice(code);
    file.extend_from_slice(&note);
    file
}

/// A bzImage with this payload, which needs memory from 16 MiB on for `init_size` bytes.
fn bzimage_file(payload: &[u8], init_size: u32) -> Vec<u8> {
    const SETUP: usize = 5 * 512;
    const BEFORE: usize = 0x100;
    let mut file = vec![0; SETUP + BEFORE];
    file[0x1f1] = 4;
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x248, &(BEFORE as u32).to_le_bytes());
    put(&mut file, 0x24c, &(payload.len() as u32 + 4).to_le_bytes());
    put(&mut file, 0x258, &LOAD_AT.to_le_bytes());
    put(&mut file, 0x260, &init_size.to_le_bytes());
    file.extend_from_slice(payload);
    file.extend_from_slice(&4096_u32.to_le_bytes());
    file
}

fn pack(format: &str, data: &[u8]) -> Vec<u8> {
    match format {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "xz" => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::stream::encode_all(data, 1).unwrap(),
        "lz4" => {
            let mut packed = 0x184c_2102_u32.to_le_bytes().to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
                packed.extend_from_slice(&block);
            }
            packed
        }
        _ => data.to_vec(),
    }
}

fn on_disk(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn load(bytes: &[u8]) -> Result<Image, Error> {
    load_kernel(on_disk(bytes).path(), &memory::map(32, None).unwrap())
}

fn why(bytes: &[u8]) -> String {
    load(bytes).unwrap_err().to_string()
}

#[test]
fn an_elf_kernel_lies_where_it_wants_to() {
    let memory = memory::map(32, None).unwrap();
    let image = load_kernel(on_disk(&vmlinux_file(b"the kernel")).path(), &memory).unwrap();
    assert_eq!((image.entry, image.pvh_entry), (LOAD_AT, Some(LOAD_AT)));
    assert_eq!(image.end, LOAD_AT + 10 + 4096);
    let mut bytes = [0; 12];
    memory.read_slice(&mut bytes, GuestAddress(LOAD_AT)).unwrap();
    assert_eq!(&bytes, b"the kernel\0\0");
}

#[test]
fn every_compression_is_unpacked() {
    let kernel = vmlinux_file(&[0x5a; 3 << 20]);
    for format in ["gzip", "xz", "zstd", "lz4", "none"] {
        let file = on_disk(&bzimage_file(&pack(format, &kernel), 8 << 20));
        let memory = memory::map(32, None).unwrap();
        let image = load_kernel(file.path(), &memory).unwrap_or_else(|error| panic!("{format}: {error:?}"));
        assert_eq!(image.entry, LOAD_AT, "{format}");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(LOAD_AT + (3 << 20) - 1)).unwrap(), 0x5a, "{format}");
        let mut out = tempfile::tempfile().unwrap();
        let size = vmlinux(file.path(), &mut out).unwrap();
        assert!(size >= kernel.len() as u64, "{format}");
    }
}

#[test]
fn errors_say_what_was_expected() {
    assert!(why(b"").starts_with("it is neither an ELF vmlinux nor a bzImage"));
    assert!(why(b"#!/bin/sh\n").starts_with("it is neither"));
    assert!(why(b"\x7fELF").starts_with("it is cut off: its ELF header"));
    let good = vmlinux_file(b"kernel");
    assert!(why(&good[..good.len() - 30]).starts_with("it is cut off"));
    let mut other = good.clone();
    other[18] = 183;
    assert!(why(&other).starts_with("it is for aarch64"));
    let mut low = good.clone();
    put(&mut low, 64 + 24, &0x1000_u64.to_le_bytes());
    assert!(why(&low).contains("below 1 MiB"));
    let mut large = good.clone();
    put(&mut large, 64 + 40, &(1_u64 << 40).to_le_bytes());
    assert!(why(&large).contains("raise memory_mib"));
    let mut endless = good.clone();
    put(&mut endless, 64 + 40, &u64::MAX.to_le_bytes());
    assert!(why(&endless).contains("past the end"));
    let mut entry = good;
    put(&mut entry, 24, &0_u64.to_le_bytes());
    assert!(why(&entry).contains("an entry lies outside"));
}

#[test]
fn a_bad_bzimage_says_what_is_wrong() {
    let kernel = vmlinux_file(b"kernel");
    let packed = pack("gzip", &kernel);
    assert!(why(&bzimage_file(&packed, 64 << 20)).contains("raise memory_mib"));
    let good = bzimage_file(&packed, 0);
    assert!(why(&good[..good.len() - 10]).starts_with("it is cut off: its payload"));
    assert!(why(&good[..0x230]).starts_with("it is cut off: its setup header"));
    let mut old = good.clone();
    old[0x206] = 7;
    assert!(why(&old).contains("before 2.08"));
    assert!(why(&bzimage_file(b"BZh91AY", 0)).contains("bzip2"));
    assert!(why(&bzimage_file(b"\x1f\x8bdamaged", 0)).contains("gzip payload cannot be unpacked"));
    let bomb = pack("zstd", &vec![0; 64 << 20]);
    assert!(why(&bzimage_file(&bomb, 0)).contains("unpacks to more than 32 MiB"));
    let lz4_length = b"\x02\x21\x4c\x18\xff\xff\xff\xffdata";
    assert!(why(&bzimage_file(lz4_length, 0)).contains("lz4 payload cannot be unpacked"));
}

#[test]
fn an_initramfs_lies_behind_the_kernel_or_not_at_all() {
    let memory = memory::map(32, None).unwrap();
    let file = on_disk(&[7; 5000]);
    let (address, size) = load_initramfs(file.path(), &memory, LOAD_AT).unwrap();
    assert_eq!((address, size), (32 * MIB - 0x2000, 5000));
    let none = load_initramfs(file.path(), &memory, 32 * MIB - 0x1000);
    assert!(matches!(none, Err(Error::Initramfs { size: 5000, .. })));
}

#[test]
fn a_missing_kernel_is_named() {
    let error = load_kernel(Path::new("/nonexistent/vmlinux"), &memory::map(32, None).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "cannot open /nonexistent/vmlinux");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is changed in a kernel's headers, loading ends with an image inside memory or with an error.
    #[test]
    fn damaged_elf_headers_are_survived(
        changes in proptest::collection::vec((0_usize..176, any::<u8>()), 1..12),
        cut in 0_usize..400,
    ) {
        let mut file = vmlinux_file(&[0x90; 200]);
        for (at, value) in changes {
            file[at] = value;
        }
        file.truncate(file.len() - cut.min(file.len()));
        if let Ok(image) = load(&file) {
            prop_assert!(image.end <= 32 * MIB);
        }
    }

    #[test]
    fn wild_numbers_in_elf_headers_are_survived(field in 0_usize..19, value in prop_oneof![
        any::<u64>(), Just(u64::MAX), Just(u64::MAX - 4096), Just(1 << 63), 0_u64..4096,
    ]) {
        let mut file = vmlinux_file(&[0x90; 200]);
        put(&mut file, 24 + field * 8, &value.to_le_bytes());
        if let Ok(image) = load(&file) {
            prop_assert!(image.end <= 32 * MIB);
        }
    }

    #[test]
    fn damaged_bzimages_are_survived(
        format in prop_oneof![Just("gzip"), Just("xz"), Just("zstd"), Just("lz4"), Just("none")],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        header in proptest::collection::vec((0x1f1_usize..0x268, any::<u8>()), 0..3),
        cut in 0_usize..64,
    ) {
        let payload = pack(format, &vmlinux_file(&[0x90; 4000]));
        let mut file = bzimage_file(&payload, 0);
        let start = file.len() - payload.len() - 4;
        for (at, value) in changes {
            let at = start + at.index(payload.len());
            file[at] = value;
        }
        for (at, value) in header {
            file[at] = value;
        }
        file.truncate(file.len() - cut);
        let _ = load(&file);
    }

    #[test]
    fn notes_of_any_bytes_are_survived(notes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut file = vmlinux_file(&notes);
        // The notes become those bytes.
        put(&mut file, 120 + 8, &176_u64.to_le_bytes());
        put(&mut file, 120 + 32, &(notes.len() as u64).to_le_bytes());
        let _ = load(&file);
    }
}
