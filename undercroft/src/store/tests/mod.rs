//! The store without a machine: what it does when processes die, when two use it, and when its files are not what they
//! should be. A closure writes the archive's length to the disk instead of unpacking.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use undercroft_protocol::command::{DiskAddress, Imported, Root};

use super::*;
use crate::{Archive, KnownFile, disk};

mod changes;
mod crash;
mod faults;

const SIZE: u64 = 1 << 30;

struct Fixture {
    folder: tempfile::TempDir,
    store: Store,
    imports: AtomicUsize,
}

/// `None` where there is no mke2fs: the host's programs are not needed to build this crate.
fn fixture() -> Option<Fixture> {
    fixture_in(tempfile::tempdir().unwrap())
}

fn fixture_in(folder: tempfile::TempDir) -> Option<Fixture> {
    if let Err(Error::NoProgram { .. }) = disk::NewDisk::create(&folder.path().join("probe"), SIZE) {
        eprintln!("skipped: mke2fs is not installed");
        return None;
    }
    let store = Store::open(&folder.path().join("store")).unwrap();
    Some(Fixture { folder, store, imports: AtomicUsize::new(0) })
}

fn tar(content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, "etc/os-release", content).unwrap();
    builder.into_inner().unwrap()
}

impl Fixture {
    fn archive(&self, content: &str) -> KnownFile {
        let path = self.folder.path().join(format!("{content}.tar"));
        fs::write(&path, tar(content.as_bytes())).unwrap();
        KnownFile::read(&path, None, |_, _| ()).unwrap()
    }

    fn unpack(&self) -> impl FnMut(&File, Archive) -> Result<Imported> {
        |disk: &File, _archive| {
            self.imports.fetch_add(1, Ordering::SeqCst);
            disk.write_all_at(b"unpacked", SIZE / 2).unwrap();
            Ok(Imported { entries: 1, ..Imported::default() })
        }
    }

    fn base(&self, content: &str) -> Base {
        self.store.import_base(&self.archive(content), &mut self.unpack()).unwrap().0
    }

    fn imports(&self) -> usize {
        self.imports.load(Ordering::SeqCst)
    }

    fn reopened(&self) -> Store {
        Store::open(&self.store.directory).unwrap()
    }

    fn bases(&self) -> Vec<String> {
        names(&self.store.directory.join(BASES)).unwrap()
    }

    fn partial(&self) -> Vec<String> {
        names(&self.store.directory.join(PARTIAL)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let listed = self.store.list().unwrap();
        listed.distributions.into_iter().map(|one| one.name).collect()
    }
}

fn refusal(error: Error) -> StoreError {
    match error {
        Error::Store(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn a_second_distribution_from_a_base_copies_nothing() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    let about = base.file().metadata().unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o444);
    f.store.create("first", &base, disk::DEFAULT_SIZE).unwrap();
    drop(base);
    let (again, imported) = f.store.import_base(&f.archive("one"), &mut f.unpack()).unwrap();
    assert!(imported.is_none());
    assert_eq!(f.imports(), 1);
    f.store.create("second", &again, disk::DEFAULT_SIZE).unwrap();
    let held = f.store.hold("second").unwrap();
    assert_eq!(held.size().unwrap(), disk::DEFAULT_SIZE);
    let cost: u64 = [DISK, RECORD]
        .map(|file| {
            let path = f.store.directory.join(DISTRIBUTIONS).join("second").join(file);
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
        })
        .iter()
        .sum();
    assert!(cost < 1 << 20, "{cost} bytes");
    assert_eq!(f.store.users(&again.digest()).unwrap(), ["first", "second"]);
}

#[test]
fn the_last_distribution_takes_its_base_along() {
    let Some(f) = fixture() else { return };
    let (one, two) = (f.base("one"), f.base("two"));
    for (name, base) in [("a", &one), ("b", &one), ("c", &two)] {
        f.store.create(name, base, SIZE).unwrap();
    }
    let digest = one.digest();
    drop((one, two));
    assert_eq!(f.store.remove("a").unwrap(), []);
    assert_eq!(f.bases().len(), 2);
    assert_eq!(f.store.remove("B").unwrap(), [digest]);
    assert_eq!(f.bases().len(), 1);
    assert_eq!(f.names(), ["c"]);
    assert!(f.partial().is_empty());
    assert!(f.store.base(&digest).unwrap().is_none());
    assert!(matches!(refusal(f.store.remove("a").unwrap_err()), StoreError::Unknown(_)));
}

#[test]
fn a_base_stays_while_somebody_has_it() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    assert_eq!(f.reopened().cleared(), []);
    f.store.create("a", &base, SIZE).unwrap();
    assert_eq!(f.store.remove("a").unwrap(), []);
    let name = base.digest().to_string();
    drop(base);
    let cleared = f.reopened().cleared().to_vec();
    assert_eq!(cleared, [Cleared { what: Leftover::Base, name }]);
    assert!(f.bases().is_empty());
}

#[test]
fn names_are_unique_whatever_their_case() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    assert_eq!(f.store.create("Debian", &base, SIZE).unwrap().name, "Debian");
    assert!(matches!(refusal(f.store.create("debian", &base, SIZE).unwrap_err()), StoreError::Taken(_)));
    assert_eq!(f.store.distribution("DEBIAN").unwrap().unwrap().name, "Debian");
    let long = "L".repeat(256);
    f.store.create(&long, &base, SIZE).unwrap();
    assert_eq!(f.store.hold(&long).unwrap().record.name, long);
    for bad in ["", "..", "a/b"] {
        assert!(matches!(refusal(f.store.create(bad, &base, SIZE).unwrap_err()), StoreError::Name(_)));
        assert!(
            f.store.hold(bad).is_err() && f.store.remove(bad).is_err() && f.store.distribution(bad).is_err()
        );
    }
}

