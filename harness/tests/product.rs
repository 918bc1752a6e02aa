//! The product through its command line: a day with it, and what may befall it.

use std::{
    fs::{File, Permissions},
    io::{Write, sink},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use undercroft::{ExitStatus, Input, Relayed, error::chain, service::wire::Run};
use undercroft_harness::{
    archive::{Archive, Meta},
    lab,
    outcome::{Failure, Outcome},
    product::Product,
    suite::times,
    vm::{Kernel, guest_test},
};

/// Short times, so that a test sees the end of them.
const SHORT: &str =
    "memory=512MB\nprocessors=1\nswap=0\nvmIdleTimeout=4000\n[general]\ninstanceIdleTimeout=4000\n";

/// Times that no test comes to.
const QUIET: &str = "memory=512MB\nprocessors=1\nswap=0\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Install, run, list, idle, stop, come back, remove.
#[test]
fn a_day_with_it() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, SHORT)?;
        let archive = suite.busybox.display().to_string();

        // Before there is anything, nothing is started to say so.
        assert!(text(&one.try_say("list")?.stderr).contains("there is no distribution yet"));
        assert_eq!(one.try_say("run")?.status.code(), Some(125));
        assert_eq!(one.say("vms")?, "no virtual machine runs");

        one.say(&format!("import first {archive}"))?;
        // A second one of the same archive, by a pipe: nothing is unpacked.
        let piped = one.command(["import", "second", "-"]).stdin(File::open(&suite.busybox)?).output()?;
        assert!(piped.status.success(), "{}", text(&piped.stderr));
        assert!(text(&piped.stderr).contains("nothing to unpack"), "{}", text(&piped.stderr));
        let taken = one.try_say(&format!("import FIRST {archive}"))?;
        assert_eq!(taken.status.code(), Some(125), "names differ in more than case");

        // Both grammars, streams and statuses.
        assert_eq!(one.say("run first echo hello")?, "hello");
        assert_eq!(one.say("-d second -e hostname")?, "second");
        assert_eq!(one.command(["run", "first", "sh", "-c", "exit 7"]).status()?.code(), Some(7));
        assert_eq!(one.command(["run", "first", "sh", "-c", "kill -9 $$"]).status()?.code(), Some(137));
        assert_eq!(one.try_say("run first nothing-of-this-name")?.status.code(), Some(127));
        assert_eq!(text(&one.feed("run first wc -c", b"four\n")?.stdout), "5");
        assert_eq!(one.say("run -s first echo $((6*7))")?, "42");
        assert_eq!(one.say("--cd /etc -- pwd")?, "/etc");
        let (kernel, version) = (one.say("run first uname -r")?, one.say("--version")?);
        assert!(version.contains(&kernel), "{kernel} is not in {version}");
        one.sh("first", "echo stays > /kept; sync")?;

        // One virtual machine, whatever runs in it; who is there and why.
        let mut inside = one.spawn("run first cat")?;
        one.until("a session", || Ok(one.say("list -v")?.contains("1 session")))?;
        let list = one.say("--list --verbose")?;
        let lines: Vec<Vec<_>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "STATE", "VERSION"]);
        assert_eq!(lines[1], ["*", "first", "Running", "2"]);
        assert_eq!(one.say("vms")?.lines().count(), 2);

        // The other one stops after its time, and this one does not; it cannot be used without being started.
        one.until("the idle one stops", || Ok(one.state("second")? == "stopped"))?;
        assert_eq!(one.state("first")?, "running");
        assert_eq!(one.try_say("exec second true")?.status.code(), Some(125));
        drop(inside.stdin.take());
        assert!(inside.wait()?.success());
        one.until("the machine stops", || Ok(one.say("vms")?.contains("no virtual machine")))?;
        one.until("the service leaves", || Ok(one.service().is_none()))?;

        // It comes back with its files.
        assert_eq!(one.say("run first cat /kept")?, "stays");
        one.say("set-default second")?;
        assert_eq!(one.say("-e hostname")?, "second");
        one.say("terminate second")?;
        assert_eq!(one.state("second")?, "stopped");
        one.say("unregister second")?;
        assert_eq!(one.state("second")?, "absent");
        one.finish()
    })
}

