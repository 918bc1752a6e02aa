//! systemd as PID 1 of a distribution, and init as its companion.

use std::path::Path;

use rstest::rstest;
use undercroft::Program;
use undercroft_harness::{
    outcome::{Failure, Outcome},
    suite::Suite,
    vm::{Kernel, Vm, boot, guest_test},
};

/// With systemd, and all the time that a lab may need. A unit that says goodbye shows that stopping was in order, and a
/// journal on the disk that it was closed.
const PREPARE: &str = r"set -e
printf '[boot]\nsystemd=true\ninitTimeout=500000\n' > /etc/wsl.conf
useradd --create-home --shell /bin/bash ada
mkdir -p /var/log/journal
cat > /etc/systemd/system/farewell.service <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'sleep 1; echo goodbye > /var/farewell'
END
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /etc/systemd/system/farewell.service /etc/systemd/system/multi-user.target.wants/";

#[derive(Debug, Clone, Copy)]
enum Release {
    Debian12,
    Debian13,
}

impl Release {
    fn archive(self, suite: &Suite) -> &Path {
        match self {
            Self::Debian12 => &suite.debian,
            Self::Debian13 => &suite.debian13,
        }
    }
}

/// Imports it, prepares it under the small init, and launches it anew.
fn with_systemd(vm: &mut Vm, name: &str, archive: &Path) -> Outcome {
    vm.import(name, archive)?;
    vm.launch(name)?;
    vm.read(name, PREPARE)?;
    vm.terminate(name)?;
    vm.launch(name)
}

/// What a session prints as a user.
fn as_user(vm: &Vm, name: &str, user: &str, script: &str) -> Result<String, Failure> {
    let output = vm.run(name, &Program::new(["/bin/sh", "-c", script]).user(user))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().into())
}

/// Each release, on the tuned kernel: under a stock one the same takes the lab eight minutes.
#[rstest]
#[case(Release::Debian12)]
#[case(Release::Debian13)]
fn a_debian_with_systemd_comes_up_and_goes_down_in_order(#[case] release: Release) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).memory("768M").start()?;
        with_systemd(&mut vm, "deb", release.archive(suite))?;
        assert_eq!(vm.machine().warnings(), Vec::<String>::new());

        // Up, with nothing that failed; who is who.
        let state = vm.read(
            "deb",
            "systemctl is-system-running; systemctl --failed --no-legend; ps -o args= -p 1,2; \
             systemctl is-active undercroft-init.service; cat /run/systemd/container",
        )?;
        assert_eq!(state, "running\n/sbin/init\n/init\nactive\nundercroft");

        // A user's session, as PAM and logind make it, and the user's own systemd.
        let session = as_user(
            &vm,
            "deb",
            "ada",
            "id -un; echo $XDG_RUNTIME_DIR $DBUS_SESSION_BUS_ADDRESS; systemctl --user is-system-running; \
             loginctl show-session $XDG_SESSION_ID --property=Name --property=Class --property=State; \
             sed -n s,^0::,,p /proc/self/cgroup",
        )?;
        let lines: Vec<&str> = session.lines().collect();
        let [user, places, manager, properties @ .., cgroup] = &lines[..] else {
            return Err(Failure::Failed(format!("too few lines: {session}")));
        };
        assert_eq!((*user, *manager), ("ada", "running"), "{session}");
        assert_eq!(*places, "/run/user/1000 unix:path=/run/user/1000/bus", "{session}");
        for property in ["Name=ada", "Class=user", "State=active"] {
            assert!(properties.contains(&property), "no {property} in {session}");
        }
        assert!(cgroup.starts_with("/user.slice/user-1000.slice/session-"), "{session}");

        // Down: what is stopped can do its last work, and the journal is closed. Without systemd it can be looked at.
        vm.read("deb", "sed -i s/systemd=true/systemd=false/ /etc/wsl.conf")?;
        vm.terminate("deb")?;
        vm.launch("deb")?;
        assert_eq!(vm.read("deb", "cat /proc/1/comm /var/farewell")?, "init\ngoodbye");
        let states =
            vm.read("deb", "journalctl --directory=/var/log/journal --header | sed -n 's/^State: //p'")?;
        assert!(!states.is_empty() && states.lines().all(|state| state == "OFFLINE"), "{states}");

        // Not up in time, sessions are let in with a warning; and what is still on its way up can be stopped.
        vm.read("deb", "printf '[boot]\\nsystemd=true\\ninitTimeout=1\\n' > /etc/wsl.conf")?;
        vm.terminate("deb")?;
        vm.launch("deb")?;
        let warnings = vm.machine().warnings();
        assert!(warnings.iter().any(|w| w.contains("boot.initTimeout")), "{warnings:?}");
        assert_eq!(vm.read("deb", "cat /proc/1/comm")?, "systemd");
        vm.terminate("deb")?;
        vm.power_off()
    })
}

/// Two of one kind, so that whatever had one name for both would show.
#[test]
fn two_with_systemd_do_not_see_each_other() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).memory("1G").start()?;
        for name in ["one", "two"] {
            with_systemd(&mut vm, name, &suite.debian13)?;
        }
        for (name, other) in [("one", "two"), ("two", "one")] {
            let start = "systemctl is-system-running; \
                 systemd-run --quiet --unit=only-in-$(hostname) sleep 1000; \
                 systemd-cat --identifier=test echo line-of-$(hostname); journalctl --sync";
            assert_eq!(vm.read(name, start)?, "running", "{other} is up or on its way");
        }
        let mut boots = Vec::new();
        for (name, other) in [("one", "two"), ("two", "one")] {
            let units = vm.read(name, "systemctl list-units --all --plain --no-legend 'only-in-*'")?;
            assert!(
                units.contains(&format!("only-in-{name}")) && !units.contains(&format!("only-in-{other}"))
            );
            let journal = vm.read(name, "journalctl --no-pager --output=short")?;
            assert!(journal.contains(&format!("line-of-{name}")), "{journal}");
            assert!(!journal.contains(&format!("line-of-{other}")), "{journal}");
            let hosts = "journalctl --field=_HOSTNAME; find /sys/fs/cgroup -name 'only-in-*' -printf '%f\\n'";
            assert_eq!(vm.read(name, hosts)?, format!("{name}\nonly-in-{name}.service"));
            assert_eq!(vm.read(name, "loginctl list-users --no-legend | wc -l")?, "1");
            boots.push(vm.read(name, "cat /etc/machine-id")?);
        }
        assert_ne!(boots[0], boots[1]);

        // Nobody can come in any more when the companion is gone: the distribution powers off, and the other does not.
        let _ = vm.sh("one", "kill -KILL 2");
        let distribution = vm.distribution("one")?;
        let ended = (0..600).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            distribution.ended()
        });
        assert_eq!(ended, Some(undercroft::ExitStatus::Code(0)));
        assert_eq!(vm.read("two", "systemctl is-system-running")?, "running");
        vm.power_off()
    })
}

#[rstest]
fn without_a_systemd_the_small_init_goes_on(
    #[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel,
) -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, kernel).distro("a", &suite.busybox).start()?;
        vm.read("a", "printf '[boot]\\nsystemd=true\\n' > /etc/wsl.conf")?;
        vm.terminate("a")?;
        vm.launch("a")?;
        let warnings = vm.machine().warnings();
        assert!(
            warnings.iter().any(|w| w.contains("runs without systemd") && w.contains("/sbin/init")),
            "{warnings:?}"
        );
        assert_eq!(vm.read("a", "cat /proc/1/comm; whoami")?, "init\nroot");
        vm.power_off()
    })
}
