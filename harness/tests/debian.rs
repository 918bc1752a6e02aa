//! A real Debian: what `cargo xtask boot` gives a person.

use rstest::rstest;
use undercroft::Program;
use undercroft_harness::{
    outcome::Outcome,
    vm::{Kernel, Wanted, boot, guest_test},
};

#[rstest]
fn a_debian_is_one(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).cpus(2).memory("768M").distro("deb", &suite.debian).start()?;
        assert!(vm.read("deb", "cat /etc/os-release")?.contains("Debian GNU/Linux 12"));
        assert_eq!(vm.read("deb", "uname -r")?, vm.machine().hello().kernel);
        // Its own tools read what the kernel gives: procps, iproute2, dpkg, perl's base.
        vm.read("deb", "dpkg --verify libc6 base-files")?;
        assert!(vm.read("deb", "ps aux")?.lines().count() <= 6);
        assert!(vm.read("deb", "ip -o link show lo")?.contains("UP"));
        vm.read("deb", "free -m && nproc && df / && id nobody && getent passwd root")?;
        // Users, set-user-ID programs and capabilities survived the import.
        assert_eq!(vm.read("deb", "stat -c '%A %U' /usr/bin/su")?, "-rwsr-xr-x root");
        let user = vm.run("deb", &Program::new(["su", "-s", "/bin/sh", "-c", "id -un", "nobody"]))?;
        assert_eq!(String::from_utf8_lossy(&user.stdout), "nobody\n");
        // Namespaces within, as container engines make them.
        assert_eq!(
            vm.read("deb", "unshare --fork --pid --mount-proc --net --ipc --uts sh -c 'echo $$'")?,
            "1"
        );
        vm.power_off()
    })
}

/// What distributions ask the tuned kernel for by name, and what is a module there.
#[test]
fn the_tuned_kernels_modules_come_when_they_are_needed() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned)
            .memory("768M")
            .wants(Wanted::new("deb", &suite.debian).shared_users())
            .start()?;
        vm.read("deb", "ip link add br0 type bridge && ip link add v0 type veth peer name v1 && ip link add w0 type wireguard")?;
        vm.read("deb", "ip link add x0 type vxlan id 7 dstport 4789 dev lo || ip link add x0 type vxlan id 7 dstport 4789")?;
        // A file system that is a module comes with the first mount, which fails for want of a disk.
        let mounts = "for t in erofs squashfs xfs btrfs overlay fuse virtiofs; do mount -t $t none /mnt; done 2>/dev/null; true";
        vm.read("deb", mounts)?;
        for needed in [
            "nodev\toverlay",
            "\text4",
            "\terofs",
            "nodev\tfuse",
            "nodev\tvirtiofs",
            "nodev\tcgroup2",
            "nodev\tbpf",
            "\tsquashfs",
            "\txfs",
            "\tbtrfs",
        ] {
            vm.read(
                "deb",
                &format!("grep -q '{needed}' /proc/filesystems || {{ echo no {needed}; exit 1; }}"),
            )?;
        }
        for present in [
            "/proc/pressure/memory",
            "/proc/sys/fs/binfmt_misc",
            "/sys/kernel/mm/lru_gen/enabled",
            "/dev/fuse",
            "/dev/net/tun",
        ] {
            vm.read("deb", &format!("test -e {present} || {{ echo no {present}; exit 1; }}"))?;
        }
        let controllers = vm.read("deb", "cat /sys/fs/cgroup/cgroup.controllers")?;
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            assert!(controllers.split(' ').any(|c| c == controller), "no {controller} in: {controllers}");
        }
        vm.power_off()
    })
}
