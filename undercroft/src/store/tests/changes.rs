//! What is done with a distribution as a whole, without anybody dying.

use std::{fs::Permissions, path::PathBuf};

use undercroft_protocol::command::Limits;

use super::*;
use crate::e2fs;

/// Who does not want to know.
fn quiet(_: u64, _: u64) -> Result<()> {
    Ok(())
}

/// Puts a file into the file system of a disk.
pub(super) fn mark(disk: &File, text: &str) {
    let mark = tempfile::NamedTempFile::new().unwrap();
    fs::write(mark.path(), text).unwrap();
    let request = format!("write {} mark", mark.path().display());
    debugfs(disk, &["-w", "-R", &request]);
}

/// What [`mark`] put there.
pub(super) fn marked(disk: &File) -> String {
    debugfs(disk, &["-R", "cat mark"])
}

fn debugfs(disk: &File, arguments: &[&str]) -> String {
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(disk));
    let output = e2fs::program("debugfs").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// That a file system has no faults.
pub(super) fn is_sound(disk: &File) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(disk));
    let output = e2fs::program("e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

impl Fixture {
    /// A layered distribution with a marked disk.
    pub(super) fn marked(&self, name: &str) {
        let base = self.base("one");
        self.store.create(name, &base, SIZE).unwrap();
        mark(&self.store.hold(name).unwrap().disk, name);
    }

    pub(super) fn elsewhere(&self) -> PathBuf {
        let path = self.folder.path().canonicalize().unwrap().join("elsewhere");
        fs::create_dir_all(&path).unwrap();
        path
    }
}

#[test]
fn a_clone_is_its_own_and_shares_the_base() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    f.store.configure("a", |settings| settings.keep_alive = true).unwrap();
    let mut told = Vec::new();
    let clone = f
        .store
        .clone_as("a", "Clone", &mut |at, of| {
            told.push((at, of));
            Ok(())
        })
        .unwrap();
    assert_eq!(told.last(), Some(&(SIZE, SIZE)));
    let original = f.store.distribution("a").unwrap().unwrap();
    assert_eq!((clone.content, &clone.settings), (original.content, &original.settings));
    assert!(clone.settings.keep_alive);
    let held = f.store.hold("clone").unwrap();
    assert_eq!(marked(&held.disk), "a");
    is_sound(&held.disk);
    // Sparse as the original is.
    let blocks = std::os::unix::fs::MetadataExt::blocks(&held.disk.metadata().unwrap());
    assert!(blocks * 512 < 4 << 20, "{blocks}");
    assert!(matches!(refusal(f.store.clone_as("clone", "x", &mut quiet).unwrap_err()), StoreError::InUse(_)));
    assert!(matches!(refusal(f.store.clone_as("a", "CLONE", &mut quiet).unwrap_err()), StoreError::Taken(_)));
    drop(held);
    let ended = f.store.clone_as("a", "b", &mut |_, _| Err(Error::Cancelled));
    assert!(matches!(ended, Err(Error::Cancelled)));
    assert!(f.partial().is_empty());
    assert_eq!(f.names(), ["a", "Clone"]);
    let Content::Layered(base) = clone.content else { panic!("{clone:?}") };
    assert_eq!(f.store.users(&base).unwrap(), ["a", "Clone"]);
}

#[test]
fn a_new_name_is_the_same_distribution() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    f.marked("other");
    f.store.set_default("a").unwrap();
    assert_eq!(f.store.rename("a", "New").unwrap().name, "New");
    assert_eq!(f.names(), ["New", "other"]);
    assert_eq!(f.store.default_distribution().unwrap().as_deref(), Some("New"));
    assert_eq!(marked(&f.store.hold("new").unwrap().disk), "a");
    assert_eq!(f.store.rename("new", "NEW").unwrap().name, "NEW");
    assert!(matches!(refusal(f.store.rename("new", "Other").unwrap_err()), StoreError::Taken(_)));
    assert!(matches!(refusal(f.store.rename("a", "b").unwrap_err()), StoreError::Unknown(_)));
    assert!(matches!(refusal(f.store.rename("new", "a/b").unwrap_err()), StoreError::Name(_)));
    let held = f.store.hold("new").unwrap();
    assert!(matches!(refusal(f.store.rename("new", "b").unwrap_err()), StoreError::InUse(_)));
    drop(held);
    assert!(f.partial().is_empty());
}

