//! What is packed, unpacked and packed again. Devices and other users' ownership need root: guest tests look at them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::FileExt, net::UnixListener},
    path::Path,
};

use nix::sys::{
    stat::{Mode, UtimensatFlags, utimensat},
    time::TimeSpec,
};
use proptest::prelude::*;

use super::*;
use crate::{
    archive::{Archive, Entry, Kind},
    unpack::unpack,
};

fn packed_with(root: &Path, bound: Vec<(String, OwnedFd)>) -> (Vec<u8>, Account) {
    let mut bytes = Vec::new();
    let root = File::open(root).unwrap().into();
    let account = pack(&root, ".", bound, &mut bytes, &mut |_| ()).unwrap();
    assert_eq!(account.bytes, bytes.len() as u64);
    (bytes, account)
}

fn packed(root: &Path) -> (Vec<u8>, Account) {
    packed_with(root, Vec::new())
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next().unwrap() {
        entries.push(entry);
    }
    assert_eq!(archive.offset(), bytes.len() as u64);
    entries
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// A bit of everything that needs no privilege.
fn tree(root: &Path) {
    let long = root.join("d".repeat(120)).join("e".repeat(150));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(200)), "deep").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), root.join("long-link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("a-link")).unwrap();
    fs::write(root.join("two"), "names").unwrap();
    fs::hard_link(root.join("two"), root.join("another")).unwrap();
    fs::hard_link(root.join("two"), root.join("d".repeat(120)).join("third")).unwrap();
    fs::hard_link(root.join("a-link"), root.join("b-link")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not \xff utf-8")), "x").unwrap();
    fs::write(root.join(OsStr::from_bytes(&[b'\xfe'; 150])), "x").unwrap();
    fs::write(root.join("times"), "x").unwrap();
    set_time(&root.join("times"), -2, 250_000_000);
    set_time(&root.join("a-link"), 1_234_567_890, 123_456_789);
    set_time(&root.join("empty"), 9_000_000_000_000, 0);
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    let holes = File::create(root.join("holes")).unwrap();
    holes.write_all_at(b"first", 0).unwrap();
    holes.write_all_at(b"middle", 1 << 20).unwrap();
    holes.set_len(3 << 20).unwrap();
    let inside = File::create(root.join("ends-with-content")).unwrap();
    inside.write_all_at(b"last", 99_999).unwrap();
    File::create(root.join("hole-only")).unwrap().set_len(1 << 33).unwrap();
    fs::set_permissions(root.join("two"), std::os::unix::fs::PermissionsExt::from_mode(0o4751)).unwrap();
    let user = |name: &str, attribute: &str, value: &[u8]| {
        let set = rustix::fs::setxattr(root.join(name), attribute, value, rustix::fs::XattrFlags::empty());
        // Not every file system has them.
        let _ = set;
    };
    user("two", "user.note", b"a\0b");
    user("two", "user.a=b%", b"x");
    user("times", "user.zero", b"");
    user("", "user.root", b"yes");
}

#[test]
fn packing_what_was_unpacked_gives_the_same_bytes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    let (first, account) = packed(from.path());
    assert_eq!(account.warnings, [] as [&str; 0]);
    let unpacked = unpack(first.as_slice(), to.path(), |_, _| ()).unwrap();
    assert_eq!(unpacked.warnings, [] as [&str; 0]);
    assert_eq!(unpacked.entries, account.entries);
    let (second, _) = packed(to.path());
    let differ = entries(&first).into_iter().zip(entries(&second)).find(|(a, b)| a != b);
    assert_eq!(differ, None);
    assert!(first == second);
    // Not the holes' bytes.
    assert!(first.len() < 200_000, "{}", first.len());
}

