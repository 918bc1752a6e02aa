//! What is cut in the middle: whoever is killed while files change, what was acknowledged is there, disks are clean or their journal
//! makes them so, nothing is half there, the next command says what happened, and the same command succeeds.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};
use undercroft_harness::{
    archive::{Archive, Meta},
    outcome::{Failure, Outcome, patience},
    product::Product,
    turn,
    vm::{Kernel, guest_test},
};

/// Times that no test comes to.
const QUIET: &str = "memory=512MB\nprocessors=1\nswap=0\n";
/// Bytes that take a while to be moved, and how many are moved when it is cut.
const BULK: usize = 96 << 20;
const CUT: u64 = 8 << 20;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// A distribution's archive with much that does not compress.
fn bulky(one: &Product) -> Result<PathBuf, Failure> {
    let path = one.folder().join("bulky.tar");
    let mut bulk = vec![0; BULK];
    fs::File::open("/dev/urandom")?.read_exact(&mut bulk)?;
    Archive::busybox("bulky")?.file("bulk", &bulk, Meta::mode(0o644))?.write(&path)?;
    Ok(path)
}

/// Bytes that a file, or all in a folder, take; of what is open in a process, the files' without a name.
fn taken(path: &Path) -> u64 {
    let Ok(mut about) = fs::symlink_metadata(path) else { return 0 };
    if about.is_symlink() && path.starts_with("/proc") {
        match fs::metadata(path) {
            Ok(open) if open.is_file() && open.nlink() == 0 => about = open,
            _ => return 0,
        }
    }
    let below =
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| taken(&entry.path())).sum::<u64>();
    below + about.blocks() * 512
}

