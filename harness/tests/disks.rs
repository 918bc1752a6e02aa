//! Disks come and go while the VM runs; what is written is kept, what is read-only stays so, what is freed goes back.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

use rstest::rstest;
use undercroft::{LaunchOptions, NewDisk, Root, disk::DEFAULT_SIZE};
use undercroft_harness::{
    outcome::{Outcome, until},
    vm::{Kernel, Wanted, boot, guest_test},
};
use undercroft_vmm::config::DiskConfig;

#[rstest]
fn sixty_four_at_once(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).distro("a", &suite.busybox).start()?;
        let path = vm.scratch().join("small.raw");
        let mut attached = Vec::new();
        for number in 0..64u8 {
            let path = path.with_file_name(format!("small-{number}.raw"));
            // Each says who it is in its first bytes.
            let mut content = vec![number; 512];
            content.resize(1 << 20, 0);
            fs::write(&path, content)?;
            let file = File::options().read(true).write(true).open(&path)?;
            attached.push(vm.check(vm.machine().attach_disk(&file, false))?);
        }
        let count = "ls -d /sys/block/sd* | wc -l";
        let before: usize = vm.read("a", count)?.parse().expect("a number");
        assert!(before >= 65, "{before} disks are there");
        // The first 64 that are a MiB large, by their first byte: all different, none missing.
        let sizes = "for d in /sys/block/sd*; do [ $(cat $d/size) = 2048 ] && echo ${d##*/}; done | wc -l";
        assert_eq!(vm.read("a", sizes)?, "64");
        for disk in attached {
            vm.check(vm.machine().detach_disk(disk))?;
        }
        let after: usize = vm.read("a", count)?.parse().expect("a number");
        assert_eq!(after, before - 64);
        // Their places can be taken again.
        let file = File::options().read(true).write(true).open(path.with_file_name("small-0.raw"))?;
        let again = vm.check(vm.machine().attach_disk(&file, false))?;
        vm.check(vm.machine().detach_disk(again))?;
        vm.power_off()
    })
}

/// The guest is root and may try what it likes: the VMM refuses, and the file is as it was.
#[test]
fn read_only_is_enforced_outside_the_guest() -> Outcome {
    guest_test(|suite| {
        let host = tempfile::tempdir()?;
        let (blk, scsi) = (host.path().join("blk.raw"), host.path().join("scsi.raw"));
        for path in [&blk, &scsi] {
            fs::write(path, vec![0x5a; 1 << 20])?;
        }
        let vm = boot(suite, Kernel::Tuned)
            .with({
                let disk = DiskConfig { path: blk.clone(), read_only: true, serial: "rom".into() };
                |config| config.disks.push(disk)
            })
            .wants(Wanted::new("a", &suite.busybox).shared_users())
            .start()?;
        let address = vm.check(vm.machine().attach_disk(&File::open(&scsi)?, true))?;
        let scsi_name = "for d in /sys/block/sd*; do [ $(cat $d/size) = 2048 ] && echo ${d##*/}; done";
        let scsi_name = vm.read("a", scsi_name)?;
        for (name, file) in [("vda", &blk), (scsi_name.as_str(), &scsi)] {
            // A distribution's /dev has no raw disks; its root can make a node only where it is the VM's root.
            let device = format!("/dev/raw-{name}");
            let node = format!("mknod {device} b $(tr : ' ' < /sys/block/{name}/dev)");
            vm.read("a", &node)?;
            assert_eq!(vm.read("a", &format!("head -c 4 {device}"))?, "ZZZZ");
            // Even with the kernel's own flag taken away.
            let script = format!(
                "blockdev --setrw {device}; dd if=/dev/zero of={device} bs=4096 count=1 conv=fsync,notrunc 2>&1"
            );
            assert_ne!(vm.sh("a", &script)?.status.shell(), 0, "{device} took a write");
            assert!(fs::read(file)?.iter().all(|b| *b == 0x5a), "{} was written to", file.display());
        }
        vm.check(vm.machine().detach_disk(address))?;
        vm.power_off()
    })
}

#[test]
fn what_a_distribution_deletes_goes_back_to_the_host() -> Outcome {
    const MIB: u64 = 1 << 20;
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let held =
            || Ok::<_, std::io::Error>(fs::metadata(vm.disk("a").expect("it is there"))?.blocks() * 512);
        let before = held()?;
        vm.read("a", "dd if=/dev/urandom of=/root/large bs=1M count=48 conv=fsync 2>/dev/null")?;
        let full = held()?;
        assert!(full >= before + 48 * MIB, "{before} → {full}");
        // The journal's commit frees its blocks, and tells the disk of them a while later.
        vm.read("a", "rm /root/large")?;
        let mut after = full;
        let freed = until("the disk keeps what was deleted", || {
            vm.read("a", "sync; fstrim / || true; sync")?;
            after = held()?;
            Ok(after < before + 16 * MIB)
        });
        eprintln!("{before} → {full} → {after} bytes");
        freed?;
        vm.power_off()
    })
}

/// What was fsynced is there after the machine was killed.
#[test]
fn fsync_survives_a_kill() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).wants(Wanted::new("a", &suite.busybox).flat()).start()?;
        let disk = vm.disk("a")?.to_path_buf();
        let copy = tempfile::tempdir()?;
        let kept = copy.path().join("kept.raw");
        vm.read("a", "echo precious > /root/f; sync /root/f; sync")?;
        vm.kill()?;
        duct::cmd!("cp", "--sparse=always", &disk, &kept).run()?;
        drop(vm);

        let vm = boot(suite, Kernel::Tuned).start()?;
        let file = File::options().read(true).write(true).open(&kept)?;
        let address = vm.check(vm.machine().attach_disk(&file, false))?;
        let launched =
            vm.check(vm.machine().launch(&LaunchOptions::new("a", Root::Flat { disk: address })))?;
        let session =
            vm.check(launched.exec(&undercroft::Program::new(["cat", "/root/f"]), undercroft::Pipes::ALL))?;
        assert_eq!(vm.check(session.output(""))?.stdout, b"precious\n");
        vm.power_off()
    })
}

#[test]
fn a_disk_has_one_writer() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).start()?;
        let disk = vm.check(NewDisk::create(&vm.scratch().join("d.raw"), DEFAULT_SIZE))?;
        let path = vm.scratch().join("d.raw");
        vm.check(vm.machine().attach_disk(disk.file(), false))?;
        vm.check(disk.keep())?;
        let second = File::options().read(true).write(true).open(&path)?;
        let refused = vm.machine().attach_disk(&second, false).expect_err("it has a writer");
        assert!(refused.to_string().contains("in use"), "{refused}");
        vm.power_off()
    })
}