#[test]
fn names_are_sorted_and_say_what_they_are() {
    let from = tempfile::tempdir().unwrap();
    tree(from.path());
    UnixListener::bind(from.path().join("socket")).unwrap();
    fs::create_dir(from.path().join("lost+found")).unwrap();
    let (bytes, account) = packed(from.path());
    assert_eq!(account.warnings.len(), 1, "{:?}", account.warnings);
    assert!(account.warnings[0].starts_with("./socket: "));
    let entries = entries(&bytes);
    let names: Vec<&[u8]> = entries.iter().map(|entry| entry.name.as_slice()).collect();
    assert_eq!((names[0], names[1], names[2]), (&b"./"[..], &b"./a-link"[..], &b"./another"[..]));
    assert!(!names.iter().any(|name| name.ends_with(b"socket") || name.starts_with(b"./lost")));
    let of = |name: &str| entries.iter().find(|entry| entry.name == name.as_bytes()).unwrap();
    assert_eq!((of("./b-link").kind, of("./b-link").target.as_slice()), (Kind::HardLink, &b"./a-link"[..]));
    assert_eq!((of("./two").kind, of("./two").target.as_slice()), (Kind::HardLink, &b"./another"[..]));
    assert_eq!((of("./another").kind, of("./another").mode), (Kind::File, 0o4751));
    assert_eq!(of("./times").modified, (-2, 250_000_000));
    assert_eq!(of("./hole-only").map, Some(vec![(1 << 33, 0)]));
    assert_eq!(of("./holes").map.as_ref().unwrap().len(), 3);
    assert_eq!(of("./ends-with-content").map, Some(vec![(98_304, 1_699)]));
}

#[test]
fn a_bound_directory_takes_the_place_of_what_it_covers() {
    let (from, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(from.path().join("var/lib/docker/covered")).unwrap();
    fs::create_dir_all(from.path().join("var/lib/dockers")).unwrap();
    fs::write(other.path().join("seen"), "x").unwrap();
    let bound = || -> OwnedFd { File::open(other.path()).unwrap().into() };
    // One without a place in the tree is not seen inside either.
    let (bytes, _) =
        packed_with(from.path(), vec![("/var/lib/docker".into(), bound()), ("/opt/x".into(), bound())]);
    let names: Vec<_> =
        entries(&bytes).into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
    let expected =
        ["./", "./var/", "./var/lib/", "./var/lib/docker/", "./var/lib/docker/seen", "./var/lib/dockers/"];
    assert_eq!(names, expected);
}

#[test]
fn a_reader_that_goes_ends_it() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let from = tempfile::tempdir().unwrap();
    tree(from.path());
    for room in [0, 512, 5_000, 30_000] {
        let root = File::open(from.path()).unwrap().into();
        let error = pack(&root, ".", Vec::new(), &mut Full(room), &mut |_| ()).unwrap_err();
        assert!(matches!(error, PackError::Stream(_)), "{error}");
    }
}

/// Something to be made at a path; what cannot be is left.
#[derive(Debug, Clone)]
enum Made {
    Directory,
    File { pieces: Vec<(u64, u16)>, size: u64 },
    Link(String),
    Name(String),
    Fifo,
}

fn made() -> impl Strategy<Value = Made> {
    let path = "[a-c](/[a-c]){0,2}";
    prop_oneof![
        Just(Made::Directory),
        (prop::collection::vec((0..200_000_u64, 1..9_000_u16), 0..4), 0..300_000_u64)
            .prop_map(|(pieces, size)| Made::File { pieces, size }),
        path.prop_map(Made::Link),
        path.prop_map(Made::Name),
        Just(Made::Fifo),
    ]
}

fn make(path: &Path, root: &Path, what: &Made) -> io::Result<()> {
    match what {
        Made::Directory => fs::create_dir_all(path),
        Made::File { pieces, size } => {
            let file = File::options().write(true).create_new(true).open(path)?;
            for (at, length) in pieces {
                file.write_all_at(&vec![7; usize::from(*length)], *at)?;
            }
            file.set_len(*size)
        }
        Made::Link(to) => std::os::unix::fs::symlink(to, path),
        Made::Name(of) => fs::hard_link(root.join(of), path),
        Made::Fifo => Ok(nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))?),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_there_is_comes_back(
        entries in prop::collection::vec(("[a-c](/[a-c]){0,2}", made(), -9_i64..9, 0..999_999_999_i64), 1..24),
    ) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (path, what, seconds, nanoseconds) in &entries {
            let path = from.path().join(path);
            if make(&path, from.path(), what).is_ok() {
                set_time(&path, *seconds, *nanoseconds);
            }
        }
        let (first, account) = packed(from.path());
        let unpacked = unpack(first.as_slice(), to.path(), |_, _| ()).unwrap();
        prop_assert_eq!(&unpacked.warnings, &[] as &[String; 0]);
        prop_assert_eq!(unpacked.entries, account.entries);
        prop_assert!(first == packed(to.path()).0);
    }
}
