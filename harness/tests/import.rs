//! A root file system's archive arrives in the VM as it was packed, and nothing that a bad one holds leaves the root.

use std::{fs, io::Write, path::PathBuf};

use rstest::rstest;
use tar::EntryType;
use undercroft_harness::{
    archive::{Archive, Meta},
    outcome::Outcome,
    suite::Suite,
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};

fn saved(vm: &Vm, name: &str, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let path = vm.scratch().join(name);
    fs::write(&path, bytes)?;
    Ok(path)
}

#[rstest]
fn everything_that_a_root_holds(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, kernel).start()?;
        let long = format!("srv/{}/{}", "d".repeat(120), "f".repeat(150));
        // cap_net_raw+ep, version 2 (linux/capability.h, struct vfs_cap_data).
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // u::rwx, u:1000:rw-, g::r-x, m::rwx, o::r-x as posix_acl_xattr.h lays it out.
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in
            [(1u16, 7u16, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(bits.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        let archive = Archive::busybox("with everything")?
            .directory("srv", Meta::mode(0o2750).owner(12, 34))?
            .text("srv/plain", "plain\n")?
            .hard_link("srv/hard", "srv/plain")?
            .symlink("srv/soft", "../etc/passwd")?
            .file("srv/setuid", b"x", Meta::mode(0o4711).owner(1000, 5))?
            .file("srv/large-ids", b"x", Meta::mode(0o600).owner(3_000_000, 4_000_000))?
            .special("srv/fifo", EntryType::Fifo, (0, 0), Meta::mode(0o640))?
            .special("srv/char", EntryType::Char, (1, 3), Meta::mode(0o666))?
            .special("srv/block", EntryType::Block, (7, 200), Meta::mode(0o660).owner(0, 6))?
            .text(&long, "long\n")?
            .pax(&[
                ("mtime", b"1234567890.123456789"),
                ("SCHILY.xattr.user.note", b"a\0b"),
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.system.posix_acl_access", &acl),
            ])?
            .file("srv/attributes", b"x", Meta::mode(0o755))?
            .bytes()?;
        let path = saved(&vm, "everything.tar", &archive)?;
        // With the VM's users: whose number is past a distribution's own range is nobody in it.
        vm.prepare(&Wanted::new("a", &path).flat().shared_users())?;
        vm.launch("a")?;
        let expect = |script: &str, what: &str| -> Outcome {
            assert_eq!(vm.read("a", script)?, what, "{script}");
            Ok(())
        };
        expect("cd /srv; stat -c '%A %u %g %Y' .", "drwxr-s--- 12 34 1700000000")?;
        expect("cd /srv; cat hard; stat -c %h plain; test plain -ef hard && echo same", "plain\n2\nsame")?;
        expect("readlink /srv/soft", "../etc/passwd")?;
        expect(
            "cd /srv; stat -c '%A %u %g' setuid large-ids",
            "-rws--x--x 1000 5\n-rw------- 3000000 4000000",
        )?;
        expect("cd /srv; stat -c '%A %F' fifo", "prw-r----- fifo")?;
        expect("cd /srv; stat -c '%A %t %T' char block", "crw-rw-rw- 1 3\nbrw-rw---- 7 c8")?;
        expect(&format!("cat /{long}"), "long")?;
        expect("stat -c '%Y %y' /srv/attributes | cut -c1-40", "1234567890 2009-02-13 23:31:30.123456789")?;
        // busybox has no getfattr: the file's listing of its kind through ls and the kernel's view.
        expect("ls -l /srv/attributes | cut -c1-10", "-rwxrwxr-x")?;
        expect("stat -c '%a' /tmp", "1777")?;
        vm.power_off()
    })
}

/// Compresses, by the library that the case names.
type Compress = fn(&[u8]) -> std::io::Result<Vec<u8>>;

fn gzip(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(plain)?;
    out.finish()
}

fn xz(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
    out.write_all(plain)?;
    out.finish()
}

fn zstd(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::encode_all(plain, 1)
}

fn bzip2(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(plain)?;
    out.finish()
}