/// Waits until something is in full swing. Who is late is so by the host's doing, and not by the product's: it is tried again.
fn in_full_swing(path: &Path, before: u64, running: &mut Child) -> Outcome {
    let start = Instant::now();
    while taken(path) < before + CUT {
        match running.try_wait()? {
            Some(status) if status.success() => {
                return Err(Failure::late("the test was too late: it was over before it was cut"));
            }
            Some(status) => {
                let mut said = String::new();
                running.stderr.take().map_or(Ok(0), |mut stderr| stderr.read_to_string(&mut said))?;
                return Err(Failure::Failed(format!("it failed ({status}) before it was cut: {said}")));
            }
            None => {}
        }
        if start.elapsed() > patience() {
            return Err(Failure::late(&format!("not enough came to {}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The VMM's process.
fn vmm(one: &Product) -> Result<i32, Failure> {
    let status = one.status()?;
    let pid = status["vm"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.ok_or_else(|| Failure::Harness(format!("no machine runs: {status}")))
}

fn kill(pid: i32) -> Outcome {
    send(Pid::from_raw(pid), Signal::SIGKILL)
        .map_err(|error| Failure::Harness(format!("to kill {pid}: {error}")))
}

/// While it is there, a process runs on the CPU that the test runs on, and only there: one that copies as fast as the memory allows
/// does not come to its end on another CPU while the test, whose own is busy, is still to see that it began. That is for a host with
/// KVM of its own, which has several. A lab has one (`UNDERCROFT_LAB_CPUS`): there they are beside each other already, and this does
/// nothing.
struct Beside(CpuSet);

impl Beside {
    fn the_test(pid: i32) -> Result<Self, Failure> {
        let failed = |error| Failure::Harness(format!("to have {pid} beside the test: {error}"));
        let before = sched_getaffinity(Pid::from_raw(0)).map_err(failed)?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu().map_err(failed)?).map_err(failed)?;
        sched_setaffinity(Pid::from_raw(0), &one).map_err(failed)?;
        let beside = Self(before);
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.file_name().to_string_lossy().parse().expect("a thread's number");
            match sched_setaffinity(Pid::from_raw(task), &one) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::ESRCH) => (),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(beside)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// Whether copies share their blocks here: none of them takes long enough to be cut.
fn copies_are_shared(folder: &Path) -> Result<bool, Failure> {
    let (from, to) = (folder.join("from"), folder.join("to"));
    fs::write(&from, [1; 4096])?;
    Ok(Command::new("cp").arg("--reflink=always").args([from, to]).output()?.status.success())
}

/// Looks at every disk of the store: after its journal was replayed, if it has one to replay, nothing is wrong with it.
fn disks_are_clean(one: &Product) -> Outcome {
    let store = one.folder().join("data/undercroft");
    let copy = one.folder().join("looked-at.ext4");
    let mut disks: Vec<_> = fs::read_dir(store.join("bases"))?.flatten().map(|entry| entry.path()).collect();
    let own =
        fs::read_dir(store.join("distributions"))?.flatten().map(|entry| entry.path().join("disk.ext4"));
    disks.extend(own.filter(|path| path.exists()));
    for disk in disks {
        let run = |program: &str, arguments: &[&str]| -> Result<Output, Failure> {
            Ok(Command::new(program).args(arguments).arg(&copy).output()?)
        };
        let copied = Command::new("cp").args(["--sparse=always"]).arg(&disk).arg(&copy).status()?;
        assert!(copied.success(), "{}", disk.display());
        if disk.ends_with("disk.ext4") {
            let replayed = run("/sbin/e2fsck", &["-y", "-E", "journal_only"])?;
            assert!(
                matches!(replayed.status.code(), Some(0 | 1)),
                "{}: {}",
                disk.display(),
                text(&replayed.stdout)
            );
        }
        let checked = run("/sbin/e2fsck", &["-fn"])?;
        assert!(checked.status.success(), "{}: {}", disk.display(), text(&checked.stdout));
        fs::remove_file(&copy)?;
    }
    Ok(())
}

/// What needs a machine: its VMM is killed.
#[test]
fn an_import_and_an_export() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        let bulky = bulky(&one)?;
        one.say("run a true")?;
        let pid = vmm(&one)?;
        let partial = one.folder().join("data/undercroft/partial");
        let mut import = one.spawn(&format!("import b {}", bulky.display()))?;
        in_full_swing(&partial, taken(&partial), &mut import)?;
        kill(pid)?;
        let cut = import.wait_with_output()?;
        assert_eq!(cut.status.code(), Some(125));
        assert!(text(&cut.stderr).contains("killed"), "{}", text(&cut.stderr));
        assert_eq!(one.state("b")?, "absent");
        disks_are_clean(&one)?;
        one.say(&format!("import b {}", bulky.display()))?;
        assert_eq!(one.sh("b", "stat -c %s /bulk")?, BULK.to_string());

        let pid = vmm(&one)?;
        let exports = one.folder().join("exports");
        fs::create_dir(&exports)?;
        let line = format!("export b {}", exports.join("b.tar").display());
        let mut export = one.spawn(&line)?;
        // The file has no name before it is whole: what is open in the client tells.
        let open = PathBuf::from(format!("/proc/{}/fd", export.id()));
        in_full_swing(&open, 0, &mut export)?;
        kill(pid)?;
        let cut = export.wait_with_output()?;
        assert_eq!(cut.status.code(), Some(125));
        assert!(text(&cut.stderr).contains("killed"), "{}", text(&cut.stderr));
        assert_eq!(fs::read_dir(&exports)?.count(), 0);
        assert!(one.say("status")?.contains("the virtual machine ended"));
        disks_are_clean(&one)?;
        one.say(&line)?;
        assert!(fs::metadata(exports.join("b.tar"))?.len() > BULK as u64);
        one.finish()
    })
}

/// All processes in the VM but PID 1 are killed at once: mini-init's children, each distribution's init, every session. What was
/// under way is lost and says so; the machine stays, and everything can be had again.
#[test]
fn all_that_runs_in_the_machine() -> Outcome {
    guest_test(|suite| {
        let _turn = turn::take()?;
        let shared = "[distribution \"a\"]\nuser=shared\n";
        let one = Product::new(suite, Kernel::Tuned, &format!("{QUIET}{shared}"))?;
        for name in ["a", "b"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        let bulky = bulky(&one)?;
        one.sh("b", "echo kept > /kept; sync")?;
        let machine = vmm(&one)?;
        let session = one.spawn("run b sleep 1000")?;
        // sysrq.rst of the kernel's admin guide: SIGKILL to all processes, except for init.
        let all = "read go; echo 1 > /proc/sys/kernel/sysrq; echo i > /proc/sysrq-trigger; sleep 1000";
        let mut killer = one.command(["run", "a", "sh", "-c", all]).stdin(Stdio::piped()).spawn()?;
        one.until("two sessions", || Ok(one.say("list -v")?.matches("1 session").count() == 2))?;
        let partial = one.folder().join("data/undercroft/partial");
        let mut import = one.spawn(&format!("import c {}", bulky.display()))?;
        in_full_swing(&partial, taken(&partial), &mut import)?;
        killer.stdin.take().expect("a pipe").write_all(b"go\n")?;
        assert!(!killer.wait()?.success());
        assert!(!session.wait_with_output()?.status.success());
        let cut = import.wait_with_output()?;
        assert_eq!(cut.status.code(), Some(125), "{}", text(&cut.stderr));
        assert!(text(&cut.stderr).contains("ended without an answer"), "{}", text(&cut.stderr));
        assert_eq!(one.state("c")?, "absent");

        one.until("they are stopped", || Ok(one.state("a")? == "stopped" && one.state("b")? == "stopped"))?;
        assert_eq!(one.sh("b", "cat /kept")?, "kept");
        assert_eq!(vmm(&one)?, machine, "it is the same machine");
        one.say(&format!("import c {}", bulky.display()))?;
        assert_eq!(one.sh("c", "stat -c %s /bulk")?, BULK.to_string());
        // What carries the host's connections, and asks for names, is there again, too.
        one.sh("b", "httpd -p 127.0.0.1:8093 -h /")?;
        let get = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", 8093))?;
            stream.write_all(b"GET /kept HTTP/1.0\r\n\r\n")?;
            std::io::read_to_string(stream)
        };
        one.until("it is not reached", || Ok(get().is_ok_and(|answer| answer.ends_with("kept\n"))))?;
        assert!(one.sh("b", "nslookup c")?.contains("127.0.0.1"));
        let status = one.say("status")?;
        for what in ["the relay of the host's loopback", "the VM's name server"] {
            assert!(
                status.contains(&format!("{what} had ended in the VM, and was started again")),
                "{status}"
            );
        }
        one.say("shutdown")?;
        disks_are_clean(&one)?;
        one.finish()
    })
}

/// What the service does itself: it is killed.
#[test]
fn a_clone_a_move_and_a_resize() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        if copies_are_shared(one.folder())? {
            return undercroft_harness::outcome::skip("copies share their blocks on this file system");
        }
        one.say(&format!("import b {} --flat", bulky(&one)?.display()))?;
        one.sh("b", "echo stays > /mark; sync")?;
        one.say("shutdown")?;
        let store = one.folder().join("data/undercroft");
        // Another file system: on the same one a disk is moved by its name alone.
        let elsewhere = tempfile::Builder::new().prefix("undercroft-").tempdir_in("/dev/shm")?;
        let cases = [
            ("clone b c".to_owned(), store.join("partial")),
            ("resize b 80G".to_owned(), store.join("distributions/b")),
            (format!("move b {}", elsewhere.path().display()), elsewhere.path().to_owned()),
        ];
        for (line, grows) in cases {
            let before = taken(&grows);
            // The service may have left meanwhile.
            one.say("list")?;
            let service = one.service().expect("it runs");
            let beside = Beside::the_test(service)?;
            let mut running = one.spawn(&line)?;
            in_full_swing(&grows, before, &mut running)?;
            kill(service)?;
            drop(beside);
            let cut = running.wait_with_output()?;
            assert_eq!(cut.status.code(), Some(125), "{line}");
            assert!(text(&cut.stderr).contains("the service ended"), "{line}: {}", text(&cut.stderr));

            if line.starts_with("clone") {
                assert_eq!(one.state("c")?, "absent");
            }
            assert_eq!(one.state("b")?, "stopped");
            assert!(one.say("status")?.contains("cleared away"), "{line}");
            assert!(taken(&grows) < before + CUT, "{line} left something");
            disks_are_clean(&one)?;
            one.say(&line)?;
        }
        assert!(elsewhere.path().join("b.ext4").exists());
        disks_are_clean(&one)?;
        assert_eq!(
            one.sh("b", "cat /mark; stat -c %s /bulk; df -m / | awk 'NR == 2 {print ($2 > 70000)}'")?,
            format!("stays\n{BULK}\n1")
        );
        assert_eq!(one.sh("c", "cat /mark")?, "stays");
        one.finish()
    })
}

/// A distribution that writes and syncs all the time: whatever it said was synced is there.
#[test]
fn a_write_load() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        one.sh("a", "mkdir -p /w; sync")?;
        let load =
            "n=$1; while :; do n=$((n + 1)); echo $n | dd of=/w/$n conv=fsync 2>/dev/null && echo $n; done";
        let mut last = 0;
        for round in 0..2 {
            let from = last.to_string();
            let mut command = one.command(["run", "a", "/bin/sh", "-c", load, "load", from.as_str()]);
            let mut writer = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let pid = {
                one.until("a session", || Ok(one.say("list -v")?.contains("1 session")))?;
                vmm(&one)?
            };
            for (seen, line) in BufReader::new(writer.stdout.take().expect("a pipe")).lines().enumerate() {
                last = line?.parse::<u64>().map_err(|error| Failure::Failed(error.to_string()))?;
                if seen == 20 + round {
                    kill(pid)?;
                }
            }
            assert_eq!(writer.wait()?.code(), Some(125));
            disks_are_clean(&one)?;
            assert!(one.say("status")?.contains("the virtual machine ended"));
            // Each of them, with what was in it.
            let wrong = one.sh(
                "a",
                &format!("for n in $(seq {last}); do test \"$(cat /w/$n)\" = $n || echo $n; done"),
            )?;
            assert_eq!(wrong, "", "of {last}");
        }
        one.finish()
    })
}

