//! Every change of a distribution, killed at each of its steps: what the next one who opens the store finds is what was, or
//! what was to be, and the command can be given again.

use std::{path::PathBuf, process::Stdio};

use super::{changes::is_sound, *};
use crate::store::fault;

/// Where each disk has its distribution's name, in bytes: a block that its file system has no use for.
const MARK: u64 = SIZE / 4;

/// A store with `a`, which is the default, and `b`, and beside it a folder with an image.
struct Case {
    name: &'static str,
    run: fn(&Store, &Path) -> Result<()>,
    undo: fn(&Store, &Path) -> Result<()>,
    /// Whether it has happened.
    happened: fn(&Store) -> bool,
    /// Whether it begins undone.
    is_undone: bool,
}

fn quiet(_: u64, _: u64) -> Result<()> {
    Ok(())
}

fn is_there(store: &Store, name: &str) -> bool {
    store.distribution(name).unwrap().is_some_and(|record| record.name == name)
}

fn size(store: &Store) -> u64 {
    store.hold("a").unwrap().size().unwrap()
}

fn is_elsewhere(store: &Store) -> bool {
    store.distribution("a").unwrap().unwrap().disk.is_some()
}

fn out(store: &Store, elsewhere: &Path) -> Result<()> {
    store.relocate("a", Some(elsewhere), &mut quiet).map(drop)
}

fn home(store: &Store, _: &Path) -> Result<()> {
    store.relocate("a", None, &mut quiet).map(drop)
}

const CASES: [Case; 12] = [
    Case {
        name: "clone",
        run: |store, _| store.clone_as("a", "copy", &mut quiet).map(drop),
        undo: |store, _| store.remove("copy").map(drop),
        happened: |store| is_there(store, "copy"),
        is_undone: true,
    },
    Case {
        name: "rename",
        run: |store, _| store.rename("a", "z").map(drop),
        undo: |store, _| store.rename("z", "a").map(drop),
        happened: |store| {
            let happened = is_there(store, "z");
            assert_eq!(is_there(store, "a"), !happened);
            let default = store.default_distribution().unwrap();
            assert_eq!(default.as_deref(), Some(if happened { "z" } else { "a" }));
            happened
        },
        is_undone: true,
    },
    Case {
        name: "rename-case",
        run: |store, _| store.rename("a", "A").map(drop),
        undo: |store, _| store.rename("A", "a").map(drop),
        happened: |store| is_there(store, "A"),
        is_undone: true,
    },
    Case { name: "out-by-link", run: out, undo: home, happened: is_elsewhere, is_undone: true },
    Case { name: "out-by-copy", run: out, undo: home, happened: is_elsewhere, is_undone: true },
    Case {
        name: "home-by-copy",
        run: home,
        undo: out,
        happened: |store| !is_elsewhere(store),
        is_undone: false,
    },
    Case {
        name: "grow",
        run: |store, _| store.resize("a", 2 * SIZE, &mut quiet),
        undo: |store, _| store.resize("a", SIZE, &mut quiet),
        happened: |store| size(store) == 2 * SIZE,
        is_undone: true,
    },
    Case {
        name: "shrink",
        run: |store, _| store.resize("a", SIZE / 2, &mut quiet),
        undo: |store, _| store.resize("a", SIZE, &mut quiet),
        happened: |store| size(store) == SIZE / 2,
        is_undone: true,
    },
    Case {
        name: "adopt",
        run: |store, elsewhere| store.adopt("img", &elsewhere.join("image")).map(drop),
        undo: |store, _| store.remove("img").map(drop),
        happened: |store| is_there(store, "img"),
        is_undone: true,
    },
    Case {
        name: "remove-elsewhere",
        run: |store, _| store.remove("gone").map(drop),
        undo: |store, elsewhere| {
            store.clone_as("a", "gone", &mut quiet)?;
            store.relocate("gone", Some(elsewhere), &mut quiet).map(drop)
        },
        happened: |store| !is_there(store, "gone"),
        is_undone: false,
    },
    Case {
        name: "default",
        run: |store, _| store.set_default("b"),
        undo: |store, _| store.set_default("a"),
        happened: |store| store.default_distribution().unwrap().as_deref() == Some("b"),
        is_undone: true,
    },
    Case {
        name: "configure",
        run: |store, _| store.configure("a", |settings| settings.keep_alive = true).map(drop),
        undo: |store, _| store.configure("a", |settings| settings.keep_alive = false).map(drop),
        happened: |store| store.distribution("a").unwrap().unwrap().settings.keep_alive,
        is_undone: true,
    },
];

