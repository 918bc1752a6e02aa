//! What a distribution writes into its wsl.conf holds when it starts the next time, and what is wrong there is told.

use undercroft::LaunchOptions;
use undercroft_harness::{
    outcome::Outcome,
    vm::{Kernel, boot, guest_test},
};

/// One file with what counts and what does not, a table of file systems, and zones, as a distribution would have them.
const FILES: &str = "
cat > /etc/wsl.conf <<'END'
[network]
hostname = other
generateHosts = false
[user]
default = ada
[filesystem]
umask = 0027
[boot]
command = \"echo $$ > /run/booted # and this\"
[undercroft]
keepAlive = true
[interop]
enabled = false
[wsl2]
memory = 64GB
END
echo 'tmpfs /data tmpfs size=1m,mode=1777 0 0' > /etc/fstab
echo 'nothing /nowhere nonsense defaults 0 0' >> /etc/fstab
echo kept > /etc/hosts
mkdir -p /data /nowhere /home/ada /usr/share/zoneinfo/Mars
echo TZif > /usr/share/zoneinfo/Mars/Olympus
echo 'ada:x:1001:1001::/home/ada:/bin/sh' >> /etc/passwd
";

#[test]
fn a_distributions_own_file_holds() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let a = vm.distribution("a")?;
        assert_eq!((a.wants_to_live(), a.default_user()), (false, None));
        vm.read("a", FILES)?;
        vm.terminate("a")?;
        vm.machine().warnings();
        vm.options("a", |options: &mut LaunchOptions| options.time_zone = Some("Mars/Olympus".into()))?;
        vm.launch("a")?;

        let a = vm.distribution("a")?;
        assert_eq!((a.wants_to_live(), a.default_user()), (true, Some("ada".into())));
        for (script, expected) in [
            ("hostname", "other"),
            ("id -un", "ada"),
            ("umask", "0027"),
            ("cat /etc/hosts", "kept"),
            ("awk '$2 == \"/data\" { print $3 }' /proc/mounts", "tmpfs"),
            ("touch /data/f && stat -c %a /data/f", "640"),
            ("readlink /etc/localtime", "/usr/share/zoneinfo/Mars/Olympus"),
            ("until test -e /run/booted; do sleep 1; done; test -s /run/booted && echo yes", "yes"),
        ] {
            assert_eq!(vm.read("a", script)?, expected, "{script}");
        }
        let warnings = vm.machine().warnings().join("\n");
        for expected in [
            "/etc/wsl.conf:13: interop.enabled has no meaning here",
            "/etc/wsl.conf:15: `wsl2.memory` is not known",
            "mounting what /etc/fstab lists: ",
        ] {
            assert!(warnings.contains(expected), "{expected:?} is not among\n{warnings}");
        }
        vm.power_off()
    })
}
