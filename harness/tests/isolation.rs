//! What one distribution must not do to another, or to the VM: tried, and what is left of the others afterwards.

use rstest::rstest;
use undercroft::Limits;
use undercroft_harness::{
    outcome::{Failure, Outcome, until},
    vm::{Kernel, Vm, Wanted, boot, guest_test},
};

/// Runs a script that must fail, and gives what it said.
fn refused(vm: &Vm, name: &str, script: &str) -> Result<String, Failure> {
    let output = vm.sh(name, script)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.shell() == 0 {
        return Err(Failure::Failed(format!("{name} was allowed to: {script}\n{said}")));
    }
    Ok(said)
}

fn unharmed(vm: &Vm, name: &str) -> Outcome {
    assert_eq!(vm.read(name, "echo unharmed; test -d /proc/$(cat /run/victim)")?, "unharmed");
    Ok(())
}

#[rstest]
fn root_in_one_is_nobody_elsewhere(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).distro("a", &suite.busybox).distro("b", &suite.busybox).start()?;
        vm.read("b", "sleep 7777 & echo $! > /run/victim")?;

        // Processes: none of another's can be named, and everything that can be named may be signalled.
        vm.read("a", "kill -9 -1; true").or_else(|_| Ok::<_, Failure>(String::new()))?;
        assert_eq!(vm.read("a", "grep -l 777[7] /proc/[0-9]*/cmdline 2>/dev/null | wc -l")?, "0");
        unharmed(&vm, "b")?;

        // Disks, memory and the kernel: neither their nodes nor the making of them.
        assert_eq!(vm.read("a", "ls /dev | grep -cE '^(sd|vd|nvme|loop|mem|kmem|port|kmsg)' || true")?, "0");
        for (name, kind, major, minor) in
            [("disk", 'b', 8, 0), ("mem", 'c', 1, 1), ("port", 'c', 1, 4), ("kmsg", 'c', 1, 11)]
        {
            refused(&vm, "a", &format!("mknod /dev/{name} {kind} {major} {minor}"))?;
            refused(&vm, "a", &format!("mknod /tmp/{name} {kind} {major} {minor}"))?;
        }
        refused(&vm, "a", "mount -t ext4 /dev/sda /mnt")?;
        refused(&vm, "a", "dd if=/proc/kcore of=/dev/null bs=64 count=1")?;
        refused(&vm, "a", "dmesg")?;
        refused(&vm, "a", "head -c 0 > /tmp/m.ko; insmod /tmp/m.ko")?;
        for (path, value) in [
            ("/proc/sysrq-trigger", "c"),
            ("/proc/sys/kernel/panic", "1"),
            ("/proc/sys/kernel/modprobe", "/tmp/evil"),
            ("/proc/sys/kernel/core_pattern", "|/tmp/evil"),
            ("/proc/sys/vm/drop_caches", "3"),
            ("/proc/sys/net/ipv4/ip_forward", "1"),
            ("/sys/power/state", "mem"),
            ("/sys/kernel/mm/ksm/run", "1"),
            ("/sys/class/scsi_host/host0/scan", "0 0 9"),
        ] {
            refused(&vm, "a", &format!("echo '{value}' > {path}"))?;
        }
        refused(&vm, "a", "ip link set lo down")?;
        // Some dates tell of a failure only in words.
        refused(&vm, "a", "date -s '2001-02-03 04:05:06'; date | grep 2001")?;
        // The one /init: not by its owner, who is not here, and not by another mount of it.
        refused(&vm, "a", "echo x > /init")?;
        refused(&vm, "a", "mount -o remount,rw,bind /init && echo x > /init")?;

        // Its cgroup: what is below it is its own; its limits, and what is above, are not.
        vm.read("a", "mkdir /sys/fs/cgroup/own; sleep 9 & echo $! > /sys/fs/cgroup/own/cgroup.procs")?;
        refused(&vm, "a", "echo 1 > /sys/fs/cgroup/memory.max")?;
        refused(&vm, "a", "echo 1 > /sys/fs/cgroup/cgroup.freeze")?;
        assert_eq!(vm.read("a", "cut -d: -f3 /proc/1/cgroup")?, "/");

        // What it can do, stays with it: mounts, a host name, the end of its own init.
        vm.read("a", "mount -t tmpfs none /mnt && touch /mnt/mine && hostname other")?;
        assert_eq!(vm.read("b", "hostname; ls /mnt/mine 2>/dev/null; true")?, "b");
        // Any port is a server's: the network is all's.
        vm.read("a", "nc -l -p 80 >/dev/null 2>&1 & sleep 1; kill $!")?;
        unharmed(&vm, "b")?;
        vm.power_off()
    })
}