#[rstest]
#[case::gzip(gzip)]
#[case::xz(xz)]
#[case::zstd(zstd)]
#[case::bzip2(bzip2)]
fn compression_is_told_by_content(#[case] compress: Compress) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).start()?;
        let compressed = compress(&fs::read(&suite.busybox)?)?;
        // Its name says something else.
        let path = saved(&vm, "root.txt", &compressed)?;
        vm.import("a", &path)?;
        vm.launch("a")?;
        assert_eq!(vm.read("a", "echo here")?, "here");
        vm.power_off()
    })
}

fn refused(suite: &'static Suite, cases: &[(&str, Vec<u8>, &str)]) -> Outcome {
    let mut vm = boot(suite, Kernel::Tuned).start()?;
    for (name, bytes, expected) in cases {
        let path = saved(&vm, name, bytes)?;
        let disk = vm.scratch().join(format!("{name}.raw"));
        let error = match vm.try_import(&disk, &path) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{name} was imported"),
        };
        assert!(error.contains(expected), "{name}: expected \"{expected}\" in: {error}");
        assert!(!disk.exists(), "{name}: a half-made disk is left");
    }
    // After all of them, a good one.
    vm.import("good", &suite.busybox)?;
    vm.launch("good")?;
    vm.power_off()
}

#[test]
fn what_is_no_root_is_refused() -> Outcome {
    guest_test(|suite| {
        let whole = fs::read(&suite.busybox)?;
        let mut cut_gzip = gzip(&whole)?;
        cut_gzip.truncate(cut_gzip.len() / 2);
        let mut damaged = whole.clone();
        // A checksum in the middle.
        let at = 512 * 8 + 148;
        damaged[at..at + 8].copy_from_slice(b"7777777\0");
        let foreign = Archive::default()
            .directory("etc", Meta::default())?
            .directory("bin", Meta::default())?
            // An ELF header for aarch64 (e_machine 183).
            .file("bin/sh", &elf(183), Meta::default())?
            .bytes()?;
        refused(
            suite,
            &[
                ("text", b"this is not an archive\n".repeat(100), "tar"),
                ("empty", Vec::new(), "empty"),
                ("cut", whole[..whole.len() / 2].to_vec(), "cut"),
                ("cut.gz", cut_gzip, "cut"),
                ("damaged", damaged, "checksum"),
                ("noroot", Archive::default().text("readme", "hello")?.bytes()?, "/etc"),
                ("foreign", foreign, "aarch64"),
            ],
        )
    })
}

fn elf(machine: u16) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    header.resize(16, 0);
    header.extend(2u16.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.resize(64, 0);
    header
}

/// Each of these tries to write to the VM's own /etc from inside an archive. (mini-init's unit tests see what such an
/// archive does to the folder beside the root.)
#[test]
fn nothing_leaves_the_root() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).start()?;
        let evil = Archive::busybox("evil")?
            .symlink("out", "/../../..")?
            .raw("out/etc/pwned-by-symlink", EntryType::Regular, "", b"x")?
            .symlink("absolute", "/")?
            .raw("absolute/etc/pwned-by-absolute-symlink", EntryType::Regular, "", b"x")?
            .raw("swapped", EntryType::Directory, "", b"")?
            .symlink("swapped", "/etc")?
            .raw("swapped/pwned-by-swap", EntryType::Regular, "", b"x")?
            .bytes()?;
        let path = saved(&vm, "evil.tar", &evil)?;
        // Symbolic links are followed inside the root, so each of these files must be found there: one that had left it
        // would be missing.
        vm.import("evil", &path)?;
        vm.launch("evil")?;
        let found = vm.read("evil", "find / -xdev -name 'pwned*' | sort")?;
        for name in ["pwned-by-absolute-symlink", "pwned-by-swap", "pwned-by-symlink"] {
            assert!(found.lines().any(|l| l.ends_with(name)), "{name} is not in its root: {found}");
        }
        // Names that say where they want to go may be refused or taken inside; the VM goes on either way.
        for (at, name) in ["../pwned-by-dots", "/etc/../../pwned"].into_iter().enumerate() {
            let bytes = Archive::busybox("dots")?.raw(name, EntryType::Regular, "", b"x")?.bytes()?;
            let path = saved(&vm, "dots.tar", &bytes)?;
            let _ = vm.try_import(&vm.scratch().join(format!("dots-{at}.raw")), &path);
        }
        vm.check(vm.machine().ping())?;
        vm.power_off()
    })
}