/// The service, the VMM, a distribution's init: each is killed, each time the next command works, and what was synced is there.
#[test]
fn killed_at_any_moment() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, SHORT)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        let kill = |pid: &str| -> Outcome {
            Command::new("kill").args(["-9", pid]).status()?;
            Ok(())
        };

        one.sh("a", "echo 1 > /synced; sync")?;
        let vmm = one.status()?["vm"]["pid"].to_string();
        let service = one.service().expect("it runs");
        kill(&service.to_string())?;
        one.until("the VMM goes with its service", || {
            Ok(!std::path::Path::new(&format!("/proc/{vmm}")).exists())
        })?;
        let next = one.try_say("run a cat /synced")?;
        assert_eq!(text(&next.stdout), "1");
        let told = text(&next.stderr);
        assert!(
            told.contains(&format!("warning: the service (process {service}) ended without a word")),
            "{told}"
        );
        assert_eq!(one.sh("a", "cat /synced; echo 2 > /synced; sync")?, "1");

        // A session that runs learns why, and the status tells afterwards.
        let session = one.spawn("run a sleep 1000")?;
        one.until("a session", || Ok(one.say("list -v")?.contains("1 session")))?;
        kill(&one.status()?["vm"]["pid"].to_string())?;
        let ended = session.wait_with_output()?;
        assert_eq!(ended.status.code(), Some(125));
        assert!(text(&ended.stderr).contains("killed"), "{}", text(&ended.stderr));
        assert_eq!(one.sh("a", "cat /synced; echo 3 > /synced; sync")?, "2");
        assert!(one.say("status")?.contains("the virtual machine ended"));

        // A distribution whose init dies is stopped, and starts anew; the machine stays.
        let machine = one.status()?["vm"]["pid"].to_string();
        let powered_off = one.command(["run", "a", "/bin/sh", "-c", "kill -TERM 1; sleep 100"]).output()?;
        assert!(!powered_off.status.success());
        assert_eq!(one.sh("a", "cat /synced")?, "3");
        assert_eq!(one.status()?["vm"]["pid"].to_string(), machine);
        one.finish()
    })
}

/// How much there is on the host and inside, when no session runs. A thread and its stream, and a process of the session before, may be
/// just ending; a leak would be one for each of many.
#[derive(Debug)]
struct Look {
    /// Descriptors and threads of the service and of the VMM.
    counts: [u64; 4],
    /// KiB of memory of both. The VMM's is the guest's page cache, too.
    resident: [u64; 2],
    /// Processes of each distribution, and KiB of its init.
    inside: Vec<[u64; 2]>,
    /// KiB of all processes in the VM; mini-init's are among them.
    anonymous: u64,
}

impl Look {
    fn at(one: &Product, names: &[&str]) -> Result<Self, Failure> {
        let script = "ls -d /proc/[0-9]* | wc -l; awk '/VmRSS/ {print $2}' /proc/1/status; awk '/^AnonPages/ {print $2}' /proc/meminfo";
        let (mut inside, mut anonymous) = (Vec::new(), 0);
        for name in names {
            let numbers: Vec<u64> =
                one.sh(name, script)?.lines().filter_map(|line| line.parse().ok()).collect();
            inside.push([numbers[0], numbers[1]]);
            anonymous = numbers[2];
        }
        one.until("sessions are over", || {
            let status = one.status()?;
            Ok(status["distributions"]
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one["sessions"] == 0)))
        })?;
        let (service, vmm) =
            (one.service().expect("it runs").to_string(), one.status()?["vm"]["pid"].to_string());
        let count = |pid: &str, what: &str| {
            std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, |all| all.count() as u64)
        };
        let resident = |pid: &str| -> Result<u64, Failure> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            Ok(line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0))
        };
        let counts = [(&service, "fd"), (&service, "task"), (&vmm, "fd"), (&vmm, "task")];
        Ok(Self {
            counts: counts.map(|(pid, what)| count(pid, what)),
            resident: [resident(&service)?, resident(&vmm)?],
            inside,
            anonymous,
        })
    }

    /// Whether there is no more than there was.
    fn is_within(&self, before: &Self) -> bool {
        let numbers = |look: &Self| -> Vec<u64> {
            let inside = look.inside.iter().flatten().copied();
            look.counts.into_iter().chain(look.resident).chain([look.anonymous]).chain(inside).collect()
        };
        let more = [2, 3, 2, 3, 1024, 16 << 10, 512].into_iter().chain([2, 64].into_iter().cycle());
        numbers(self).iter().zip(numbers(before)).zip(more).all(|((now, before), more)| *now <= before + more)
    }
}

