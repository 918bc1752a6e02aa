//! The lab as a person and a test meet it: on the host, with a real QEMU.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use undercroft_harness::lab::{self, Ended, Lab, LabError};
use undercroft_harness::outcome::{Failure, Outcome, record, skip};

/// Runs a test's body with a lab; skips it where there can be none.
fn with_lab(body: impl FnOnce(&Lab)) {
    let outcome: Outcome = record(|| match lab::ensure() {
        Ok(lab) => {
            body(&lab);
            Ok(())
        }
        Err(LabError::Inside) => skip("it is about the lab, and runs in it"),
        Err(missing @ LabError::Missing { .. }) => skip(&missing.to_string()),
        Err(other) => Err(Failure::Harness(other.to_string())),
    });
    if let Err(failure) = outcome {
        panic!("{failure:?}");
    }
}

fn sh(lab: &Lab, script: &str) -> lab::Output {
    lab.command(["/bin/sh", "-c", script]).stdin_null().output().expect("the lab runs it")
}

/// The runner, by which a client is a process that can be killed.
fn runner(argv: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft-lab-runner"));
    command.args(argv).env("UNDERCROFT_KVM", "lab").stdin(Stdio::null());
    command
}

/// A process that is killed when the test is over, however it ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until it is so; the limit is for a machine that is very busy, and no test asserts how long it took.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !so() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How many processes of L1 have this word on their command line. The brackets keep the searching shell out.
fn processes(lab: &Lab, word: &str) -> usize {
    let (head, tail) = word.split_at(1);
    let found = sh(
        lab,
        &format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '[{head}]{tail}$'"),
    );
    String::from_utf8_lossy(&found.stdout).trim().parse().unwrap_or(0)
}

#[test]
fn statuses_are_the_commands() {
    with_lab(|lab| {
        for status in [0, 1, 7, 128, 255] {
            assert_eq!(sh(lab, &format!("exit {status}")).ended, Ended::Exited(status));
        }
        assert_eq!(sh(lab, "kill -9 $$").ended, Ended::Signalled(9));
        assert_eq!(sh(lab, "kill -ABRT $$").ended.code(), 134);
        let missing = lab.command(["/no/such/program"]).output();
        assert!(matches!(missing, Err(LabError::Refused(reason)) if reason.contains("/no/such/program")));
    });
}

#[test]
fn outputs_stay_apart_and_bytes_stay_what_they_are() {
    with_lab(|lab| {
        let output = sh(lab, "printf 'a\\000\\377' ; printf b >&2");
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (b"a\0\xff".as_slice(), b"b".as_slice())
        );

        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&data).expect("writing it");
        std::io::Seek::rewind(&mut file).expect("rewinding it");
        let output = lab.command(["cat"]).stdin_from(&file).output().expect("cat runs");
        assert!(output.stdout == data, "{} bytes of {} came back", output.stdout.len(), data.len());
    });
}

#[test]
fn the_hosts_files_are_there_and_only_ours_can_be_written() {
    with_lab(|lab| {
        let mark =
            std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mark-{}", std::process::id()));
        let script = format!(
            "echo here > {} && test -x {}",
            mark.display(),
            env!("CARGO_BIN_EXE_undercroft-lab-runner")
        );
        assert_eq!(sh(lab, &script).ended, Ended::Exited(0));
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), "here\n");
        std::fs::remove_file(mark).unwrap();
        assert_ne!(sh(lab, "touch /usr/undercroft-was-here").ended, Ended::Exited(0));
        assert!(!std::path::Path::new("/usr/undercroft-was-here").exists());
    });
}

#[test]
fn a_client_that_dies_takes_its_command_with_it() {
    with_lab(|lab| {
        let seconds = (1_000_000 + std::process::id()).to_string();
        // The last word is there so that the shell's own arguments are not counted, and so that it stays.
        let script = format!("setsid sleep {seconds} & sleep {seconds}; true");
        let client = runner(&["/bin/sh", "-c", &script]).stdout(Stdio::null()).spawn();
        let client = Killed(client.expect("the runner starts"));
        eventually("both sleepers run", || processes(lab, &seconds) == 2);
        drop(client);
        eventually("none is left, not even that of another session", || processes(lab, &seconds) == 0);
    });
}