/// The host's file system is full: who writes is told, nobody else minds, and with room again it goes on.
#[test]
fn a_full_disk() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        let data = one.folder().join("data");
        fs::create_dir(&data)?;
        let mount = |options: &str| -> Outcome {
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(&data).status()?;
            if mounted.success() {
                Ok(())
            } else {
                Err(Failure::Harness(format!("mount -o {options}: {mounted}")))
            }
        };
        if !nix::unistd::geteuid().is_root() {
            return undercroft_harness::outcome::skip("a small file system is root's to mount");
        }
        mount("size=96m")?;
        for name in ["a", "b"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        let mut other = one.spawn("run b cat")?;
        one.sh("a", "echo before > /before; sync")?;
        let machine = vmm(&one)?;
        let full = one
            .command(["run", "a", "dd", "if=/dev/zero", "of=/large", "bs=1M", "count=200", "conv=fsync"])
            .output()?;
        assert_eq!(full.status.code(), Some(1), "{}", text(&full.stderr));
        let said = text(&full.stderr);
        // The file's own blocks fail with the one, the journal's with the other.
        let told = ["No space left on device", "Input/output error"].iter().any(|word| said.contains(word));
        assert!(told, "{said}");
        let status = one.say("status")?;
        assert!(status.contains("no space is left"), "{status}");
        // The others, and the machine.
        assert_eq!(one.say("run b echo alive")?, "alive");
        assert_eq!(vmm(&one)?, machine);

        mount("remount,size=400m")?;
        one.say("terminate a")?;
        assert_eq!(
            one.sh("a", "cat /before; rm -f /large; echo after > /after; sync; cat /after")?,
            "before\nafter"
        );
        assert_eq!(vmm(&one)?, machine);
        drop(other.stdin.take());
        assert!(other.wait()?.success());
        one.say("shutdown")?;
        disks_are_clean(&one)?;
        Command::new("umount").arg("--lazy").arg(&data).status()?;
        Ok(())
    })
}
