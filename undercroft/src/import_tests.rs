use std::io::Write;

use super::*;

/// A small archive with a bit of everything that moves the next header.
fn tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("etc/hostname", b"x\n");
    add("empty", b"");
    add(&"long/".repeat(60), &[7; 5000]);
    add("usr/lib/big", &[3; 300_000]);
    builder.into_inner().unwrap()
}

fn compressed() -> Vec<(Format, Vec<u8>)> {
    let plain = tar();
    let half = plain.len() / 2;
    let mut gzip = Vec::new();
    // Two members: what pigz and concatenated files look like.
    for part in [&plain[..half], &plain[half..]] {
        let mut encoder = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap();
    }
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    vec![
        (Format::Gzip, gzip),
        (Format::Xz, xz.finish().unwrap()),
        (Format::Zstd, zstd::encode_all(&plain[..], 1).unwrap()),
        (Format::Bzip2, bzip2.finish().unwrap()),
        (Format::Plain, plain),
    ]
}

fn copy(bytes: &[u8]) -> std::result::Result<Vec<u8>, ArchiveError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut out = Vec::new();
    Archive::open(file.path())?.copy(&mut out, |_| ())?;
    Ok(out)
}

#[test]
fn every_format_gives_the_same_archive() {
    for (format, bytes) in compressed() {
        assert_eq!(Format::of(&bytes), format);
        assert!(copy(&bytes).unwrap() == tar(), "{format}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_told_as_that_wherever_it_was_cut() {
    for (format, bytes) in compressed() {
        for cut in [bytes.len() / 3, bytes.len() / 2, bytes.len() - bytes.len() / 9] {
            let error = copy(&bytes[..cut]).unwrap_err();
            let ArchiveError::CutOff { at, .. } = error else { panic!("{format}, {cut}: {error}") };
            assert_eq!(at, cut as u64, "{format}");
        }
    }
    // The cut shows even where it falls between two entries.
    let plain = tar();
    let error = copy(&plain[..512 * 2]).unwrap_err();
    assert!(matches!(&error, ArchiveError::CutOff { entry, .. } if entry == "etc/hostname"), "{error}");
}

#[test]
fn what_is_no_archive_is_told_before_anything_is_done() {
    let zip = [b"PK\x03\x04".as_slice(), &[1; 2000]].concat();
    let text = b"this is not an archive".to_vec();
    let gzip_of_text = zstd::encode_all(&[b'a'; 4096][..], 1).unwrap();
    for bytes in [zip, text, gzip_of_text] {
        let error = copy(&bytes).unwrap_err();
        assert!(matches!(error, ArchiveError::NotTar { .. }), "{error}");
    }
    assert!(matches!(copy(b"").unwrap_err(), ArchiveError::Empty { .. }));
}

#[test]
fn damage_is_told_with_its_place() {
    let mut plain = tar();
    plain[512 * 2 + 20] ^= 1;
    let error = copy(&plain).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged { at: 1024, .. }), "{error}");
    for (format, mut bytes) in compressed() {
        if format != Format::Plain {
            let middle = bytes.len() / 2;
            bytes[middle..middle + 40].fill(0x55);
            assert!(copy(&bytes).is_err(), "{format}");
        }
    }
}

#[test]
fn what_follows_the_end_marker_is_not_passed_on() {
    let mut bytes = tar();
    let whole = bytes.len();
    bytes.extend_from_slice(&[9; 4096]);
    assert_eq!(copy(&bytes).unwrap().len(), whole);
}

#[test]
fn a_size_in_an_extended_header_counts() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("comment", b"x".as_slice()), ("size", b"700")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("a").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(1024);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[1; 1024]);
    bytes.extend_from_slice(&[0; 1024]);
    assert_eq!(copy(&bytes).unwrap(), bytes);
}

#[test]
fn a_file_is_found_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    for bytes in std::iter::once(tar()).chain(compressed().into_iter().map(|(_, bytes)| bytes)) {
        std::fs::write(&path, bytes).unwrap();
        let file = |name| Archive::open(&path).unwrap().file(name).unwrap();
        assert_eq!(file("etc/hostname").as_deref(), Some(&b"x\n"[..]));
        assert_eq!(file("empty"), Some(Vec::new()));
        assert_eq!(file("usr/lib/big").map(|content| content.len()), Some(300_000));
        assert_eq!(file("usr/lib"), None);
    }
}
