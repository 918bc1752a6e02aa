//! Memory that the guest does not use is the host's.

use rstest::rstest;
use undercroft_harness::{
    outcome::{Failure, Outcome},
    vm::{Kernel, Vm, boot, guest_test},
};

/// Resident memory of the VMM, in KiB.
fn resident(vm: &Vm) -> Result<u64, Failure> {
    let pid = vm.machine().vmm_pid().ok_or_else(|| Failure::Failed("the VMM is gone".into()))?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|l| l.strip_prefix("Rss:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().map_err(|_| Failure::Harness(format!("{line}: no number")))
}

#[rstest]
fn freed_pages_go_back(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).memory("512M").distro("a", &suite.busybox).start()?;
        let before = resident(&vm)?;
        vm.read("a", "mkdir -p /run/m; dd if=/dev/zero of=/run/m/fill bs=1M count=160 2>/dev/null")?;
        let full = resident(&vm)?;
        assert!(
            full >= before + 150 * 1024,
            "{before} → {full} KiB: the guest's memory is not where it was looked for"
        );
        vm.read("a", "rm /run/m/fill")?;
        // Free blocks of less than 2 MiB are not reported: three quarters of it must come back.
        let kept = before + (full - before) / 4;
        // Free page reporting waits two seconds of the guest's, and goes on in parts.
        let mut after = full;
        for _ in 0..60 {
            vm.read("a", "sleep 1")?;
            after = resident(&vm)?;
            if after < kept {
                break;
            }
        }
        assert!(after < kept, "{before} → {full} → {after} KiB: freed pages stay with the VMM");
        vm.power_off()
    })
}
