//! Unpacking into a temporary directory, as whoever runs the tests: devices and other users' ownership need root, and
//! are looked at in the guest tests.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use proptest::prelude::*;

use super::*;
use crate::archive::tests::{archive, entry, header, link, pax, sum};

/// A directory with `root` in it, and beside it something that must stay as it is.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        fs::create_dir(place.path().join("outside")).unwrap();
        fs::write(place.path().join("outside/file"), "untouched").unwrap();
        Self(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("root").join(name)
    }

    fn unpack(&self, entries: &[Vec<u8>]) -> Result<Account, UnpackError> {
        let result = unpack(archive(entries).as_slice(), &self.path(""), |_, _| {});
        let outside: Vec<_> = fs::read_dir(self.0.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1);
        assert_eq!(fs::read_to_string(self.0.path().join("outside/file")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2);
        result
    }
}

#[test]
fn files_directories_and_links_come_out_as_they_went_in() {
    let place = Place::new();
    let mut directory = header("./d/", b'5', 0);
    directory[100..107].copy_from_slice(b"0000500");
    sum(&mut directory);
    let mut program = entry("./d/program", b'0', b"#!/bin/sh\n");
    program[100..107].copy_from_slice(b"0004755");
    sum(&mut program[..512]);
    let account = place
        .unpack(&[
            header("./", b'5', 0),
            directory,
            program,
            link("./d/hard", b'1', "./d/program"),
            link("./soft", b'2', "/d/program"),
            header("./fifo", b'6', 0),
            pax(b'x', &[("mtime", b"1600000000.000000007")]),
            entry("deep/er/file", b'0', b"x"),
        ])
        .unwrap();
    assert_eq!((account.entries, account.bytes, account.warnings), (7, 11, vec![]));
    let of = |name: &str| fs::symlink_metadata(place.path(name)).unwrap();
    assert_eq!((of("d").mode() & 0o7777, of("d").mtime()), (0o500, 1_700_000_000));
    assert_eq!(of("d/program").mode() & 0o7777, 0o4755);
    assert_eq!(of("d/program").ino(), of("d/hard").ino());
    assert_eq!(fs::read_link(place.path("soft")).unwrap(), PathBuf::from("/d/program"));
    assert_eq!((of("soft").mtime(), of("fifo").mtime()), (1_700_000_000, 1_700_000_000));
    assert_eq!((of("deep/er/file").mtime(), of("deep/er/file").mtime_nsec()), (1_600_000_000, 7));
    assert_eq!(of("").mtime(), 1_700_000_000);
    fs::set_permissions(place.path("d"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn nothing_leaves_the_root() {
    let place = Place::new();
    let outside = place.0.path().join("outside");
    let account = place
        .unpack(&[
            entry("../outside/file", b'0', b"a"),
            entry("/../outside/file", b'0', b"b"),
            entry("x/../../outside/file", b'0', b"c"),
            link("out", b'2', outside.to_str().unwrap()),
            entry("out/file", b'0', b"d"),
            link("up", b'2', "../outside"),
            entry("up/file", b'0', b"e"),
            link("file-link", b'2', "../outside/file"),
            entry("file-link", b'0', b"f"),
            link("stolen", b'1', "../outside/file"),
            link("stolen", b'1', "up/file"),
            header("up/", b'5', 0),
            entry(&format!("{}/file", outside.to_str().unwrap()), b'0', b"g"),
        ])
        .unwrap();
    assert!(account.warnings.iter().filter(|w| w.contains("`..`")).count() >= 3, "{:?}", account.warnings);
    assert_eq!(fs::read_to_string(place.path("file-link")).unwrap(), "f");
    assert!(place.path("up").is_dir());
}

#[test]
fn a_link_to_a_directory_leads_inside_as_it_would_in_the_distribution() {
    let place = Place::new();
    place
        .unpack(&[
            header("usr/bin/", b'5', 0),
            link("bin", b'2', "/usr/bin"),
            entry("bin/sh", b'0', b"shell"),
        ])
        .unwrap();
    assert_eq!(fs::read_to_string(place.path("usr/bin/sh")).unwrap(), "shell");
}

#[test]
fn what_comes_later_takes_the_place_of_what_was_there() {
    let place = Place::new();
    let account = place
        .unpack(&[
            entry("a", b'0', b"first"),
            link("b", b'1', "a"),
            entry("a", b'0', b"second"),
            header("d/", b'5', 0),
            entry("d/f", b'0', b"x"),
            header("d/", b'5', 0),
            link("d", b'2', "elsewhere"),
            header("e/", b'5', 0),
            entry("e", b'0', b"now a file"),
            entry("e/below", b'0', b""),
        ])
        .unwrap();
    assert_eq!(fs::read_to_string(place.path("a")).unwrap(), "second");
    assert_eq!(fs::read_to_string(place.path("b")).unwrap(), "first");
    assert_eq!(fs::read_to_string(place.path("d/f")).unwrap(), "x");
    assert_eq!(fs::read_to_string(place.path("e")).unwrap(), "now a file");
    assert_eq!(account.warnings.len(), 2, "{:?}", account.warnings);
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let map = b"1048576,3";
    place
        .unpack(&[
            pax(b'x', &[("GNU.sparse.size", b"8388608"), ("GNU.sparse.map", map), ("GNU.sparse.name", b"s")]),
            entry("x", b'0', b"abc"),
        ])
        .unwrap();
    let content = fs::read(place.path("s")).unwrap();
    assert_eq!((content.len(), &content[1_048_576..1_048_579], content[5]), (8 << 20, &b"abc"[..], 0));
    assert!(fs::metadata(place.path("s")).unwrap().blocks() < 1024);
}

#[test]
fn attributes_are_set_or_named() {
    let place = Place::new();
    let account = place
        .unpack(&[
            pax(b'x', &[("SCHILY.xattr.user.mine", b"v\0"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")]),
            entry("f", b'0', b""),
            entry("plain", b'0', b""),
        ])
        .unwrap();
    assert!(
        account.warnings.iter().any(|w| w.contains("f: the attribute trusted.overlay.opaque is left out"))
    );
    assert!(!account.warnings.iter().any(|w| w.contains("plain")));
}

#[test]
fn a_cut_archive_says_where() {
    let place = Place::new();
    let bytes = archive(&[entry("etc/passwd", b'0', &[b'x'; 3000])]);
    let error = unpack(&bytes[..2000], &place.path(""), |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("etc/passwd"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_row_of_entries_leaves_the_root(
        entries in proptest::collection::vec(
            (
                proptest::sample::select(vec![b'0', b'1', b'2', b'5', b'6', b'L', b'K', b'S', b'q']),
                "(/|\\.\\./|\\./)?[abc](/[abc]|/\\.\\.)?(/[abc])?/?",
                "(/|\\.\\./\\.\\./)?(outside|[abc]|\\.\\.)(/file|/[abc])?",
            ),
            1..16,
        ),
    ) {
        let place = Place::new();
        let entries: Vec<Vec<u8>> = entries
            .into_iter()
            .map(|(kind, name, target)| match kind {
                b'1' | b'2' => link(&name, kind, &target),
                b'L' | b'K' => entry(&name, kind, target.as_bytes()),
                b'0' => entry(&name, kind, b"content"),
                kind => header(&name, kind, 0),
            })
            .collect();
        let _ = place.unpack(&entries);
    }
}
