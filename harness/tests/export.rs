//! A distribution goes out as an archive and comes in again, and goes out as the same archive, byte for byte.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use tar::EntryType;
use undercroft::{
    Compression, Error, Exporting, KnownFile, LaunchOptions, NewFile, Root, Store, Target, store::Attached,
};
use undercroft_harness::{
    archive::{Archive, Meta},
    outcome::{Failure, Outcome},
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};

/// Bytes of the disks.
const SIZE: u64 = 1 << 30;

/// What a root can hold and an archive can get wrong.
fn archive() -> std::io::Result<Vec<u8>> {
    let long = format!("srv/{}/{}", "d".repeat(120), "f".repeat(150));
    // cap_net_raw+ep, version 2 (linux/capability.h, struct vfs_cap_data).
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Archive::busybox("to go out")?
        .directory("data", Meta::mode(0o750).owner(7, 8))?
        .text("data/one", "one\n")?
        .hard_link("data/two", "data/one")?
        .text("data/gone", "gone\n")?
        .directory("data/folder", Meta::mode(0o755))?
        .text("data/folder/old", "old\n")?
        .text("data/untouched", "as it was\n")?
        .directory("srv", Meta::mode(0o2750).owner(12, 34))?
        .special("srv/fifo", EntryType::Fifo, (0, 0), Meta::mode(0o640))?
        .special("srv/char", EntryType::Char, (1, 3), Meta::mode(0o666))?
        .special("srv/block", EntryType::Block, (7, 200), Meta::mode(0o660).owner(0, 6))?
        .file("srv/large-ids", b"x", Meta::mode(0o600).owner(3_000_000, 4_000_000))?
        .text(&long, "long\n")?
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.note", b"a\0b"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.acl.access", b"user::rwx,user:1000:rw-:1000,group::r-x,mask::rwx,other::r-x"),
        ])?
        .file("srv/attributes", b"x", Meta::mode(0o755))?
        .pax(&[
            ("GNU.sparse.size", b"8388608"),
            ("GNU.sparse.map", b"4096,3,1048576,5"),
            ("GNU.sparse.name", b"srv/holes"),
        ])?
        .file("srv/holes-stored", b"abcdefgh", Meta::mode(0o644))?
        .bytes()
}

/// What an archive says of each name: kind, mode, owners, time, target, content and records.
type Said = BTreeMap<String, String>;

fn said(path: &Path) -> std::io::Result<Said> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut said = Said::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let records: Vec<String> = entry
            .pax_extensions()?
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|r| format!("{}={}", r.key().unwrap_or_default(), r.value_bytes().escape_ascii()))
            .collect();
        let header = entry.header();
        let line = format!(
            "{:?} {:o} {}:{} {} {:?} {:?}/{:?} {}",
            header.entry_type(),
            header.mode()?,
            header.uid()?,
            header.gid()?,
            header.mtime()?,
            entry.link_name()?.map(|name| name.display().to_string()).unwrap_or_default(),
            header.device_major()?,
            header.device_minor()?,
            records.join(" "),
        );
        // What has holes has its name in a record.
        let name = records.iter().find_map(|record| record.strip_prefix("GNU.sparse.name="));
        let name =
            name.map_or_else(|| String::from_utf8_lossy(&entry.path_bytes()).into_owned(), str::to_owned);
        let mut content = Vec::new();
        if entry.size() < 100 {
            entry.read_to_end(&mut content)?;
        }
        let content = String::from_utf8_lossy(&content);
        said.insert(name, format!("{line} {content:?}"));
    }
    Ok(said)
}

/// Exports to a new file of the scratch folder.
fn export(vm: &Vm, root: &Root, name: &str) -> Result<PathBuf, Failure> {
    let path = vm.scratch().join(name);
    let new = vm.check(NewFile::create(&path))?;
    let target = Target { file: new.file(), name: &path, compression: Compression::None };
    let mut last = Exporting::default();
    let exported = vm.check(vm.machine().export(root, &target, |so_far| {
        last = so_far;
        Ok(())
    }))?;
    assert_eq!(exported.warnings, [] as [&str; 0]);
    assert_eq!(
        (exported.bytes, last.read, last.written),
        (new.file().metadata()?.len(), exported.bytes, exported.bytes)
    );
    vm.check(new.keep())?;
    Ok(path)
}

