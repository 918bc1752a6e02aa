//! A distribution is a container: what it has of its own, what it shares, and that its end is its own.

use rstest::rstest;
use undercroft::{Error, LaunchOptions, NewDisk, Root, disk::DEFAULT_SIZE};
use undercroft_harness::{
    outcome::{Outcome, until},
    vm::{Kernel, boot, guest_test},
};

#[rstest]
fn its_own_and_the_vms(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).distro("a", &suite.busybox).distro("b", &suite.busybox).start()?;
        let both = |script: &str| {
            Ok::<_, undercroft_harness::outcome::Failure>((vm.read("a", script)?, vm.read("b", script)?))
        };

        for own in ["mnt", "pid", "uts", "ipc", "cgroup"] {
            let (a, b) = both(&format!("readlink /proc/self/ns/{own}"))?;
            assert_ne!(a, b, "each has a {own} namespace of its own");
        }
        for shared in [
            "readlink /proc/self/ns/net",
            "uname -srv",
            "cat /proc/sys/kernel/random/boot_id",
            "grep MemTotal /proc/meminfo",
            "stat -L -c %d:%i /proc/1/exe",
            "nproc",
        ] {
            let (a, b) = both(shared)?;
            assert_eq!(a, b, "{shared}");
        }
        assert_eq!(both("hostname")?, ("a".into(), "b".into()));
        assert_eq!(both("cat /proc/1/comm")?, ("init".into(), "init".into()));
        assert_eq!(
            vm.read("a", "cat /proc/self/cgroup")?.lines().next().map(|l| l.starts_with("0::/")),
            Some(true)
        );

        // Nothing of the other distribution, no kernel thread: init, the session's relay, the shell and ps.
        let processes = vm.read("a", "ps -o comm | tail -n +2")?;
        assert!(processes.lines().count() <= 5, "{processes}");
        assert!(!processes.contains("kthread"), "{processes}");

        for (path, kind) in [
            ("/dev/null", "c"),
            ("/dev/ptmx", "c"),
            ("/dev/fd", "L"),
            ("/dev/pts", "d"),
            ("/dev/shm", "d"),
            ("/proc/self", "d"),
            ("/sys/class", "d"),
            ("/sys/fs/cgroup/cgroup.procs", "f"),
            ("/run", "d"),
        ] {
            vm.read("a", &format!("test -{kind} {path} || {{ echo {path} is no {kind}; exit 1; }}"))?;
        }
        assert_eq!(
            vm.read("a", "stat -c %a /tmp; stat -c %a /run; stat -c %a /dev/shm; stat -L -c %a /dev/ptmx")?,
            "1777\n755\n1777\n666"
        );
        assert_eq!(vm.read("a", "grep -cw \"$(hostname)\" /etc/hosts")?, "1");
        vm.read("a", "echo x > /dev/shm/x && echo y > /run/y && echo z > /tmp/z")?;
        assert_eq!(vm.read("b", "ls /dev/shm /run/y /tmp 2>/dev/null | grep -c '^[xyz]$' || true")?, "0");
        vm.power_off()
    })
}

#[test]
fn its_death_is_its_own() -> Outcome {
    guest_test(|suite| {
        let mut vm =
            boot(suite, Kernel::Tuned).distro("a", &suite.busybox).distro("b", &suite.busybox).start()?;
        // No process in a distribution can kill its PID 1; the VM's kernel can, by memory or by hand. Here: by the init's
        // own orderly end, asked for from inside.
        vm.read("a", "sleep 7777 & kill -TERM 1; true")
            .or_else(|_| Ok::<_, undercroft_harness::outcome::Failure>(String::new()))?;
        until("its end was not reported", || Ok(vm.distribution("a")?.ended().is_some()))?;
        assert!(matches!(vm.machine().ping(), Ok(())), "the machine went with it");
        assert_eq!(vm.read("b", "echo unharmed")?, "unharmed");
        vm.launch("a")?;
        assert_eq!(vm.read("a", "echo back")?, "back");
        vm.power_off()
    })
}

#[rstest]
fn its_files_stay(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, kernel).distro("a", &suite.busybox).start()?;
        vm.read(
            "a",
            "echo kept > /root/file; touch -d '2001-02-03 04:05:06' /root/file; ln /root/file /root/second",
        )?;
        vm.terminate("a")?;
        vm.launch("a")?;
        assert_eq!(vm.read("a", "cat /root/second; stat -c '%Y %h' /root/file")?, "kept\n981173106 2");
        // Terminating what is busy is orderly too.
        vm.read("a", "nohup sleep 9999 >/dev/null 2>&1 &")?;
        vm.terminate("a")?;
        vm.power_off()
    })
}

#[test]
fn a_root_without_an_init_to_run_is_told() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).start()?;
        let empty = vm.check(NewDisk::create(&vm.scratch().join("empty.raw"), DEFAULT_SIZE))?;
        let disk = vm.check(vm.machine().attach_disk(empty.file(), false))?;
        match vm.machine().launch(&LaunchOptions::new("empty", Root::Flat { disk })) {
            Err(Error::Refused { message, .. }) => assert!(message.contains("/etc"), "{message}"),
            other => panic!("an empty disk was launched: {other:?}"),
        }
        vm.import("a", &suite.busybox)?;
        vm.launch("a")?;
        vm.power_off()
    })
}
