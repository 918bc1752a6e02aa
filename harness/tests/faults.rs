//! What a person gets wrong: a line that says what was expected, and nothing left behind.

use std::{fs, path::Path};

use rstest::rstest;
use undercroft::Cause;
use undercroft_harness::{
    outcome::Outcome,
    suite::Suite,
    vm::{Kernel, Wanted, boot, guest_test},
};

/// Boots what stands in a file made by `make`, and gives what is said.
fn refused(
    suite: &'static Suite,
    name: &str,
    content: Option<Vec<u8>>,
) -> Result<String, undercroft_harness::outcome::Failure> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    if let Some(content) = content {
        fs::write(&path, content)?;
    }
    match boot(suite, Kernel::Tuned).with(move |config| config.kernel = path).start() {
        Ok(_) => panic!("{name} was booted"),
        Err(failure) => Ok(failure.to_string()),
    }
}

fn first(path: &Path, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut content = fs::read(path)?;
    content.truncate(bytes);
    Ok(content)
}

#[test]
fn what_is_no_kernel_is_refused() -> Outcome {
    guest_test(|suite| {
        let elf = &suite.tuned.image;
        let mut foreign = first(elf, 1 << 20)?;
        // e_machine: aarch64.
        foreign[18..20].copy_from_slice(&183u16.to_le_bytes());
        let cases = [
            ("absent", None, "No such file"),
            ("text", Some(b"this is no boot image\n".repeat(1000)), "vmlinux"),
            ("empty", Some(Vec::new()), "vmlinux"),
            ("cut", Some(first(elf, 3 << 20)?), ""),
            ("head", Some(first(elf, 70)?), ""),
            ("foreign", Some(foreign), "aarch64"),
        ];
        for (name, content, expected) in cases {
            let said = refused(suite, name, content)?;
            let line = said.lines().next().unwrap_or_default();
            assert!(line.contains(expected), "{name}: expected \"{expected}\" in: {said}");
            // Before anything runs: a guest that panicked or hung would be an error too.
            assert!(line.contains("cannot be booted"), "{name}: {said}");
        }
        Ok(())
    })
}

#[test]
fn a_triple_fault_is_one() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned)
            .with(|config| config.command_line.push_str(" reboot=t"))
            .wants(Wanted::new("a", &suite.busybox).shared_users())
            .start()?;
        let _ = vm.sh("a", "echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; sleep 60");
        assert_eq!(vm.machine().wait().cause, Cause::TripleFault);
        Ok(())
    })
}

/// Memory that the kernel cannot boot in is told before it is tried.
#[rstest]
#[case::no_cpus(|c: &mut undercroft_vmm::MachineConfig| c.cpus = 0, "cpus")]
#[case::too_many_cpus(|c: &mut undercroft_vmm::MachineConfig| c.cpus = 200, "cpus")]
#[case::no_memory(|c: &mut undercroft_vmm::MachineConfig| c.memory_mib = 1, "memory")]
fn a_machine_that_cannot_be_is_refused(
    #[case] change: fn(&mut undercroft_vmm::MachineConfig),
    #[case] expected: &str,
) -> Outcome {
    guest_test(|suite| match boot(suite, Kernel::Tuned).with(change).start() {
        Ok(_) => panic!("it was booted"),
        Err(failure) => {
            let said = failure.to_string();
            assert!(said.contains(expected), "expected \"{expected}\" in: {said}");
            Ok(())
        }
    })
}