#[test]
fn a_disk_can_be_elsewhere_and_come_back() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let folder = f.elsewhere().join("new/folder");
    let path = folder.join("a.ext4");
    assert_eq!(f.store.relocate("a", Some(&folder), &mut quiet).unwrap().disk.as_ref(), Some(&path));
    assert_eq!(names(&f.store.directory.join(DISTRIBUTIONS).join("a")).unwrap(), [RECORD]);
    let held = f.reopened().hold("a").unwrap();
    assert_eq!(marked(&held.disk), "a");
    assert!(matches!(refusal(f.store.relocate("a", None, &mut quiet).unwrap_err()), StoreError::InUse(_)));
    drop(held);
    // Where it is already, and where something else is.
    f.store.relocate("a", Some(&folder), &mut quiet).unwrap();
    fs::write(f.elsewhere().join("a.ext4"), "somebody's").unwrap();
    let taken = f.store.relocate("a", Some(&f.elsewhere()), &mut quiet).unwrap_err();
    assert!(taken.to_string().contains("elsewhere/a.ext4"), "{taken}");
    assert_eq!(fs::read(f.elsewhere().join("a.ext4")).unwrap(), b"somebody's");
    // Its name changes without it, and it goes with its distribution.
    f.store.rename("a", "b").unwrap();
    assert_eq!(marked(&f.store.hold("b").unwrap().disk), "a");
    assert_eq!(f.store.relocate("b", None, &mut quiet).unwrap().disk, None);
    assert!(!path.exists());
    f.store.relocate("b", Some(&folder), &mut quiet).unwrap();
    f.store.remove("b").unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert!(f.partial().is_empty());
}

#[test]
fn a_disk_is_for_its_owner_alone_and_an_image_for_whom_it_was() {
    let Some(f) = fixture() else { return };
    let mode = |name| f.store.hold(name).unwrap().disk.metadata().unwrap().permissions().mode() & 0o777;
    let set =
        |name, mode| f.store.hold(name).unwrap().disk.set_permissions(Permissions::from_mode(mode)).unwrap();
    f.marked("a");
    assert_eq!(mode("a"), 0o600);
    // As they were once made; nobody else could come so far.
    set("a", 0o644);
    f.store.clone_as("a", "b", &mut quiet).unwrap();
    f.store.relocate("a", Some(&f.elsewhere()), &mut quiet).unwrap();
    assert_eq!((mode("a"), mode("b")), (0o600, 0o600));
    // What somebody has said since counts.
    set("a", 0o660);
    f.store.resize("a", 2 * SIZE, &mut quiet).unwrap();
    assert_eq!(mode("a"), 0o660);
    // Another file system most often, where it is a copy.
    let further = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    f.store.relocate("a", Some(further.path()), &mut quiet).unwrap();
    assert_eq!(mode("a"), 0o660);
}

#[test]
fn what_a_disk_takes_is_counted_wherever_it_is() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let takes = || f.store.disk_bytes(&f.store.distribution("a").unwrap().unwrap()).unwrap();
    let before = takes();
    assert!(before > 0);
    f.store.relocate("a", Some(&f.elsewhere()), &mut quiet).unwrap();
    assert_eq!(takes(), before);
}

#[test]
fn whoever_wants_a_list_does_not_wait_for_a_disk_to_be_synced() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let guard = std::sync::Mutex::new(None);
    let record = f.store.partial("new-copy").join(RECORD);
    std::thread::scope(|scope| {
        let cloning = scope.spawn(|| {
            // Another has the store when the copy is made, and the rest is still to be done.
            f.store.clone_as("a", "copy", &mut |at, of| {
                let mut guard = guard.lock().unwrap();
                if at == of && guard.is_none() {
                    *guard = Some(f.reopened().lock()?);
                }
                Ok(())
            })
        });
        let begun = std::time::Instant::now();
        while !record.exists() && begun.elapsed().as_secs() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let written = record.exists();
        drop(guard.lock().unwrap().take());
        cloning.join().unwrap().unwrap();
        assert!(written, "the store was waited for before the copy was whole");
    });
    assert_eq!(f.names(), ["a", "copy"]);
}

#[test]
fn disks_become_larger_and_smaller() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let size = |size: u64| {
        let held = f.store.hold("a").unwrap();
        assert_eq!(held.size().unwrap(), size);
        assert_eq!(marked(&held.disk), "a");
        is_sound(&held.disk);
        assert_eq!(e2fs::Superblock::read(&held.disk).unwrap().unwrap().size(), size);
    };
    f.store.resize("a", 3 * SIZE + 100, &mut quiet).unwrap();
    size(3 * SIZE);
    f.store.resize("a", SIZE / 2, &mut quiet).unwrap();
    size(SIZE / 2);
    let error = f.store.resize("a", 1 << 20, &mut quiet).unwrap_err();
    assert!(
        error.to_string().starts_with("a cannot be made 1 MiB large: what is on its disk takes "),
        "{error}"
    );
    assert!(matches!(refusal(error), StoreError::TooSmall { .. }));
    size(SIZE / 2);
    f.store.relocate("a", Some(&f.elsewhere()), &mut quiet).unwrap();
    f.store.resize("a", SIZE, &mut quiet).unwrap();
    size(SIZE);
    assert_eq!(names(&f.elsewhere()).unwrap(), ["a.ext4"]);
    assert!(f.partial().is_empty());
}