fn same(one: &Path, other: &Path) -> Outcome {
    if fs::read(one)? == fs::read(other)? {
        return Ok(());
    }
    let (one, other) = (said(one)?, said(other)?);
    for (name, line) in &one {
        assert_eq!(Some(line), other.get(name), "{name}");
    }
    assert_eq!(one.len(), other.len());
    Err(Failure::Failed("two archives say the same and are not the same".into()))
}

/// The store of a test, in its scratch folder.
struct Shelf<'a> {
    vm: &'a Vm,
    store: Store,
}

impl Shelf<'_> {
    fn flat(&self, name: &str, archive: &Path) -> Result<Attached, Failure> {
        let known = self.vm.check(KnownFile::read(archive, None, |_, _| ()))?;
        let by = &mut self.vm.machine().unpacker(|_| ());
        self.vm.check(self.store.create_flat(name, &known, SIZE, by))?;
        self.attach(name)
    }

    fn layered(&self, name: &str, archive: &Path) -> Result<Attached, Failure> {
        let known = self.vm.check(KnownFile::read(archive, None, |_, _| ()))?;
        let by = &mut self.vm.machine().unpacker(|_| ());
        let (base, _) = self.vm.check(self.store.import_base(&known, by))?;
        self.vm.check(self.store.create(name, &base, SIZE))?;
        self.attach(name)
    }

    fn attach(&self, name: &str) -> Result<Attached, Failure> {
        self.vm.check(self.store.hold(name).and_then(|held| self.vm.machine().attach(held)))
    }

    /// Runs a script in a distribution, which is stopped again.
    fn run(&self, name: &str, attached: &Attached, script: &str) -> Result<String, Failure> {
        let options = LaunchOptions::new(name, attached.root().clone());
        let running = self.vm.check(self.vm.machine().launch(&options))?;
        let program = undercroft::Program::new(["/bin/sh", "-c", script]);
        let session = self.vm.check(running.exec(&program, undercroft::Pipes::ALL))?;
        let output = self.vm.check(session.output(""))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.shell(), 0, "{script}: {errors}");
        self.vm.check(running.terminate(std::time::Duration::from_secs(60)))?;
        Ok(text)
    }
}

fn of<'a>(said: &'a Said, name: &str) -> &'a str {
    said.get(name).map_or("nothing", |line| line.as_str())
}