/// Many at once, twice; nothing is left of them.
#[test]
fn many_sessions() -> Outcome {
    guest_test(|suite| {
        // Each is a process here and some in the guest: two hundred take the lab some minutes.
        let at_once = times(50, 8);
        let one = Product::new(
            suite,
            Kernel::Tuned,
            "memory=768MB\nprocessors=1\nswap=0\n[general]\ninstanceIdleTimeout=-1\n",
        )?;
        let names = ["a", "b", "c", "d"];
        for name in names {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
            one.say(&format!("run {name} true"))?;
        }
        let all_at_once = || -> Outcome {
            let all: Vec<_> = (0..at_once * names.len())
                .map(|n| {
                    let script = format!("read line; echo {n} $line");
                    let words = ["run", names[n % names.len()], "/bin/sh", "-c", &script];
                    one.command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
                })
                .collect::<Result<_, _>>()?;
            one.until("all of them at once", || {
                let status = one.status()?;
                let all = status["distributions"].as_array().cloned().unwrap_or_default();
                Ok(all.iter().filter_map(|one| one["sessions"].as_u64()).sum::<u64>()
                    == (at_once * names.len()) as u64)
            })?;
            for (n, mut child) in all.into_iter().enumerate() {
                child.stdin.take().expect("a pipe").write_all(b"x\n")?;
                let output = child.wait_with_output()?;
                assert_eq!(text(&output.stdout), format!("{n} x"));
            }
            Ok(())
        };
        // What so many need once, and is kept for the next ones, is no leak.
        all_at_once()?;
        let early = Look::at(&one, &names)?;
        all_at_once()?;
        one.until("nothing is left of them", || {
            let late = Look::at(&one, &names)?;
            println!("{early:?}\n{late:?}");
            Ok(late.is_within(&early))
        })?;
        one.finish()
    })
}

/// A new distribution's makers have their command run before the first shell, and only then; what they call it, it is called.
#[test]
fn it_is_set_up_before_the_first_shell() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        let package = one.folder().join("package.wsl");
        let script = "#!/bin/sh\nread word\necho \"so: $word\"\ntest \"$word\" = good\n";
        Archive::busybox("made up")?
            .file("bin/set-up", script.as_bytes(), Meta::mode(0o755))?
            .text(
                "etc/wsl-distribution.conf",
                "[oobe]\ncommand=/bin/set-up\ndefaultUid=1000\ndefaultName=Made-Up\n[shortcut]\nicon=/x.ico\n",
            )?
            .write(&package)?;
        one.say(&format!("install {}", package.display()))?;
        assert_eq!(one.state("Made-Up")?, "stopped");
        // A command does not wait for it.
        assert_eq!(one.say("run Made-Up id -u")?, "0");
        assert_eq!(one.say("-d Made-Up -- id -u")?, "0");

        let mut failing = one.at_a_terminal("run Made-Up")?;
        failing.sees("by `/bin/set-up`")?;
        let second = one.at_a_terminal("run Made-Up")?.end()?;
        assert!(second.1.contains("in another terminal"), "{}", second.1);
        failing.press("bad\n")?;
        let (status, screen) = failing.end()?;
        assert_eq!(status.code(), Some(125), "{screen}");
        assert!(screen.contains("so: bad") && screen.contains("Made-Up is not set up"), "{screen}");
        assert!(screen.contains("shortcut.icon has no meaning here"), "{screen}");
        assert_eq!(one.say("run Made-Up id -u")?, "0");

        let mut first = one.at_a_terminal("run Made-Up")?;
        first.sees("by `/bin/set-up`")?;
        first.press("good\n")?;
        first.sees("so: good")?;
        // What is typed before there is a shell is the set-up's.
        first.sees("$ ")?;
        first.press("echo is=$(id -u)\nexit 3\n")?;
        let (status, screen) = first.end()?;
        assert_eq!(status.code(), Some(3), "{screen}");
        assert!(screen.contains("is=1000"), "{screen}");
        assert_eq!(one.say("run Made-Up id -u")?, "1000");
        // Its own file has the first word on who that is.
        one.say_words([
            "run",
            "-u",
            "0",
            "Made-Up",
            "sh",
            "-c",
            "printf '[user]\\ndefault=root\\n' > /etc/wsl.conf",
        ])?;
        one.say("terminate Made-Up")?;
        assert_eq!(one.say("run Made-Up id -u")?, "0");
        one.sh("Made-Up", "rm /etc/wsl.conf")?;
        one.say("terminate Made-Up")?;
        assert_eq!(one.say("run Made-Up id -u")?, "1000");

        let mut shell = one.at_a_terminal("-d Made-Up")?;
        shell.sees("$ ")?;
        shell.press("exit 4\n")?;
        let (status, screen) = shell.end()?;
        assert_eq!(status.code(), Some(4), "{screen}");
        assert!(!screen.contains("set-up"), "{screen}");
        one.finish()
    })
}

