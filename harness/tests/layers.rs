//! A base beneath several distributions: what is shared is shared, and what is changed is changed for one only.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rstest::rstest;
use tar::EntryType;
use undercroft_harness::{
    archive::{Archive, Meta},
    outcome::{Failure, Outcome},
    suite::Suite,
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};

/// MiB of the file that one distribution reads for the other.
const LARGE: usize = 24;

/// A busybox distribution with what a layer can get wrong. It is named by what is in it, so that its base can be kept.
fn archive(suite: &Suite) -> Result<std::path::PathBuf, Failure> {
    // Nothing that a file system could make less of.
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(LARGE << 20)
    .collect();
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bytes = Archive::busybox("for layers")?
        .directory("data", Meta::mode(0o750).owner(7, 8))?
        .text("data/one", "one\n")?
        .hard_link("data/two", "data/one")?
        .text("data/gone", "gone\n")?
        .directory("data/folder", Meta::mode(0o755))?
        .text("data/folder/old", "old\n")?
        .special("data/fifo", EntryType::Fifo, (0, 0), Meta::mode(0o600))?
        .pax(&[("SCHILY.xattr.user.colour", b"blue"), ("SCHILY.xattr.security.capability", &capability)])?
        .file("data/marked", b"#!/bin/sh\n", Meta::mode(0o755))?
        .file("large", &noise, Meta::mode(0o644))?
        .bytes()?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = suite.bases.join(format!("layers-{:016x}.tar", hasher.finish()));
    if !path.exists() {
        let folder = tempfile::tempdir_in(&suite.bases)?;
        let made = folder.path().join("layers.tar");
        std::fs::write(&made, bytes)?;
        std::fs::rename(&made, &path)?;
    }
    Ok(path)
}

/// Sectors read from all disks.
fn sectors(vm: &Vm, name: &str) -> Result<u64, Failure> {
    let text = vm.read(name, "cat /sys/block/sd*/stat | awk '{n += $3} END {print n}'")?;
    text.parse().map_err(|_| Failure::Harness(format!("{text:?} is no number of sectors")))
}

/// KiB of page cache, as free(1) counts them.
fn cached(vm: &Vm, name: &str) -> Result<u64, Failure> {
    let text =
        vm.read(name, "awk '/^(Buffers|Cached|SReclaimable):/ {n += $2} END {print n}' /proc/meminfo")?;
    text.parse().map_err(|_| Failure::Harness(format!("{text:?} is no number of KiB")))
}

/// What one distribution has read, the other has: no disk is asked, and no page is held twice. Copies show that this can be
/// seen: there both happens.
#[rstest]
fn a_second_reader_reads_nothing(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let archive = archive(suite)?;
        let flat = |name| Wanted::new(name, &archive).flat();
        let vm = boot(suite, kernel)
            .memory("768M")
            .wants(flat("copy1"))
            .wants(flat("copy2"))
            .distro("one", &archive)
            .distro("two", &archive)
            .start()?;
        let large = (LARGE as u64) << 20;
        // What the import left in the page cache is not what is asked for here.
        vm.read("one", "md5sum /bin/busybox >/dev/null; ls -R / >/dev/null 2>&1; true")?;
        let read = |name: &str| -> Result<(u64, u64), Failure> {
            let before = (sectors(&vm, "one")?, cached(&vm, "one")?);
            vm.read(name, "cat /large > /dev/null")?;
            let after = (sectors(&vm, "one")?, cached(&vm, "one")?);
            Ok(((after.0 - before.0) * 512, after.1.saturating_sub(before.1) * 1024))
        };
        let first = read("one")?;
        assert!(first.0 >= large, "the first reader read {} bytes from disk", first.0);
        assert!(first.1 >= large * 9 / 10, "the first reader filled {} bytes of cache", first.1);
        let second = read("two")?;
        assert!(second.0 <= 64 << 10, "the second reader read {} bytes from disk", second.0);
        assert!(second.1 <= 1 << 20, "the second reader filled {} bytes of cache", second.1);
        for copy in ["copy1", "copy2"] {
            let control = read(copy)?;
            assert!(control.0 >= large, "{copy} read {} bytes of its own copy from disk", control.0);
            assert!(control.1 >= large * 9 / 10, "{copy} filled {} bytes of cache", control.1);
        }
        vm.power_off()
    })
}

#[rstest]
fn what_one_changes_the_other_does_not_see(
    #[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel,
) -> Outcome {
    guest_test(|suite| {
        let archive = archive(suite)?;
        let mut vm = boot(suite, kernel).distro("a", &archive).distro("b", &archive).start()?;
        let look = "cd /data; stat -c '%n %a %u:%g %h' . one two folder fifo; cat one two; ls . folder; cat folder/old gone";
        let before = vm.read("b", look)?;
        assert!(before.starts_with(". 750 7:8"), "{before}");
        assert!(before.contains("one 644 0:0 2"), "{before}");

        vm.read(
            "a",
            "cd /data; echo more >> one; rm gone; rm -r folder; mkdir folder; echo new > folder/new; \
             mv /home/user /home/renamed; chmod 600 marked; mkdir /opt; touch /opt/x",
        )?;
        let changed = "cd /data; cat two; stat -c %h one; ls folder; test ! -e gone; test -d /home/renamed; test ! -e /home/user; stat -c %a marked";
        let expected = "one\nmore\n2\nnew\n600";
        assert_eq!(vm.read("a", changed)?, expected);
        assert_eq!(vm.read("b", look)?, before);

        // Whiteouts, opaque directories and renames are on the disk.
        vm.terminate("a")?;
        vm.launch("a")?;
        assert_eq!(vm.read("a", changed)?, expected);

        // One device number, and inode numbers that a copy does not change.
        assert_eq!(vm.read("b", "stat -c %d / /data /data/one /bin/busybox /etc | sort -u | wc -l")?, "1");
        let inode = vm.read("b", "stat -c %i /etc/group")?;
        vm.read("b", "echo extra2:x:2001: >> /etc/group")?;
        assert_eq!(vm.read("b", "stat -c %i /etc/group")?, inode);
        vm.power_off()
    })
}

/// Modes and content come through the layers. (Capabilities: harness/tests/import.rs, without layers.)
#[test]
fn attributes_come_through() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).memory("768M").distro("deb", &suite.debian).start()?;
        assert_eq!(vm.read("deb", "stat -c '%A %U' /usr/bin/su")?, "-rwsr-xr-x root");
        vm.read("deb", "dpkg --verify libc6 base-files")?;
        vm.power_off()
    })
}

/// Directories that cannot live on overlayfs are the disk's own, and stay.
#[test]
fn bound_directories_are_no_overlay() -> Outcome {
    guest_test(|suite| {
        let wanted = Wanted::new("a", &suite.busybox).bound(&["/var/lib/docker"]);
        let mut vm = boot(suite, Kernel::Tuned).wants(wanted).start()?;
        // OVERLAYFS_SUPER_MAGIC and EXT4_SUPER_MAGIC, linux/magic.h.
        assert_eq!(vm.read("a", "stat -f -c %t /; stat -f -c %t /var/lib/docker")?, "794c7630\nef53");
        vm.read("a", "echo kept > /var/lib/docker/f; chown 5:6 /var/lib/docker/f")?;
        vm.terminate("a")?;
        vm.launch("a")?;
        assert_eq!(vm.read("a", "cat /var/lib/docker/f; stat -c %u:%g /var/lib/docker/f")?, "kept\n5:6");
        vm.power_off()
    })
}