#[test]
fn owners_are_its_own_and_the_shared_memory_knows_them() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned)
            .distro("a", &suite.busybox)
            .distro("b", &suite.busybox)
            .wants(Wanted::new("vm", &suite.busybox).shared_users())
            .start()?;
        let range = |name: &str| vm.read(name, "awk '{print $1, $3}' /proc/self/uid_map");
        assert_eq!(range("a")?, "0 1048576");
        assert_eq!(range("a")?, range("b")?);
        assert_ne!(vm.read("a", "cat /proc/self/uid_map")?, vm.read("b", "cat /proc/self/uid_map")?);
        assert_eq!(range("vm")?, "0 4294967295");

        // Files and devices have owners that make sense inside.
        assert_eq!(
            vm.read("a", "stat -c %u:%g / /etc/passwd /home/user /dev/null /dev")?,
            "0:0\n0:0\n1000:1000\n0:0\n0:0"
        );
        vm.read("a", "chown 1234:5678 /root/x 2>/dev/null || { touch /root/x; chown 1234:5678 /root/x; }")?;
        assert_eq!(vm.read("a", "stat -c %u:%g /root/x")?, "1234:5678");

        // What lies in the shared memory belongs to who made it.
        vm.read("a", "cd /mnt/undercroft; echo secret > private; chmod 600 private; echo hello > public; chmod 644 public")?;
        assert_eq!(vm.read("b", "cd /mnt/undercroft; cat public; stat -c %u public")?, "hello\n65534");
        refused(&vm, "b", "cat /mnt/undercroft/private")?;
        refused(&vm, "b", "rm -f /mnt/undercroft/public && test ! -e /mnt/undercroft/public")?;
        refused(&vm, "b", "echo changed > /mnt/undercroft/public")?;
        assert_eq!(vm.read("vm", "cat /mnt/undercroft/private")?, "secret");

        // Without bounds: its root is the VM's, and says so by what it can do.
        vm.read("vm", "mknod /tmp/null c 1 3 && echo x > /tmp/null && dmesg | head -1 | grep -q .")?;
        assert_eq!(vm.read("vm", "readlink /proc/self/ns/user")?, vm.read("vm", "readlink /proc/1/ns/user")?);
        vm.power_off()
    })
}

/// Who takes all that there is takes it from itself.
#[rstest]
fn who_takes_too_much_dies_alone(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let limits =
            Limits { memory: Some(64 << 20), pids: Some(64), cpu_milli: Some(900), ..Limits::default() };
        let hog = Wanted::new("hog", &suite.busybox).limits(limits).disk(96 << 20);
        let vm = boot(suite, kernel).wants(hog).distro("b", &suite.busybox).start()?;
        vm.read("b", "sleep 7777 & echo $! > /run/victim")?;
        assert_eq!(
            vm.read("hog", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max")?,
            "67108864\n64\n90000 100000"
        );
        // Memory: tail keeps all that it reads until it has seen the end.
        refused(&vm, "hog", "tail -c 200000000 /dev/zero")?;
        assert_ne!(vm.read("hog", "grep -w oom_kill /sys/fs/cgroup/memory.events")?, "oom_kill 0");
        unharmed(&vm, "b")?;
        // Processes: the shell cannot fork any more, and says so. What it has started is over soon.
        refused(&vm, "hog", "for i in $(seq 100); do sleep 4 >/dev/null 2>&1 & done")?;
        unharmed(&vm, "b")?;
        until("what it has started is not over", || {
            Ok(vm
                .sh("hog", "test $(cat /sys/fs/cgroup/pids.current) -lt 16")
                .is_ok_and(|output| output.status.shell() == 0))
        })?;
        // Disk: its own is full, the others' are not.
        refused(&vm, "hog", "dd if=/dev/zero of=/fill bs=1M count=100")?;
        vm.read("b", "dd if=/dev/zero of=/fill bs=1M count=100 2>/dev/null && rm /fill")?;
        vm.read("hog", "rm /fill")?;
        // Inodes.
        refused(&vm, "hog", "mkdir -p /many && cd /many && seq 7000 | xargs touch")?;
        vm.read("b", "touch /one")?;
        vm.read("hog", "rm -r /many; echo alive")?;
        unharmed(&vm, "b")?;
        vm.power_off()
    })
}

/// reboot(2) ends the distribution, and nobody else.
#[test]
fn a_reboot_is_its_own_end() -> Outcome {
    guest_test(|suite| {
        let mut vm =
            boot(suite, Kernel::Tuned).distro("a", &suite.busybox).distro("b", &suite.busybox).start()?;
        vm.read("b", "sleep 7777 & echo $! > /run/victim")?;
        let _ = vm.sh("a", "echo kept > /root/kept; sync; reboot -f; sleep 60");
        until("its end was not reported", || Ok(vm.distribution("a")?.ended().is_some()))?;
        unharmed(&vm, "b")?;
        vm.launch("a")?;
        assert_eq!(vm.read("a", "cat /root/kept")?, "kept");
        vm.power_off()
    })
}

/// Containers within: namespaces of its own, with a proc of their own, as a user who is not root.
#[rstest]
fn a_user_can_make_containers(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).memory("768M").distro("deb", &suite.debian).start()?;
        let inner = "unshare --user --map-root-user --pid --fork --mount-proc --uts --ipc --net --cgroup \
                     sh -c 'mount -t tmpfs none /mnt && hostname inner && echo $$ $(id -u) $(hostname)'";
        assert_eq!(vm.read("deb", inner)?, "1 0 inner");
        let as_user = format!("su -s /bin/sh nobody -c \"{}\"", inner.replace('$', "\\$"));
        assert_eq!(vm.read("deb", &as_user)?, "1 0 inner");
        // An overlay in the distribution, on what is no overlay: /run is a tmpfs, as bound directories are ext4.
        vm.read(
            "deb",
            "mkdir -p /run/o/l /run/o/u /run/o/w /run/o/m; echo l > /run/o/l/f; \
             mount -t overlay -o lowerdir=/run/o/l,upperdir=/run/o/u,workdir=/run/o/w,userxattr none /run/o/m; \
             echo u >> /run/o/m/f; test $(wc -l < /run/o/u/f) = 2",
        )?;
        vm.power_off()
    })
}
