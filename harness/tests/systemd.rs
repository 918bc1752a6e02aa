//! systemd as PID 1 of a distribution, and init as its companion.

use std::path::Path;

use undercroft::Program;
use undercroft_harness::{
    outcome::{Failure, Outcome, until},
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

/// Two releases at once, on the tuned kernel: under a stock one the same takes the lab a quarter of an hour.
#[test]
fn two_debians_with_systemd() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).memory("1G").start()?;
        with_systemd(&mut vm, "twelve", &suite.debian)?;
        with_systemd(&mut vm, "thirteen", &suite.debian13)?;
        assert_eq!(vm.machine().warnings(), Vec::<String>::new());
        for name in ["twelve", "thirteen"] {
            comes_up(&vm, name)?;
        }
        do_not_see_each_other(&vm, "twelve", "thirteen")?;
        for name in ["twelve", "thirteen"] {
            has_users(&vm, name)?;
        }
        goes_down_in_order(&mut vm, "twelve")?;
        is_let_in_before_it_is_up(&mut vm, "twelve")?;
        without_its_companion_it_ends(&vm, "thirteen")?;
        vm.power_off()
    })
}

/// Nothing of it failed; who is who.
fn comes_up(vm: &Vm, name: &str) -> Outcome {
    let state = vm.read(
        name,
        "systemctl is-system-running; systemctl --failed --no-legend; ps -o args= -p 1,2; \
         systemctl is-active undercroft-init.service; cat /run/systemd/container",
    )?;
    assert_eq!(state, "running\n/sbin/init\n/init\nactive\nundercroft", "{name}");
    Ok(())
}

/// A user's session, as PAM and logind make it, and the user's own systemd, which may be on its way up still.
fn has_users(vm: &Vm, name: &str) -> Outcome {
    let session = as_user(
        vm,
        name,
        "ada",
        "id -un; echo $XDG_RUNTIME_DIR $DBUS_SESSION_BUS_ADDRESS; systemctl --user is-system-running --wait; \
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
    Ok(())
}

/// Units of one name, journals, cgroups, users of the one are not the other's.
fn do_not_see_each_other(vm: &Vm, one: &str, two: &str) -> Outcome {
    for name in [one, two] {
        let start = "systemd-run --quiet --unit=only-in-$(hostname) sleep 1000; \
             systemd-cat --identifier=test echo line-of-$(hostname); journalctl --sync";
        vm.read(name, start)?;
    }
    let mut boots = Vec::new();
    for (name, other) in [(one, two), (two, one)] {
        let units = vm.read(name, "systemctl list-units --all --plain --no-legend 'only-in-*'")?;
        assert!(units.contains(&format!("only-in-{name}")) && !units.contains(&format!("only-in-{other}")));
        let journal = vm.read(name, "journalctl --no-pager --output=short")?;
        assert!(journal.contains(&format!("line-of-{name}")), "{journal}");
        assert!(!journal.contains(&format!("line-of-{other}")), "{journal}");
        let hosts = "journalctl --field=_HOSTNAME; find /sys/fs/cgroup -name 'only-in-*' -printf '%f\\n'";
        assert_eq!(vm.read(name, hosts)?, format!("{name}\nonly-in-{name}.service"));
        assert_eq!(vm.read(name, "loginctl list-users --no-legend | wc -l")?, "1");
        boots.push(vm.read(name, "cat /etc/machine-id")?);
    }
    assert_ne!(boots[0], boots[1]);
    Ok(())
}

/// What is stopped can do its last work, and the journal is closed. Without systemd it can be looked at.
fn goes_down_in_order(vm: &mut Vm, name: &str) -> Outcome {
    vm.read(name, "sed -i s/systemd=true/systemd=false/ /etc/wsl.conf")?;
    vm.terminate(name)?;
    vm.launch(name)?;
    assert_eq!(vm.read(name, "cat /proc/1/comm /var/farewell")?, "init\ngoodbye");
    let states =
        vm.read(name, "journalctl --directory=/var/log/journal --header | sed -n 's/^State: //p'")?;
    assert!(!states.is_empty() && states.lines().all(|state| state == "OFFLINE"), "{states}");
    Ok(())
}

/// Not up in time, sessions are let in with a warning; and what is still on its way up can be stopped.
fn is_let_in_before_it_is_up(vm: &mut Vm, name: &str) -> Outcome {
    vm.read(name, "printf '[boot]\\nsystemd=true\\ninitTimeout=1\\n' > /etc/wsl.conf")?;
    vm.terminate(name)?;
    vm.launch(name)?;
    let warnings = vm.machine().warnings();
    assert!(warnings.iter().any(|w| w.contains("boot.initTimeout")), "{warnings:?}");
    assert_eq!(vm.read(name, "cat /proc/1/comm")?, "systemd");
    vm.terminate(name)
}

/// Nobody can come in any more when the companion is gone: the distribution powers off.
fn without_its_companion_it_ends(vm: &Vm, name: &str) -> Outcome {
    assert_eq!(vm.read(name, "systemctl is-system-running")?, "running", "the other one's stop is not its");
    let _ = vm.sh(name, "kill -KILL 2");
    let distribution = vm.distribution(name)?;
    until("its end was not reported", || Ok(distribution.ended().is_some()))?;
    assert_eq!(distribution.ended(), Some(undercroft::ExitStatus::Code(0)));
    Ok(())
}

#[test]
fn without_a_systemd_the_small_init_goes_on() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
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