/// What a session leaves in the background keeps its distribution, as it does in the reference system, and the list says so.
#[test]
fn the_background_keeps_it() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, SHORT)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        // Out of its session, as daemons go.
        one.sh("a", "setsid sleep 100000 > /dev/null 2>&1 < /dev/null & echo $! > /run/left")?;
        std::thread::sleep(Duration::from_secs(6));
        let list = one.say("list -v")?;
        assert!(list.contains("processes that a session left in the background"), "{list}");
        // A command beside it changes nothing.
        one.sh("a", "true")?;
        assert_eq!(one.state("a")?, "running");
        one.sh("a", "kill $(cat /run/left)")?;
        one.until("it stops", || Ok(one.state("a")? == "stopped"))?;
        one.finish()
    })
}

/// Configured times are kept, and who keeps them from being met is named; the console is shown while it boots; a new disk is where
/// disks are to be.
#[test]
fn times_and_places_are_configured() -> Outcome {
    guest_test(|suite| {
        let kernel = format!("kernel={}\n{QUIET}", suite.tuned.image.display());
        let one = Product::new(suite, Kernel::Tuned, "kernelBootTimeout=1\n")?;
        let import = format!("import a {}", suite.busybox.display());
        let refused = one.try_say(&import)?;
        assert_eq!(refused.status.code(), Some(125));
        assert!(text(&refused.stderr).contains("kernelBootTimeout"), "{}", text(&refused.stderr));
        assert_eq!(one.say("vms")?, "no virtual machine runs");

        let disks = one.folder().join("disks");
        one.configure(&format!(
            "[wsl2]\n{kernel}debugConsole=true\n[general]\ndistributionInstallPath={}\n",
            disks.display()
        ))?;
        one.say(&import)?;
        assert!(disks.join("a.ext4").is_file());
        one.say(&format!("--import b {} {}", one.folder().join("b").display(), suite.busybox.display()))?;
        assert!(one.folder().join("b/b.ext4").is_file());
        one.say("shutdown")?;
        let booted = one.try_say("run a echo out")?;
        assert_eq!(text(&booted.stdout), "out");
        assert!(!text(&booted.stderr).is_empty(), "no console");
        let again = one.try_say("run a echo out")?;
        assert_eq!(text(&again.stderr), "", "it boots no more");

        let machine = one.status()?["vm"]["pid"].to_string();
        one.say("terminate a")?;
        one.configure(&format!("[wsl2]\n{kernel}distributionStartTimeout=1\n"))?;
        let refused = one.try_say("run a true")?;
        assert_eq!(refused.status.code(), Some(125));
        assert!(text(&refused.stderr).contains("distributionStartTimeout"), "{}", text(&refused.stderr));
        one.configure(&format!("[wsl2]\n{kernel}"))?;
        assert_eq!(one.say("run a echo again")?, "again");
        assert_eq!(one.status()?["vm"]["pid"].to_string(), machine);
        one.finish()
    })
}

/// A disk has one user: another service, or anybody who opens it, is refused.
#[test]
fn a_disk_has_one_user() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        let mut inside = one.spawn("run a cat")?;
        one.until("a session", || Ok(one.say("list -v")?.contains("1 session")))?;
        let runtime = one.folder().join("another");
        std::fs::create_dir(&runtime)?;
        let second = one.command(["run", "a", "true"]).env("XDG_RUNTIME_DIR", &runtime).output()?;
        assert_eq!(second.status.code(), Some(125));
        assert!(text(&second.stderr).contains("in use"), "{}", text(&second.stderr));
        drop(inside.stdin.take());
        assert!(inside.wait()?.success());
        one.say("terminate a")?;
        // Given back, it is the other's to take.
        let second = one.command(["run", "a", "echo", "mine"]).env("XDG_RUNTIME_DIR", &runtime).output()?;
        assert_eq!(text(&second.stdout), "mine", "{}", text(&second.stderr));
        let refused = one.try_say("run a true")?;
        assert!(text(&refused.stderr).contains("in use"), "{}", text(&refused.stderr));
        let ended = one.command(["shutdown"]).env("XDG_RUNTIME_DIR", &runtime).status()?;
        assert!(ended.success());
        one.finish()
    })
}