#[test]
fn an_image_is_a_distribution_where_it_stands() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let image = f.elsewhere().join("image");
    fs::copy(f.store.directory.join(DISTRIBUTIONS).join("a").join(DISK), &image).unwrap();
    assert!(f.store.adopt("img", &image).unwrap().adopted);
    let held = f.store.hold("img").unwrap();
    assert_eq!((held.record.content, marked(&held.disk)), (Content::Flat, "a".to_owned()));
    assert!(matches!(refusal(f.store.adopt("again", &image).unwrap_err()), StoreError::InUse(_)));
    drop(held);
    assert!(matches!(refusal(f.store.adopt("again", &image).unwrap_err()), StoreError::Owned { .. }));
    let own = f.store.directory.join(DISTRIBUTIONS).join("a").join(DISK);
    assert!(matches!(refusal(f.store.adopt("again", &own).unwrap_err()), StoreError::Owned { .. }));
    // It was there before, and stays; what was moved is the distribution's.
    f.store.remove("img").unwrap();
    assert!(image.exists());
    f.store.adopt("img", &image).unwrap();
    f.store.relocate("img", None, &mut quiet).unwrap();
    assert!(!image.exists());
    let disk = f.store.directory.join(DISTRIBUTIONS).join("img").join(DISK);
    let held = f.store.hold("img").unwrap();
    let error = f.store.create_from_image("copy", &disk, &mut quiet).unwrap_err();
    assert!(matches!(refusal(error), StoreError::InUse(_)));
    drop(held);
    f.store.create_from_image("copy", &disk, &mut quiet).unwrap();
    f.store.remove("img").unwrap();
    assert_eq!(marked(&f.store.hold("copy").unwrap().disk), "a");
    let vhdx = [b"vhdxfile", &[0; 4088][..]].concat();
    for (content, reason) in
        [(&b"short"[..], "magic number"), (&[0; 4096], "magic number"), (&vhdx, "qemu-img convert -O raw")]
    {
        fs::write(&image, content).unwrap();
        let error = f.store.adopt("img", &image).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    let cut = File::create(&image).unwrap();
    crate::copy::copy_sparse(&f.store.hold("copy").unwrap().disk, &cut, &image, &mut quiet).unwrap();
    cut.set_len(SIZE - 1).unwrap();
    assert!(f.store.adopt("img", &image).unwrap_err().to_string().contains("cut off"));
    assert!(f.store.adopt("img", &f.elsewhere()).is_err());
    assert_eq!(f.names(), ["a", "copy"]);
    assert!(f.partial().is_empty());
}

#[test]
fn the_default_is_who_was_set_or_the_oldest() {
    let Some(f) = fixture() else { return };
    assert_eq!(f.store.default_distribution().unwrap(), None);
    for name in ["first", "second"] {
        f.marked(name);
    }
    let default = || f.reopened().default_distribution().unwrap().unwrap();
    assert_eq!(default(), "first");
    f.store.set_default("SECOND").unwrap();
    assert_eq!(default(), "second");
    f.store.remove("second").unwrap();
    assert_eq!(default(), "first");
    // One of the same name is not the same.
    f.marked("second");
    assert_eq!(default(), "first");
    assert!(matches!(refusal(f.store.set_default("third").unwrap_err()), StoreError::Unknown(_)));
}

#[test]
fn settings_stay_and_records_of_the_first_version_are_read() {
    let Some(f) = fixture() else { return };
    f.marked("a");
    let record = f.store.distribution("a").unwrap().unwrap();
    assert_eq!(record.settings, Settings { setup: Setup::Pending, ..Settings::default() });
    assert!(record.settings.own_users);
    let path = f.store.directory.join(DISTRIBUTIONS).join("a").join(RECORD);
    let Content::Layered(base) = record.content else { panic!("{record:?}") };
    let first =
        format!("{{\"version\":1,\"name\":\"a\",\"content\":{{\"layered\":\"{base}\"}},\"created\":7}}");
    fs::write(&path, first).unwrap();
    let old = Record { created: 7, settings: Settings::default(), ..record };
    assert_eq!(f.store.distribution("a").unwrap().unwrap(), old);
    // While it is in use, too.
    let held = f.store.hold("a").unwrap();
    let set = Settings {
        default_uid: Some(1000),
        keep_alive: true,
        own_users: false,
        limits: Limits { memory: Some(1 << 30), ..Limits::default() },
        setup: Setup::Pending,
        flavour: Some("debian".into()),
        os_version: Some("12".into()),
    };
    f.store.configure("A", |settings| *settings = set.clone()).unwrap();
    drop(held);
    let record = f.reopened().distribution("a").unwrap().unwrap();
    assert_eq!((record.created, record.settings), (7, set));
    assert!(fs::read_to_string(&path).unwrap().contains("\"version\":2"));
}
