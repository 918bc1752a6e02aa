//! Archives made by hand, and by proptest.

use super::*;
use proptest::prelude::*;

/// One header block, in GNU's letters unless changed afterwards.
pub(crate) fn header(name: &str, kind: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
    octal(&mut block[108..116], own_uid().into());
    octal(&mut block[116..124], own_gid().into());
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 1_700_000_000);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    sum(&mut block);
    block
}

/// Tests that unpack run as whoever runs them.
pub(crate) fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}
/// The group of [`own_uid`].
pub(crate) fn own_gid() -> u32 {
    nix::unistd::getgid().as_raw()
}

/// Writes a number into a field.
pub(crate) fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// Writes the checksum.
pub(crate) fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block[148..155], sum);
}

/// A header with its content, padded.
pub(crate) fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len() as u64);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A link, with its target.
pub(crate) fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut bytes = header(name, kind, 0);
    bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
    sum(&mut bytes);
    bytes
}

/// An extended header with records.
pub(crate) fn pax(kind: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend(format!("{length} {key}=").bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    entry("PaxHeaders/x", kind, &content)
}

/// Entries, and the end marker.
pub(crate) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match archive.content(&mut buffer)? {
                0 => break,
                length => content.extend_from_slice(&buffer[..length]),
            }
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

#[test]
fn names_come_from_wherever_they_are_longest() {
    let long = "a/".repeat(200) + "end";
    let mut prefixed = header("name", b'0', 0);
    prefixed[257..265].copy_from_slice(b"ustar\x0000");
    prefixed[345..348].copy_from_slice(b"pre");
    sum(&mut prefixed);
    let bytes = archive(&[
        entry("plain", b'0', b"content"),
        prefixed,
        entry("././@LongLink", b'L', &[long.as_bytes(), &[0]].concat()),
        entry("././@LongLink", b'K', &[long.as_bytes(), &[0]].concat()),
        link("short", b'2', "short"),
        pax(b'x', &[("path", "päth".as_bytes()), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"\0=\n")]),
        entry("short", b'0', b""),
    ]);
    let entries = all(&bytes).unwrap();
    let names: Vec<_> = entries.iter().map(|(e, _)| String::from_utf8_lossy(&e.name).into_owned()).collect();
    assert_eq!(names, ["plain", "pre/name", &long, "päth"]);
    assert_eq!(entries[0].1, b"content");
    assert_eq!(entries[2].0.target, long.as_bytes());
    assert_eq!(entries[3].0.modified, (1, 500_000_000));
    assert_eq!(entries[3].0.attributes, [(b"user.a".to_vec(), b"\0=\n".to_vec())]);
}

#[test]
fn numbers_that_do_not_fit_are_in_base_256_and_global_records_hold_for_all() {
    let mut big = header("big", b'0', 0);
    big[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0x77, 0x35, 0x94, 0]);
    big[136..148].copy_from_slice(&[0xff; 12]);
    sum(&mut big);
    let entries =
        all(&archive(&[pax(b'g', &[("gid", b"7"), ("comment", b"x")]), big, header("b", b'0', 0)])).unwrap();
    assert_eq!((entries[0].0.uid, entries[0].0.gid, entries[0].0.modified), (2_000_000_000, 7, (-1, 0)));
    assert_eq!(entries[1].0.gid, 7);
}