#[test]
fn a_disk_has_one_user() {
    let Some(f) = fixture() else { return };
    f.store.create("a", &f.base("one"), SIZE).unwrap();
    let held = f.store.hold("a").unwrap();
    assert!(matches!(refusal(f.reopened().hold("A").unwrap_err()), StoreError::InUse(_)));
    assert!(matches!(refusal(f.reopened().remove("a").unwrap_err()), StoreError::InUse(_)));
    // The VMM has its own descriptor of the same open file, and outlives the process that gave it.
    let with_the_vmm = held.disk.try_clone().unwrap();
    drop(held);
    assert!(matches!(refusal(f.store.hold("a").unwrap_err()), StoreError::InUse(_)));
    drop(with_the_vmm);
    f.store.hold("a").unwrap();
}

#[test]
fn flat_distributions_have_no_base() {
    let Some(f) = fixture() else { return };
    let (record, imported) = f.store.create_flat("flat", &f.archive("one"), SIZE, &mut f.unpack()).unwrap();
    assert_eq!((record.content, imported.entries), (Content::Flat, 1));
    assert!(f.bases().is_empty());
    let held = f.reopened().hold("flat").unwrap();
    assert!(held.base.is_none());
    let mut bytes = [0; 8];
    held.disk.read_exact_at(&mut bytes, SIZE / 2).unwrap();
    assert_eq!(&bytes, b"unpacked");
}

#[test]
fn an_import_that_fails_leaves_nothing() {
    let Some(f) = fixture() else { return };
    let mut fail = |_: &File, _: Archive| -> Result<Imported> {
        Err(Error::System { what: "unpack", source: io::ErrorKind::Other.into() })
    };
    let archive = f.archive("one");
    f.store.import_base(&archive, &mut fail).unwrap_err();
    f.store.create_flat("a", &archive, SIZE, &mut fail).unwrap_err();
    // The file becomes another one while it is unpacked.
    let mut change = |_: &File, _: Archive| {
        fs::write(archive.path(), b"other").unwrap();
        Ok(Imported::default())
    };
    assert!(matches!(f.store.import_base(&archive, &mut change), Err(Error::Changed { .. })));
    assert!(f.partial().is_empty() && f.bases().is_empty() && f.names().is_empty());
}

#[test]
fn a_stream_is_named_when_it_has_ended() {
    let Some(f) = fixture() else { return };
    let stream = |content: &str| {
        let bytes = [tar(content.as_bytes()), vec![0; 100_000]].concat();
        Archive::stream("stdin".as_ref(), Box::new(io::Cursor::new(bytes))).unwrap()
    };
    let (base, imported) = f.store.import_stream(stream("one"), &mut f.unpack()).unwrap();
    assert!(imported.is_some());
    let path = f.folder.path().join("same.tar");
    fs::write(&path, [tar(b"one"), vec![0; 100_000]].concat()).unwrap();
    assert_eq!(KnownFile::read(&path, None, |_, _| ()).unwrap().digest(), base.digest());
    let (same, imported) = f.store.import_stream(stream("one"), &mut f.unpack()).unwrap();
    assert!(imported.is_none());
    assert_eq!(same.digest(), base.digest());
    assert!(f.partial().is_empty());
    assert_eq!(f.bases().len(), 1);
}