#[test]
fn signals_are_handed_on() {
    with_lab(|_| {
        let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done";
        let mut client =
            runner(&["/bin/sh", "-c", script]).stdout(Stdio::piped()).spawn().expect("the runner starts");
        let mut ready = [0; 6];
        client.stdout.as_mut().expect("a pipe").read_exact(&mut ready).unwrap();
        let pid = nix::unistd::Pid::from_raw(client.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = client.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(42), None));
    });
}

#[test]
fn a_client_that_does_not_read_stops_nobody_else() {
    with_lab(|lab| {
        let mut stuck = runner(&["yes"]).stdout(Stdio::piped()).spawn().expect("the runner starts");
        let mut begun = [0; 2];
        stuck.stdout.as_mut().expect("a pipe").read_exact(&mut begun).unwrap();
        for _ in 0..3 {
            assert_eq!(sh(lab, "echo still here").stdout, b"still here\n");
        }
        drop(stuck.stdout.take());
        // `yes` meets a closed pipe, as it would on the host.
        assert_eq!(stuck.wait().unwrap().code(), Some(128 + 13));
    });
}

#[test]
fn a_terminal_is_one() {
    with_lab(|lab| {
        let script = "test -t 0 && test -t 1 && test -t 2 && stty size && read -r _ _ _ _ _ _ _ front _ < /proc/$$/stat && test $front = $$ && echo $$ in front";
        let output =
            lab.command(["/bin/sh", "-c", script]).stdin_null().tty(true).output().expect("the lab runs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.ended, Ended::Exited(0), "{text}");
        assert!(text.contains(" in front\r\n"), "{text:?}");
    });
}

#[test]
fn kvm_in_it_is_as_good_as_hardware() {
    with_lab(|lab| {
        let probe = env!("CARGO_BIN_EXE_undercroft-lab-runner");
        let output = lab.command([probe, "--probe"]).output().expect("the lab runs it");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "KVM runs guests on the processor\n");
    });
}

/// A lab of its own, which may be ended.
struct Own {
    runtime: tempfile::TempDir,
}

impl Own {
    fn runner(&self, argv: &[&str]) -> Command {
        let mut command = runner(argv);
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).env("UNDERCROFT_LAB_MEMORY", "2048");
        command
    }

    /// The process ids of the broker and QEMU.
    fn processes(&self) -> Vec<i32> {
        let folder = self.runtime.path().to_str().expect("a path of ASCII").to_owned();
        let entries = std::fs::read_dir("/proc").expect("/proc");
        let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains(&folder) && (line.contains("broker") || line.contains("qemu-system"))
        })
        .collect()
    }
}

#[test]
fn two_starters_make_one_lab_and_a_killed_broker_leaves_nothing() {
    with_lab(|_| {
        let own = Own { runtime: tempfile::tempdir().expect("a folder") };
        let start =
            || own.runner(&["sleep", "47222"]).stderr(Stdio::piped()).spawn().expect("the runner starts");
        let mut clients = vec![Killed(start()), Killed(start())];
        eventually("broker and QEMU run", || own.processes().len() == 2);
        let own_lab =
            || own.runner(&["/bin/sh", "-c", "pidof sleep | wc -w"]).output().expect("the runner runs");
        eventually("both commands run in one lab", || own_lab().stdout == b"2\n");
        let brokers = own.processes();
        assert_eq!(brokers.len(), 2, "one broker and one QEMU: {brokers:?}");

        let is_broker = |pid: &&i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.starts_with("undercroft-lab"))
        };
        let broker = *brokers.iter().find(is_broker).expect("the broker");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(broker), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        eventually("QEMU is gone", || own.processes().is_empty());
        for Killed(client) in &mut clients {
            assert_eq!(client.wait().unwrap().code(), Some(1));
            let mut said = String::new();
            client.stderr.take().expect("a pipe").read_to_string(&mut said).unwrap();
            assert!(said.contains("the lab ended while the command ran"), "{said}");
        }
    });
}