/// Two people on one host: each has a machine, and neither comes to the other's service or files, nor does root to a service.
#[test]
fn two_people() -> Outcome {
    guest_test(|suite| {
        if !lab::inside() {
            return undercroft_harness::outcome::skip("/dev/kvm is given to other users in the lab only");
        }
        let open = |path: &std::path::Path| std::fs::set_permissions(path, Permissions::from_mode(0o755));
        std::fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666))?;
        // Root's home is nobody else's to read.
        let kernel = tempfile::tempdir()?;
        open(kernel.path())?;
        let from = suite.tuned.image.parent().expect("a folder");
        for name in ["manifest.json", "vmlinux", "modules.ext4"] {
            std::fs::copy(from.join(name), kernel.path().join(name))?;
        }
        let person = |uid| Product::of(suite, Some(uid), &kernel.path().join("vmlinux"), QUIET);
        let (ada, bob) = (person(2001)?, person(2002)?);
        for one in [&ada, &bob] {
            one.say(&format!("import mine {}", suite.busybox.display()))?;
            open(one.folder())?;
            open(&one.folder().join("run"))?;
        }
        ada.sh("mine", "echo ada > /whose; sync")?;
        bob.sh("mine", "echo bob > /whose; sync")?;
        assert_eq!(ada.sh("mine", "cat /whose")?, "ada");
        let pids = [ada.status()?["vm"]["pid"].to_string(), bob.status()?["vm"]["pid"].to_string()];
        assert_ne!(pids[0], pids[1]);

        let hers = ada.folder().join("run");
        let intruder = bob.command(["run", "mine", "true"]).env("XDG_RUNTIME_DIR", &hers).output()?;
        assert_eq!(intruder.status.code(), Some(125));
        assert!(
            text(&intruder.stderr).contains("not a folder of this user alone"),
            "{}",
            text(&intruder.stderr)
        );
        let disk = ada.folder().join("data/undercroft/distributions/mine/disk.ext4");
        assert!(disk.is_file());
        let read = Command::new("setpriv")
            .args(["--reuid", "2002", "--regid", "2002", "--clear-groups", "--", "cat"])
            .arg(&disk)
            .output()?;
        assert!(!read.status.success() && read.stdout.is_empty());
        let socket = hers.join("undercroft/service.sock");
        let root = Product::new(suite, Kernel::Tuned, QUIET)?;
        let asked = root.command(["list"]).env("XDG_RUNTIME_DIR", &hers).output()?;
        assert!(
            text(&asked.stderr).contains("user 0 connected"),
            "{}: {}",
            socket.display(),
            text(&asked.stderr)
        );
        ada.finish()?;
        bob.finish()
    })
}

/// One after another, thousands of them: nothing grows.
#[test]
fn short_sessions_leave_nothing() -> Outcome {
    guest_test(|suite| {
        let all = times(10_000, 1000);
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        one.say("run a true")?;
        let look = || Look::at(&one, &["a"]);
        // A program's start for each would be as much again, and has nothing to leave behind in who is looked at.
        let (client, mut early) = (one.client(), None);
        let session = || client.run(Run::words("a", &["true"]), |_| ())?.relay(Input::Null, sink(), sink());
        let begun = Instant::now();
        for n in 0..all {
            if n == all / 4 {
                early = Some(look()?);
            }
            if n % 500 == 0 {
                println!("{n} of {all} after {} s: {:?}", begun.elapsed().as_secs(), look()?);
            }
            assert_eq!(session().map_err(|error| chain(&error)), Ok(ExitStatus::Code(0)), "session {n}");
        }
        let (early, late) = (early.expect("a quarter of them"), look()?);
        println!("{early:?}\n{late:?}");
        assert!(late.is_within(&early), "{early:?} {late:?}");
        one.finish()
    })
}

/// What is no archive, and what is no root, is refused and leaves nothing.
#[test]
fn bad_input_leaves_nothing() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, SHORT)?;
        let bad = one.folder().join("bad.tar");
        std::fs::write(&bad, b"no tar at all")?;
        let refused = one.try_say(&format!("import x {}", bad.display()))?;
        assert_eq!(refused.status.code(), Some(125));
        assert!(text(&refused.stderr).contains("is not a tar archive"), "{}", text(&refused.stderr));
        // Nothing was started for it.
        assert_eq!(one.say("vms")?, "no virtual machine runs");
        let empty = one.folder().join("empty.tar");
        Archive::default().directory("nothing", Meta::mode(0o755))?.write(&empty)?;
        let refused = one.try_say(&format!("import x {}", empty.display()))?;
        assert_eq!(refused.status.code(), Some(125), "{}", text(&refused.stderr));
        assert_eq!(one.state("x")?, "absent");
        one.finish()
    })
}