#[test]
fn records_are_claims() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    f.store.create("good", &base, SIZE).unwrap();
    f.store.create("bad", &base, SIZE).unwrap();
    let digest = base.digest();
    drop(base);
    let path = f.store.directory.join(DISTRIBUTIONS).join("bad").join(RECORD);
    let good = fs::read_to_string(&path).unwrap();
    let huge = format!("{{\"version\":1,\"name\":\"{}\"}}", "x".repeat(1 << 20));
    let damages = [
        "",
        "{}",
        "[1]",
        "{\"version\":2}",
        &huge,
        &good.replace("bad", "../bad"),
        &good.replace("bad", "other"),
        &good.replace(&digest.to_string(), "../../etc"),
        &good.replace("created", "extra"),
        &good[..good.len() / 2],
    ];
    for damage in damages {
        fs::write(&path, damage).unwrap();
        let error = f.store.hold("bad").unwrap_err();
        assert!(error.to_string().contains("bad/record.json"), "{error}");
        assert!(matches!(refusal(error), StoreError::Damaged { .. }), "{damage}");
        let listed = f.store.list().unwrap();
        assert_eq!((listed.distributions.len(), listed.damaged.len()), (1, 1));
    }
    fs::write(&path, good.replace("\"version\":2", "\"version\":3")).unwrap();
    assert!(matches!(refusal(f.store.hold("bad").unwrap_err()), StoreError::Newer { version: 3, .. }));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    f.store.hold("bad").unwrap_err();
    // It may have been made from the same base: that stays until the damage is gone.
    assert_eq!(f.store.remove("good").unwrap(), []);
    assert_eq!(f.reopened().cleared(), []);
    assert_eq!(f.store.remove("bad").unwrap(), [digest]);
}

#[test]
fn what_is_missing_is_named() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    f.store.create("a", &base, SIZE).unwrap();
    fs::remove_file(f.store.base_path(&base.digest())).unwrap();
    let error = f.store.hold("a").unwrap_err();
    assert!(error.to_string().contains(&base.digest().to_string()), "{error}");
    assert!(matches!(refusal(error), StoreError::NoBase { .. }));
    assert!(matches!(refusal(f.store.hold("b").unwrap_err()), StoreError::Unknown(_)));
    fs::write(f.store.directory.join("store.json"), "{\"version\":9}").unwrap();
    let error = Store::open(&f.store.directory).unwrap_err();
    assert!(matches!(refusal(error), StoreError::Newer { version: 9, known: 1, .. }));
}

/// The next number, what is plugged in and whether read-only, and whether the next plug is refused.
type Slots = (u16, Vec<(DiskAddress, bool)>, bool);

/// Counts what is plugged in, and can refuse.
#[derive(Default)]
struct Plugboard {
    state: std::sync::Mutex<Slots>,
}

impl Plugs for Plugboard {
    fn attach_disk(&self, _: &File, read_only: bool) -> Result<DiskAddress> {
        let mut state = self.state.lock().unwrap();
        if state.2 && !read_only {
            return Err(Error::System { what: "attach", source: io::ErrorKind::Other.into() });
        }
        state.0 += 1;
        let address = DiskAddress::Lun(state.0);
        state.1.push((address.clone(), read_only));
        Ok(address)
    }

    fn detach_disk(&self, disk: DiskAddress) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let before = state.1.len();
        state.1.retain(|(address, _)| *address != disk);
        assert_eq!(state.1.len() + 1, before);
        Ok(())
    }
}

#[test]
fn a_base_is_plugged_in_once_and_goes_with_its_last_user() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    for name in ["a", "b", "c"] {
        f.store.create(name, &base, SIZE).unwrap();
    }
    f.store.create_flat("flat", &f.archive("one"), SIZE, &mut f.unpack()).unwrap();
    drop(base);
    let (disks, board) = (Disks::default(), Arc::new(Plugboard::default()));
    let plugged =
        || board.state.lock().unwrap().1.iter().map(|(_, read_only)| *read_only).collect::<Vec<_>>();
    let attach = |name| disks.attach(&*board, f.store.hold(name).unwrap());
    let (a, b) = (attach("a").unwrap(), attach("b").unwrap());
    assert_eq!(plugged(), [true, false, false]);
    let (Root::Layered { base: first, bound, .. }, Root::Layered { base: second, .. }) = (a.root(), b.root())
    else {
        panic!("{a:?}, {b:?}")
    };
    assert_eq!(first, second);
    assert_eq!(bound, &BOUND);
    let flat = attach("flat").unwrap();
    assert!(matches!(flat.root(), Root::Flat { .. }));
    disks.detach(&*board, flat).unwrap();
    // One that cannot be attached takes nothing with it and leaves nothing.
    board.state.lock().unwrap().2 = true;
    attach("c").unwrap_err();
    board.state.lock().unwrap().2 = false;
    assert_eq!(plugged(), [true, false, false]);
    disks.detach(&*board, a).unwrap();
    assert_eq!(plugged(), [true, false]);
    // While it is plugged in nobody removes it, not even when its records are gone.
    fs::remove_dir_all(f.store.directory.join(DISTRIBUTIONS)).unwrap();
    assert_eq!(f.reopened().cleared(), []);
    disks.detach(&*board, b).unwrap();
    assert_eq!(plugged(), [] as [bool; 0]);
    assert_eq!(f.reopened().cleared().len(), 1);
}