#[test]
fn what_went_out_and_came_in_goes_out_the_same() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).start()?;
        let shelf = Shelf { vm: &vm, store: vm.check(Store::open(&vm.scratch().join("store")))? };
        let source = vm.scratch().join("source.tar");
        fs::write(&source, archive()?)?;

        // Everything on its own disk, never started.
        let flat = shelf.flat("flat", &source)?;
        let first = export(&vm, flat.root(), "flat-1.tar")?;
        let it = said(&first)?;
        for (name, expected) in [
            ("./data/", "Directory 750 7:8 1700000000"),
            ("./data/two", "Link 644 0:0 1700000000 \"./data/one\""),
            ("./srv/", "Directory 2750 12:34"),
            ("./srv/fifo", "Fifo 640"),
            ("./srv/char", "Char 666 0:0 1700000000 \"\" Some(1)/Some(3)"),
            ("./srv/block", "Block 660 0:6 1700000000 \"\" Some(7)/Some(200)"),
        ] {
            assert!(of(&it, name).starts_with(expected), "{name}: {}", of(&it, name));
        }
        for (name, expected) in [
            ("./srv/large-ids", "uid=3000000 gid=4000000"),
            ("./srv/attributes", "mtime=1234567890.123456789"),
            ("./srv/attributes", "SCHILY.xattr.user.note=a\\x00b"),
            ("./srv/attributes", "SCHILY.xattr.security.capability=\\x01\\x00\\x00\\x02\\x00 "),
            ("./srv/attributes", "SCHILY.acl.access=user::rwx,user:1000:rw-:1000,group::r-x"),
            ("./srv/holes", "GNU.sparse.realsize=8388608"),
        ] {
            assert!(of(&it, name).contains(expected), "{name}: {}", of(&it, name));
        }
        let again = shelf.flat("flat-again", &first)?;
        same(&first, &export(&vm, again.root(), "flat-2.tar")?)?;

        // Layers: what is hidden is not there, what was changed is, and what is bound over it belongs to it.
        let layered = shelf.layered("layered", &source)?;
        shelf.run(
            "layered",
            &layered,
            "cd /data; echo more >> one; rm gone; rm -r folder; mkdir folder; echo new > folder/new; \
             mv /home/user /home/renamed; chmod 600 /srv/attributes; truncate -s 64M holes; echo end >> holes; \
             ln untouched third; echo kept > /var/lib/docker/image; chown 5:6 /var/lib/docker/image",
        )?;
        let out = export(&vm, layered.root(), "layered-1.tar")?;
        let it = said(&out)?;
        for hidden in ["./data/gone", "./data/folder/old", "./home/user/", "./upper/", "./lost+found/"] {
            assert_eq!(of(&it, hidden), "nothing");
        }
        for (name, expected) in [
            ("./data/one", "\"one\\nmore\\n\""),
            ("./data/two", "Link 644 0:0"),
            ("./data/folder/new", "new"),
            ("./data/untouched", "\"./data/third\""),
            ("./home/renamed/", "Directory 755 1000:1000"),
            ("./data/holes", "GNU.sparse.realsize=67108868"),
            (
                "./srv/attributes",
                "SCHILY.acl.access=user::rw-,user:1000:rw-:1000,group::r-x,mask::---,other::---",
            ),
            ("./srv/attributes", "SCHILY.xattr.security.capability"),
            ("./var/lib/docker/image", "Regular 644 5:6"),
        ] {
            assert!(of(&it, name).contains(expected), "{name}: {}", of(&it, name));
        }
        let again = shelf.flat("layered-again", &out)?;
        same(&out, &export(&vm, again.root(), "layered-2.tar")?)?;

        // As a base, its own disk empty and never started; and when it runs, all of it is seen.
        let based = shelf.layered("based", &out)?;
        same(&out, &export(&vm, based.root(), "layered-3.tar")?)?;
        let seen = shelf.run("based", &based, "cat /data/two /data/folder/new /var/lib/docker/image; ls -ln /var/lib/docker/image | awk '{print $3, $4}'; wc -c < /data/holes")?;
        assert_eq!(seen, "one\nmore\nnew\nkept\n5 6\n67108868\n");

        // As a disk of its own.
        let image = vm.scratch().join("image.ext4");
        let new = vm.check(NewFile::create(&image))?;
        vm.check(vm.machine().export_image(&layered, new.file(), &image, Some(SIZE), |_| Ok(())))?;
        vm.check(new.keep())?;
        let disk =
            vm.check(vm.machine().attach_disk(&File::options().read(true).write(true).open(&image)?, false))?;
        same(&out, &export(&vm, &Root::Flat { disk }, "image.tar")?)?;
        vm.power_off()
    })
}

/// A host that stops reading, or has no room, leaves nothing behind and a guest that goes on.
#[test]
fn an_export_that_ends_early_leaves_all_as_it_was() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).start()?;
        vm.prepare(&Wanted::new("a", &suite.busybox))?;
        let root = vm.root("a")?.clone();
        let path = vm.scratch().join("cut.tar");
        let new = vm.check(NewFile::create(&path))?;
        let target = Target { file: new.file(), name: &path, compression: Compression::None };
        let cut = vm
            .machine()
            .export(&root, &target, |so_far| if so_far.written > 0 { Err(Error::Cancelled) } else { Ok(()) });
        assert!(matches!(cut, Err(Error::Cancelled)), "{cut:?}");
        drop(new);
        let full = File::options().write(true).open("/dev/full")?;
        let target = Target { file: &full, name: Path::new("/dev/full"), compression: Compression::Gzip };
        let refused = vm.machine().export(&root, &target, |_| Ok(()));
        assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
        let names: Vec<_> =
            fs::read_dir(vm.scratch())?.filter_map(Result::ok).map(|e| e.file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains("cut.tar")), "{names:?}");
        // While it runs it is not for export.
        vm.launch("a")?;
        assert_eq!(vm.read("a", "echo here")?, "here");
        let runs = vm.machine().export(&root, &target, |_| Ok(()));
        assert!(
            matches!(&runs, Err(Error::Refused { message, .. }) if message.contains("stop it first")),
            "{runs:?}"
        );
        vm.terminate("a")?;
        export(&vm, &root, "whole.tar")?;
        vm.power_off()
    })
}
