//! A kernel boots under the VMM, mini-init says hello, and however a machine ends, it is told which end it was.

use rstest::rstest;
use undercroft::error::{Cause, Error};
use undercroft_harness::{
    outcome::Outcome,
    vm::{Kernel, Wanted, boot, guest_test},
};
use undercroft_vmm::config::Description;

#[rstest]
fn hello_then_power_off(
    #[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel,
    #[values(1, 2)] cpus: u8,
) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).cpus(cpus).memory("512M").start()?;
        let hello = vm.machine().hello();
        assert_eq!(hello.cpus, 1, "the others are started after the hello");
        let expected = if kernel == Kernel::Stock { &suite.stock } else { &suite.tuned };
        assert_eq!(hello.kernel, expected.release);
        let mib = hello.memory >> 20;
        assert!((400..=512).contains(&mib), "the guest sees {mib} MiB of 512");
        assert_eq!(hello.warnings, [""; 0]);
        vm.check(vm.machine().ping())?;
        vm.power_off()
    })
}

/// What each description of the machine is for: all three with the kernel that understands them.
#[rstest]
#[case::device_tree(Description::DeviceTree, 1)]
#[case::device_tree_smp(Description::DeviceTree, 2)]
#[case::command_line(Description::CommandLine, 1)]
#[case::command_line_smp(Description::CommandLine, 2)]
fn the_tuned_kernel_understands(#[case] description: Description, #[case] cpus: u8) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned)
            .cpus(cpus)
            .described_by(description)
            .distro("a", &suite.busybox)
            .start()?;
        assert_eq!(vm.read("a", "nproc")?, cpus.to_string());
        vm.power_off()
    })
}

#[test]
fn the_stock_kernel_understands_acpi() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Stock).cpus(2).described_by(Description::Acpi).start()?;
        vm.power_off()
    })
}

/// RAM above the devices' hole and four CPUs, for a kernel that finds all of it at boot.
#[test]
fn four_cpus_and_four_gibibytes_at_once() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned)
            .cpus(4)
            .with(|config| {
                config.memory_mib = 4096;
                config.command_line =
                    config.command_line.replace("maxcpus=1 noreplace-smp", "swiotlb=noforce");
            })
            .distro("a", &suite.busybox)
            .start()?;
        assert_eq!(vm.machine().hello().cpus, 4);
        assert_eq!(vm.read("a", "nproc")?, "4");
        let mib = vm.machine().hello().memory >> 20;
        assert!((3900..=4096).contains(&mib), "the guest sees {mib} MiB of 4096");
        vm.power_off()
    })
}

/// `sysrq` is how a root of the VM makes its kernel end in each of these ways.
#[rstest]
#[case::panic("c", "panic")]
#[case::reset("b", "reset")]
fn ends_are_told_apart(
    #[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel,
    #[case] sysrq: &str,
    #[case] end: &str,
) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel)
            .wants(Wanted::new("a", &suite.busybox).shared_users())
            .expecting("sysrq triggered crash")
            .expecting("Oops")
            .expecting("BUG: kernel NULL pointer")
            .expecting("BUG: unable to handle")
            .expecting("Kernel panic - not syncing")
            .start()?;
        // The command's own end is lost with the machine.
        let _ = vm.sh(
            "a",
            &format!("echo 1 > /proc/sys/kernel/sysrq; echo {sysrq} > /proc/sysrq-trigger; sleep 60"),
        );
        let ending = vm.machine().wait();
        match end {
            "panic" => assert!(matches!(ending.cause, Cause::GuestPanic(_)), "{ending:?}"),
            _ => assert_eq!(ending.cause, Cause::Reset),
        }
        assert!(matches!(vm.machine().ping(), Err(Error::Ended(_))));
        Ok(())
    })
}

#[test]
fn the_machine_ends_with_its_vmm() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).start()?;
        assert_eq!(vm.kill()?.cause, Cause::Killed(9));
        Ok(())
    })
}
