//! A machine that has nothing to do gives its caches back; one that has too much to do swaps; and its clock is the host's.

use std::{
    thread::sleep,
    time::{Duration, SystemTime},
};

use undercroft::{Limits, Reclaim, ReclaimMode, upkeep::swap_file};
use undercroft_harness::{
    outcome::{Failure, Outcome, until},
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};

const MIB: u64 = 1 << 20;

/// As in the notes, with seconds for minutes; a lab's distribution must be quick to be idle, and its test to see it.
fn soon(mode: ReclaimMode, floor: u64) -> Reclaim {
    Reclaim { mode, idle_ms: 2_000, poll_ms: 500, floor }
}

/// A number that a script prints.
fn number(vm: &Vm, distro: &str, script: &str) -> Result<u64, Failure> {
    let text = vm.read(distro, script)?;
    text.trim().parse().map_err(|_| Failure::Failed(format!("`{script}` printed {text:?}")))
}

/// Fills the page cache, and waits until nothing of it is only in memory.
fn fill(vm: &Vm, mib: u64) -> Result<u64, Failure> {
    vm.read("a", &format!("dd if=/dev/zero of=/f bs=1M count={mib} conv=fsync 2>/dev/null"))?;
    vm.resident()
}

/// Waits, without a word to the machine, which is to have nothing to do, for the VMM to fall below `kept` KiB: idle for two
/// seconds of the guest's, then free page reporting's two and its parts.
fn falls(vm: &Vm, kept: u64) -> Result<u64, Failure> {
    let mut after = 0;
    let fallen = until("the cache stays with the VMM", || {
        sleep(Duration::from_secs(1));
        after = vm.resident()?;
        Ok(after < kept)
    });
    eprintln!("{after} KiB; less than {kept} were waited for");
    fallen.map(|()| after)
}

/// The control, first: without being told the machine keeps its cache. Then both ways; the files are there afterwards.
#[test]
fn caches_of_an_idle_machine_go_back() -> Outcome {
    guest_test(|suite| {
        const FILL: u64 = 64;
        let vm = boot(suite, Kernel::Tuned).memory("512M").distro("a", &suite.busybox).start()?;
        let before = vm.settled("a")?;
        let full = fill(&vm, FILL)?;
        assert!(
            full >= before + (FILL - 8) * 1024,
            "{before} → {full} KiB: the cache is not where it was looked for"
        );
        // Free blocks of less than 2 MiB are not reported.
        let kept = before + (full - before) / 2;
        sleep(Duration::from_secs(8));
        let untold = vm.resident()?;
        assert!(untold > kept, "{before} → {full} → {untold} KiB: nobody asked for that");

        vm.check(vm.machine().reclaim(soon(ReclaimMode::DropCache, 0)))?;
        let dropped = falls(&vm, kept)?;

        vm.check(vm.machine().reclaim(soon(ReclaimMode::Disabled, 0)))?;
        let full = fill(&vm, FILL)?;
        assert!(full > kept, "{dropped} → {full} KiB: the cache is not there again");
        let current = number(&vm, "a", "cat /sys/fs/cgroup/memory.current")?;
        assert!(current > FILL * MIB, "{current} bytes: the cache is not the distribution's");
        vm.check(vm.machine().reclaim(soon(ReclaimMode::Gradual, 16 * MIB)))?;
        falls(&vm, kept)?;
        assert_eq!(number(&vm, "a", "wc -c < /f")?, FILL * MIB);
        vm.power_off()
    })
}

/// KiB of swap that a distribution's own `free` says there are, and that are used.
fn swap(vm: &Vm, distro: &str) -> Result<(u64, u64), Failure> {
    let total = number(vm, distro, "free | awk '/^Swap:/ { print $2 }'")?;
    Ok((total, number(vm, distro, "free | awk '/^Swap:/ { print $3 }'")?))
}

/// More memory than a distribution has goes to the swap disk, comes back unchanged, and leaves the host's file when it is free;
/// all distributions see the same swap. Compressed memory is used before the disk.
#[test]
fn a_hog_swaps_and_all_see_it() -> Outcome {
    guest_test(|suite| {
        const SIZE: u64 = 96 * MIB;
        let limits = Limits { memory: Some(48 * MIB), ..Limits::default() };
        let vm = boot(suite, Kernel::Tuned)
            .wants(Wanted::new("a", &suite.busybox).limits(limits))
            .distro("b", &suite.busybox)
            .start()?;
        assert_eq!(swap(&vm, "b")?, (0, 0));
        let path = vm.scratch().join("swap");
        let file = vm.check(swap_file(&path, SIZE))?;
        vm.check(vm.machine().swap_on(&file))?;
        let (total, used) = swap(&vm, "b")?;
        // The first page is the header.
        assert_eq!((total, used), (SIZE / 1024 - 4, 0));

        let hog = "mkdir -p /run/m && mount -t tmpfs -o size=80m m /run/m && \
                   dd if=/dev/urandom of=/run/m/f bs=1M count=72 2>/dev/null && md5sum < /run/m/f > /run/sum";
        vm.read("a", hog)?;
        let (in_a, in_b) = (swap(&vm, "a")?, swap(&vm, "b")?);
        assert_eq!(in_a.0, in_b.0, "one swap for all");
        assert!(in_a.1.abs_diff(in_b.1) < 4096 && in_b.1 > 16 * 1024, "{in_a:?} and {in_b:?} KiB");
        vm.read("a", "md5sum < /run/m/f | cmp - /run/sum")?;

        let blocks =
            || std::fs::metadata(&path).map(|about| std::os::unix::fs::MetadataExt::blocks(&about) / 2);
        assert!(blocks()? > 16 * 1024, "{} KiB are in the swap file", blocks()?);
        vm.read("a", "rm /run/m/f")?;
        assert!(swap(&vm, "b")?.1 < 4096, "what was freed is still swapped out");

        vm.check(vm.machine().zram_on(64 * MIB))?;
        assert_eq!(swap(&vm, "b")?.0, SIZE / 1024 - 4 + 64 * 1024 - 4);
        vm.read("a", "dd if=/dev/zero of=/run/m/f bs=1M count=64 2>/dev/null")?;
        let table = vm.read("b", "cat /proc/swaps")?;
        let used = |name: &str| {
            let line = table.lines().find(|line| line.contains(name)).unwrap_or_default();
            line.split_whitespace().nth(3).and_then(|n| n.parse::<u64>().ok())
        };
        assert!(used("zram").is_some_and(|kib| kib > 8 * 1024), "{table}");
        vm.power_off()
    })
}

/// A clock that is off, either way, is the host's again; one that is right is left alone.
#[test]
fn the_clock_follows_the_hosts() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let second = Duration::from_secs(1);
        let hour = 3600 * second;
        let here = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // A lab's messages take their time; the tolerance is what the host would give.
        let near = |there: u64| there.abs_diff(here()) < 60;
        for wrong in [SystemTime::now() + hour, SystemTime::now() - hour] {
            vm.check(vm.machine().set_clock(wrong, second))?;
            assert!(!near(number(&vm, "a", "date +%s")?), "the clock cannot be put wrong");
            let behind = vm.check(vm.machine().set_clock(SystemTime::now(), second))?;
            assert!(behind.unsigned_abs() > 3_000_000_000_000, "{behind} ns");
            assert!(near(number(&vm, "a", "date +%s")?));
        }
        let behind = vm.check(vm.machine().set_clock(SystemTime::now(), hour))?;
        assert!(behind.unsigned_abs() < 60_000_000_000, "{behind} ns");
        vm.power_off()
    })
}