/// The child of the next test.
#[test]
fn child() {
    let Ok(what) = std::env::var("UNDERCROFT_STORE_FAULT") else { return };
    let mut words = what.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    let (name, at, folder) = (word(), word().parse().unwrap(), PathBuf::from(word()));
    let store = Store::open(&folder.join("store")).unwrap();
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    if name.ends_with("by-copy") {
        fault::refuse_links();
    }
    fault::arm(at);
    (case.run)(&store, &folder.join("elsewhere")).unwrap();
    // None of the points was the last one.
    std::process::exit(0);
}

#[test]
fn whatever_is_killed_has_happened_or_has_not() {
    // In memory, where there is such a place: it is synced some thousand times.
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let Some(f) = fixture_in(place.unwrap()) else { return };
    let folder = f.folder.path().canonicalize().unwrap();
    let elsewhere = f.elsewhere();
    for name in ["a", "b"] {
        f.store.create(name, &f.base("one"), SIZE).unwrap();
        f.store.hold(name).unwrap().disk.write_all_at(name.as_bytes(), MARK).unwrap();
    }
    f.store.set_default("a").unwrap();
    fs::copy(f.store.directory.join(DISTRIBUTIONS).join("a").join(DISK), elsewhere.join("image")).unwrap();
    for case in CASES {
        if !case.is_undone {
            (case.undo)(&f.store, &elsewhere).unwrap();
        }
        let mut steps = 0;
        for at in 1.. {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::tests::faults::child"])
                .env("UNDERCROFT_STORE_FAULT", format!("{} {at} {}", case.name, folder.display()))
                .stdout(Stdio::null())
                .status()
                .unwrap();
            let store = f.reopened();
            let where_it_was = format!("{} at {at}", case.name);
            look(&f, &store, &where_it_was);
            if matches!(case.name, "grow" | "shrink") {
                is_sound(&store.hold("a").unwrap().disk);
            }
            let happened = (case.happened)(&store);
            match status.code() {
                Some(fault::STATUS) => {}
                Some(0) => assert!(happened, "{where_it_was}"),
                other => panic!("{where_it_was}: {other:?}"),
            }
            if !happened {
                (case.run)(&store, &elsewhere).unwrap();
                look(&f, &store, &where_it_was);
                assert!((case.happened)(&store), "{where_it_was}");
            }
            if status.success() {
                break;
            }
            (case.undo)(&store, &elsewhere).unwrap();
            steps = at;
        }
        assert!(steps > 3, "{}: {steps} steps", case.name);
        let store = f.reopened();
        if case.is_undone {
            (case.undo)(&store, &elsewhere).unwrap();
        }
    }
}

/// Everything is whole, and there is nothing else.
fn look(f: &Fixture, store: &Store, at: &str) {
    let listed = store.list().unwrap();
    assert!(listed.damaged.is_empty(), "{at}: {:?}", listed.damaged);
    assert_eq!(f.partial(), [] as [&str; 0], "{at}");
    let mut there = vec!["image".to_owned()];
    for one in &listed.distributions {
        let held = store.hold(&one.name).unwrap();
        let expected = if one.name == "b" { "b" } else { "a" };
        let mut mark = [0];
        held.disk.read_exact_at(&mut mark, MARK).unwrap();
        assert_eq!(mark, expected.as_bytes(), "{at}: {}", one.name);
        let disk = one.disk.as_ref().and_then(|disk| disk.file_name()).and_then(|name| name.to_str());
        there.extend(disk.filter(|name| *name != "image").map(str::to_owned));
        let folder = store.directory.join(DISTRIBUTIONS).join(one.name.to_ascii_lowercase());
        let files: &[&str] = if one.disk.is_some() { &[RECORD] } else { &[DISK, RECORD] };
        assert_eq!(names(&folder).unwrap(), files, "{at}: {}", one.name);
    }
    there.sort();
    assert_eq!(names(&f.elsewhere()).unwrap(), there, "{at}");
}
