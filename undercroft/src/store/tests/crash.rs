//! Processes that die, and processes that meet.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::Barrier,
};

use undercroft_protocol::command::Imported;

use super::*;
use crate::{Archive, KnownFile};

/// What a process that was killed leaves, at each step of making and removing.
#[test]
fn what_a_killed_process_left_is_cleared_away() {
    let Some(f) = fixture() else { return };
    let base = f.base("one");
    f.store.create("kept", &base, SIZE).unwrap();
    let directory = &f.store.directory;
    let partial = |name: &str| directory.join(PARTIAL).join(name);
    let record = fs::read(directory.join(DISTRIBUTIONS).join("kept").join(RECORD)).unwrap();
    let mut expected = Vec::new();
    let mut left = |what, name: &str| expected.push(Cleared { what, name: name.into() });
    fs::write(partial(&format!("base-{}.ext4", base.digest())), "").unwrap();
    left(Leftover::Import, &format!("base-{}.ext4", base.digest()));
    fs::create_dir(partial("gone-d")).unwrap();
    left(Leftover::Removed, "gone-d");
    for (name, files) in [("new-a", &[][..]), ("new-b", &[DISK]), ("new-c", &[DISK, RECORD])] {
        fs::create_dir(partial(name)).unwrap();
        for file in files {
            fs::write(partial(name).join(file), &record).unwrap();
        }
        left(Leftover::New, name);
    }
    fs::write(partial("stream-1-0.ext4"), "half").unwrap();
    left(Leftover::Import, "stream-1-0.ext4");
    // Imported, and killed before anything was made from it.
    let orphan = f.base("two").digest();
    left(Leftover::Base, &orphan.to_string());

    let again = f.reopened();
    assert_eq!(again.cleared(), expected);
    assert!(again.cleared().iter().all(|one| one.to_string().contains(&one.name)));
    assert!(f.partial().is_empty());
    assert_eq!(f.names(), ["kept"]);
    assert_eq!(f.bases(), [format!("{}.ext4", base.digest())]);
    assert_eq!(f.reopened().cleared(), []);
}

/// The child of the next test: makes and removes until it is killed.
#[test]
fn child() {
    let Some(folder) = std::env::var_os("UNDERCROFT_STORE_TEST") else { return };
    let store = Store::open(folder.as_ref()).unwrap();
    let archive = KnownFile::read(&Path::new(&folder).with_extension("tar"), None, |_, _| ()).unwrap();
    let mut unpack = |disk: &File, _: Archive| {
        disk.write_all_at(b"unpacked", SIZE / 2).unwrap();
        Ok(Imported::default())
    };
    loop {
        let (base, _) = store.import_base(&archive, &mut unpack).unwrap();
        store.create("layered", &base, SIZE).unwrap();
        drop(base);
        store.create_flat("flat", &archive, SIZE, &mut unpack).unwrap();
        store.remove("layered").unwrap();
        store.remove("flat").unwrap();
    }
}

#[test]
fn killed_anywhere_everything_is_whole_or_gone() {
    let Some(f) = fixture() else { return };
    let (folder, archive) = (f.folder.path().join("shared"), f.archive("shared"));
    assert_eq!(archive.path(), folder.with_extension("tar"));
    for round in 0..25 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::child"])
            .env("UNDERCROFT_STORE_TEST", &folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Each round somewhere else.
        std::thread::sleep(std::time::Duration::from_millis(20 + 7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&folder).unwrap();
        // Its mke2fs may still be at work, with a file of its own.
        let listed = store.list().unwrap();
        assert!(listed.damaged.is_empty(), "{:?}", listed.damaged);
        for one in listed.distributions {
            let held = store.hold(&one.name).unwrap();
            let written = if one.content == Content::Flat {
                Some(&held.disk)
            } else {
                held.base.as_ref().map(Base::file)
            };
            let mut bytes = [0; 8];
            written.unwrap().read_exact_at(&mut bytes, SIZE / 2).unwrap();
            assert_eq!(&bytes, b"unpacked");
            drop(held);
            store.remove(&one.name).unwrap();
        }
        assert_eq!(names(&folder.join(BASES)).unwrap(), [] as [&str; 0]);
        assert_eq!(names(&folder.join(PARTIAL)).unwrap(), [] as [&str; 0]);
    }
}

#[test]
fn what_is_being_made_is_left_alone() {
    let Some(f) = fixture() else { return };
    let archive = f.archive("one");
    let mut look = |disk: &File, archive: Archive| {
        let others = f.reopened();
        assert_eq!(others.cleared(), []);
        assert_eq!(f.partial().len(), 1);
        if f.partial()[0].starts_with("new-") {
            let taken = others.create_flat("A", &f.archive("two"), SIZE, &mut f.unpack()).unwrap_err();
            assert!(matches!(refusal(taken), StoreError::Taken(_)));
        }
        f.unpack()(disk, archive)
    };
    let _base = f.store.import_base(&archive, &mut look).unwrap();
    f.store.create_flat("a", &archive, SIZE, &mut look).unwrap();
    assert_eq!(f.imports(), 2);
}

#[test]
fn many_at_once_import_once_and_make_one_of_each_name() {
    let Some(f) = fixture() else { return };
    let archive = f.archive("one");
    let start = Barrier::new(4);
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    // Open files of its own, as another process has them.
                    let store = f.reopened();
                    let (base, _) = store.import_base(&archive, &mut f.unpack()).unwrap();
                    let made = ["x", "y", "z"].map(|name| match store.create(name, &base, SIZE) {
                        Ok(_) => 1,
                        Err(error) => {
                            assert!(matches!(refusal(error), StoreError::Taken(_)));
                            0
                        }
                    });
                    made.iter().sum::<usize>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((f.imports(), made), (1, 3));
    assert_eq!(f.names(), ["x", "y", "z"]);
    assert!(f.partial().is_empty());
}