#[test]
fn the_four_formats_of_holes() {
    let mut old = header("old", b'S', 6);
    octal(&mut old[386..398], 512);
    octal(&mut old[398..410], 4);
    octal(&mut old[410..422], 4096);
    octal(&mut old[422..434], 2);
    octal(&mut old[483..495], 5000);
    sum(&mut old);
    let mut content = b"abcdef".to_vec();
    content.resize(BLOCK, 0);
    old.extend(content);
    let mut one = b"2\n512\n4\n4096\n2\n".to_vec();
    one.resize(BLOCK, 0);
    one.extend(b"abcdef");
    let bytes = archive(&[
        old,
        pax(
            b'x',
            &[("GNU.sparse.name", b"0.1"), ("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"512,4,4096,2")],
        ),
        entry("x", b'0', b"abcdef"),
        pax(
            b'x',
            &[
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.offset", b"512"),
                ("GNU.sparse.numbytes", b"4"),
                ("GNU.sparse.offset", b"4096"),
                ("GNU.sparse.numbytes", b"2"),
            ],
        ),
        entry("0.0", b'0', b"abcdef"),
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"1.0"),
                ("GNU.sparse.realsize", b"5000"),
            ],
        ),
        entry("x", b'0', &one),
    ]);
    let entries = all(&bytes).unwrap();
    let names: Vec<_> = entries.iter().map(|(e, _)| e.name.as_slice()).collect();
    assert_eq!(names, [&b"old"[..], b"0.1", b"0.0", b"1.0"]);
    for (entry, content) in &entries {
        assert_eq!((entry.kind, entry.size, content.as_slice()), (Kind::File, 5000, &b"abcdef"[..]));
        assert_eq!(entry.map.as_deref(), Some(&[(512, 4), (4096, 2)][..]));
    }
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let gzip = [&[0x1f, 0x8b, 8][..], &[7; 600]].concat();
    assert!(matches!(all(&gzip), Err(ArchiveError::NotTar { hint }) if hint.contains("gzip")));
    assert!(matches!(all(b"hello"), Err(ArchiveError::NotTar { .. })));
    assert!(matches!(all(b""), Err(ArchiveError::CutOff { offset: 0, .. })));
}

#[test]
fn a_cut_is_told_with_the_entry_wherever_it_falls() {
    let bytes = archive(&[entry("first", b'0', b"x"), entry("second", b'0', &[1; 2000])]);
    for end in [1024, 1500, 1600, 3500, bytes.len() - 1024] {
        let error = all(&bytes[..end]).unwrap_err();
        assert!(matches!(error, ArchiveError::CutOff { .. }), "{end}: {error}");
    }
    let text = all(&bytes[..1700]).unwrap_err().to_string();
    assert!(text.contains("entry 2 (second)") && text.contains("byte 1700"), "{text}");
    // One block of zeros and nothing else is an end.
    assert_eq!(all(&bytes[..bytes.len() - 512]).unwrap().len(), 2);
}

#[test]
fn a_damaged_header_and_absurd_sizes_are_refused() {
    let mut bytes = archive(&[entry("first", b'0', b"x"), entry("second", b'0', b"y")]);
    bytes[1024 + 20] ^= 1;
    assert!(matches!(all(&bytes), Err(ArchiveError::Damaged { offset: 1024, .. })));
    let mut huge = header("huge", b'0', 0);
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    sum(&mut huge);
    assert!(matches!(all(&archive(&[huge])), Err(ArchiveError::Damaged { .. })));
    let mut record = header("x", b'x', 1 << 32);
    sum(&mut record);
    assert!(matches!(all(&archive(&[record])), Err(ArchiveError::Damaged { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = all(&bytes);
    }

    #[test]
    fn no_change_of_an_archive_makes_it_panic(
        changes in proptest::collection::vec((0usize..6000, any::<u8>()), 1..8),
        resum: bool,
    ) {
        let mut one = b"1\n0\n3\n".to_vec();
        one.resize(BLOCK + 3, 0);
        let mut bytes = archive(&[
            pax(b'x', &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"99"), ("path", b"p")]),
            entry("x", b'0', &one),
            entry("y", b'S', b""),
            entry("l", b'L', b"long\0"),
            entry("z", b'5', b""),
        ]);
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if resum {
            for block in bytes.chunks_exact_mut(BLOCK) {
                if &block[257..262] == b"ustar" { sum(block); }
            }
        }
        let _ = all(&bytes);
    }
}
