//! Memory that the guest does not use is the host's; and a machine grows to its size while it is used already.

use std::time::Duration;

use rstest::rstest;
use undercroft::{FolderOptions, LaunchOptions, Pipes, Program, Root, SharedFolder};
use undercroft_harness::{
    outcome::{Failure, Outcome, grace, until},
    vm::{Kernel, Vm, boot, guest_test},
};

/// Waits for the VMM's resident memory to fall below `kept` KiB: free page reporting waits two seconds of the guest's, and goes on
/// in parts.
fn shrinks(vm: &Vm, kept: u64) -> Outcome {
    let mut after = 0;
    let shrunk = until("freed pages stay with the VMM", || {
        vm.read("a", "sleep 1")?;
        after = vm.resident()?;
        Ok(after < kept)
    });
    eprintln!("{after} KiB; less than {kept} were waited for");
    shrunk
}

#[rstest]
fn freed_pages_go_back(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).memory("512M").distro("a", &suite.busybox).start()?;
        let before = vm.settled("a")?;
        vm.read("a", "mkdir -p /run/m; dd if=/dev/zero of=/run/m/fill bs=1M count=160 2>/dev/null")?;
        let full = vm.resident()?;
        assert!(
            full >= before + 150 * 1024,
            "{before} → {full} KiB: the guest's memory is not where it was looked for"
        );
        vm.read("a", "rm /run/m/fill")?;
        // Free blocks of less than 2 MiB are not reported: three quarters of it must come back.
        shrinks(&vm, before + (full - before) / 4)?;
        vm.power_off()
    })
}

/// A number that a script prints.
fn number(vm: &Vm, script: &str) -> Result<u64, Failure> {
    let text = vm.read("a", script)?;
    text.trim().parse().map_err(|_| Failure::Failed(format!("`{script}` printed {text:?}")))
}

const MEM_TOTAL: &str = "awk '/^MemTotal:/ { print $2 }' /proc/meminfo";

/// More than the machine had at boot is used, all of it comes back when it is free, and memory that is taken away is taken
/// from what the guest says it has.
/// Memory of a machine with a folder of the host's is shared, and comes and goes all the same.
#[rstest]
#[case::stock(Kernel::Stock, false)]
#[case::tuned(Kernel::Tuned, false)]
#[case::shared(Kernel::Tuned, true)]
fn a_machine_grows_and_shrinks(#[case] kernel: Kernel, #[case] shares: bool) -> Outcome {
    guest_test(|suite| {
        const MIB: u64 = 1024;
        const SIZE: u64 = 1280;
        const FILL: u64 = 640;
        let mut folders =
            FolderOptions { program: Some(suite.virtiofsd.clone()), ..FolderOptions::default() };
        if shares {
            folders.shared.push(SharedFolder {
                distribution: "a".into(),
                host: suite.logs.clone(),
                guest: "/logs".into(),
                read_only: true,
                own_users: true,
                owner: 1000,
                origin: "test".into(),
            });
        }
        let machine = boot(suite, kernel).cpus(3).memory("1280M").folders(folders);
        let vm = machine.distro("a", &suite.busybox).start()?;
        assert_eq!(vm.read("a", "test -e /logs && echo yes || echo no")?.trim() == "yes", shares);
        let hello = vm.machine().hello();
        assert_eq!(hello.cpus, 1, "it booted with all its CPUs");
        assert_eq!(number(&vm, "nproc")?, 3);
        let boot = vm.check(vm.machine().statistics())?.memory.boot >> 20;
        assert!(boot < FILL, "the test fills no more than what was there at boot");
        let total = number(&vm, MEM_TOTAL)?;
        assert_eq!(total, hello.memory / 1024 + (SIZE - boot) * MIB, "MemTotal");
        let threads = number(&vm, "cat /proc/sys/kernel/threads-max")?;
        assert_eq!(threads, total / 128, "a thread for each 128 KiB");

        let before = vm.settled("a")?;
        vm.read(
            "a",
            &format!(
                "mkdir -p /run/m; mount -t tmpfs -o size=90% m /run/m; \
            dd if=/dev/zero of=/run/m/fill bs=1M count={FILL} 2>/dev/null"
            ),
        )?;
        let full = vm.resident()?;
        assert!(full >= before + (FILL - 10) * MIB, "{before} → {full} KiB");
        vm.read("a", "rm /run/m/fill; umount /run/m")?;
        shrinks(&vm, before + (full - before) / 4)?;

        vm.check(vm.machine().set_memory(boot + 128))?;
        // What the kernel itself uses of it cannot be moved: it comes close.
        until("more than 256 MiB are still plugged, and 128 were asked for", || {
            Ok(vm.check(vm.machine().statistics())?.memory.plugged >> 20 <= 256)
        })?;
        let less = number(&vm, MEM_TOTAL)?;
        assert!(less <= hello.memory / 1024 + 256 * MIB, "MemTotal is still {less} KiB");
        vm.check(vm.machine().wait_grown(Duration::ZERO))?;
        vm.power_off()
    })
}

/// MiB of files in the host's page cache, without shared memory. Of the whole host, and not of the disk's file by mincore(2): the
/// lab's files come by virtiofs, which forgets a file's pages whenever somebody opens it.
fn cached() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| {
        let value =
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
        value.ok_or_else(|| Failure::Harness(format!("/proc/meminfo has no {name}")))
    };
    let (all, shared): (u64, u64) = (of("Cached:")?, of("Shmem:")?);
    Ok(all.saturating_sub(shared) / 1024)
}

/// What a distribution writes, and reads again when its own cache is gone, is not in the host's page cache too; unless that is
/// wanted, which shows that this test looks at the right thing.
#[rstest]
#[case::past_the_page_cache(false)]
#[case::through_the_page_cache(true)]
fn the_hosts_page_cache_holds_no_second_copy(#[case] page_cache: bool) -> Outcome {
    guest_test(|suite| {
        const MIB: u64 = 32;
        let vm = boot(suite, Kernel::Tuned).with(move |c| c.page_cache = page_cache).start()?;
        // Not in a temporary folder, which may be a tmpfs: that is a page cache.
        let folder = tempfile::Builder::new().prefix("page-cache-").tempdir_in(&suite.logs)?;
        let path = folder.path().join("disk.raw");
        let disk = vm.try_import(&path, &suite.busybox);
        let disk = vm.check(disk)?;
        let before = cached()?;
        for script in
            [format!("dd if=/dev/urandom of=/f bs=1M count={MIB} conv=fsync"), "cat /f > /dev/null".into()]
        {
            let root = Root::Flat { disk: disk.clone() };
            let launched = vm.machine().launch(&LaunchOptions::new("a", root));
            let a = vm.check(launched)?;
            let session = vm.check(a.exec(&Program::new(["/bin/sh", "-c", &script]), Pipes::ALL))?;
            let output = vm.check(session.output(Vec::new()))?;
            assert_eq!(output.status.shell(), 0, "{}", String::from_utf8_lossy(&output.stderr));
            // Its file system is unmounted, and the guest's cache of it gone.
            let stopped = a.terminate(grace());
            vm.check(stopped)?;
            let kept = cached()?.saturating_sub(before);
            if !page_cache {
                assert!(kept <= MIB / 4, "`{script}`: {kept} MiB more are in the host's page cache");
            } else if script.starts_with("dd") {
                // Of what is read the lab's virtiofs forgets all when the next write changes the file's time.
                assert!(
                    kept >= MIB * 3 / 4,
                    "`{script}`: only {kept} MiB more are in the page cache: this finds nothing"
                );
            }
        }
        vm.power_off()
    })
}
