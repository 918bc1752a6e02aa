//! Sessions: what goes in and out of a program in a distribution, and how it ends.

use std::io::{ErrorKind, Read, Write};

use rstest::rstest;
use sha2::{Digest, Sha256};
use undercroft::{Input, Pipes, Program, Relayed, Streams};
use undercroft_harness::{
    lab,
    outcome::{Failure, Outcome, patience, until},
    vm::{Kernel, Vm, boot, guest_test},
};
use undercroft_protocol::session::{ExitStatus, WindowSize};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[rstest]
fn programs_end_as_they_would_at_home(
    #[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel,
    #[values(1, 2)] cpus: u8,
) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).cpus(cpus).distro("a", &suite.busybox).start()?;
        assert_eq!(vm.sh("a", "exit 7")?.status, ExitStatus::Code(7));
        assert_eq!(vm.sh("a", "kill -9 $$")?.status.shell(), 137);
        assert_eq!(vm.sh("a", "kill -TERM $$")?.status, ExitStatus::Signal(15));

        let apart = vm.sh("a", "echo out; echo err >&2")?;
        assert_eq!((text(&apart.stdout), text(&apart.stderr)), ("out\n".into(), "err\n".into()));

        let absent = vm.distribution("a")?.exec(&Program::new(["no-such-program"]), Pipes::ALL);
        assert_eq!(absent.expect_err("it is not there").shell_status(), Some(127));
        let directory = vm.distribution("a")?.exec(&Program::new(["/etc"]), Pipes::ALL);
        assert_eq!(directory.expect_err("it is a directory").shell_status(), Some(126));
        // The distribution took no harm from either.
        assert_eq!(vm.read("a", "echo still here")?, "still here");
        vm.power_off()
    })
}

#[test]
fn who_and_where_a_program_runs() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let show = "id -u; id -g; id -G; pwd; echo $HOME $USER $SHELL; echo \"$X\"";
        let as_user = Program::new(["/bin/sh", "-c", show]).user("user").env("X", "a b\n'c'");
        let output = text(&vm.run("a", &as_user)?.stdout);
        assert_eq!(output, "1000\n1000\n1000 2000\n/home/user\n/home/user user /bin/sh\na b\n'c'\n");
        let by_number = vm.run("a", &Program::new(["id", "-un"]).user("1000").directory("/tmp"))?;
        assert_eq!(text(&by_number.stdout), "user\n");
        assert_eq!(vm.read("a", "pwd; umask; cat /proc/1/comm; tty || true")?.lines().next(), Some("/root"));
        let nobody = vm.distribution("a")?.exec(&Program::new(["id"]).user("nobody-here"), Pipes::ALL);
        assert!(nobody.expect_err("no such user").to_string().contains("nobody-here"));
        vm.power_off()
    })
}

/// Bytes that a terminal, a line discipline or a careless string would change.
#[test]
fn binary_data_passes_unchanged() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let all: Vec<u8> = (0..=255u8).cycle().take(70_001).collect();
        assert!(vm.feed("a", &Program::new(["cat"]), all.clone())?.stdout == all);
        // End of file on input reaches the program, and output after it reaches us.
        let counted = vm.feed("a", &Program::new(["/bin/sh", "-c", "wc -c; echo after"]), all)?;
        assert_eq!(text(&counted.stdout).split_whitespace().collect::<Vec<_>>(), ["70001", "after"]);
        // A program that reads nothing does not hold anybody up.
        assert_eq!(vm.feed("a", &Program::new(["true"]), vec![0; 1 << 20])?.status, ExitStatus::Code(0));
        vm.power_off()
    })
}

#[test]
fn a_quarter_of_a_gibibyte_through_cat() -> Outcome {
    guest_test(|suite| {
        // A quarter of that where each byte is copied by software.
        let size_sent = if lab::inside() { 64 << 20 } else { 256 << 20 };
        let vm = boot(suite, Kernel::Tuned).cpus(2).distro("a", &suite.busybox).start()?;
        let mut session = vm.check(vm.distribution("a")?.exec(&Program::new(["cat"]), Pipes::ALL))?;
        let Some(Streams::Pipes { stdin: Some(mut stdin), stdout: Some(mut stdout), .. }) =
            session.take_streams()
        else {
            return Err(Failure::Harness("pipes were asked for".into()));
        };
        let sent = std::thread::spawn(move || -> std::io::Result<_> {
            let mut digest = Sha256::new();
            // Not zeros: a lost or doubled part must show.
            let mut block = vec![0u8; 1 << 16];
            for number in 0..size_sent / block.len() {
                for (at, word) in block.chunks_exact_mut(8).enumerate() {
                    let value = (number * 8192 + at) as u64;
                    word.copy_from_slice(&value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
                }
                digest.update(&block);
                stdin.write_all(&block)?;
            }
            stdin.shutdown(std::net::Shutdown::Write)?;
            Ok(digest.finalize())
        });
        let (mut digest, mut block, mut size) = (Sha256::new(), vec![0u8; 1 << 17], 0);
        loop {
            let n = stdout.read(&mut block)?;
            if n == 0 {
                break;
            }
            size += n;
            digest.update(&block[..n]);
        }
        assert_eq!(vm.check(session.wait())?, ExitStatus::Code(0));
        assert_eq!(size, size_sent);
        assert_eq!(digest.finalize(), sent.join().expect("the sender does not panic")?);
        vm.power_off()
    })
}

/// A terminal, and somebody who reads it until a text appears.
struct Screen<'a> {
    session: undercroft::Session,
    stream: std::os::unix::net::UnixStream,
    seen: String,
    vm: &'a Vm,
}

impl<'a> Screen<'a> {
    fn open(vm: &'a Vm, program: &Program) -> Result<Self, Failure> {
        let size = WindowSize { rows: 33, columns: 99 };
        let mut session = vm.check(vm.distribution("a")?.exec_terminal(program, size))?;
        let Some(Streams::Terminal(stream)) = session.take_streams() else {
            return Err(Failure::Harness("a terminal was asked for".into()));
        };
        stream.set_read_timeout(Some(patience()))?;
        Ok(Self { session, stream, seen: String::new(), vm })
    }

    fn until(&mut self, wanted: &str) -> Result<(), Failure> {
        let mut block = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(wanted) {
                self.seen.drain(..at + wanted.len());
                return Ok(());
            }
            match self.stream.read(&mut block) {
                Ok(0) => {
                    return Err(Failure::Failed(format!(
                        "the terminal ended before {wanted:?}: {:?}",
                        self.seen
                    )));
                }
                Ok(n) => self.seen.push_str(&text(&block[..n])),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Failure::late(&format!("{wanted:?} did not appear: {:?}", self.seen)));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn type_in(&mut self, keys: &str) -> Outcome {
        Ok(self.stream.write_all(keys.as_bytes())?)
    }

    fn end(mut self) -> Result<ExitStatus, Failure> {
        self.vm.check(self.session.wait())
    }
}

/// Says that it has begun, in a word that what is typed does not have: from then on the keys are the program's.
const SLEEPS: &str = "sh -c 'echo be''gun; exec sleep 1000'";

#[rstest]
fn a_terminal_is_one(#[values(Kernel::Stock, Kernel::Tuned)] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, kernel).distro("a", &suite.busybox).start()?;
        let mut screen = Screen::open(&vm, &Program::login_shell())?;
        screen.type_in("stty size; tty; echo $((6*7))done\n")?;
        screen.until("33 99")?;
        screen.until("/dev/pts/")?;
        screen.until("42done")?;

        vm.check(screen.session.control().resize(WindowSize { rows: 20, columns: 70 }))?;
        // Keys and sizes come by different ways: what is typed may be quicker.
        screen.type_in("until stty size | grep -x '20 70'; do sleep 0.1; done\n")?;
        screen.until("\n20 70")?;

        // Ctrl-C ends the program and not the shell, and not the machine.
        screen.type_in(&format!("{SLEEPS}; echo status=$?\n"))?;
        screen.until("begun")?;
        screen.type_in("\x03")?;
        screen.type_in("echo al''ive\n")?;
        screen.until("alive")?;

        // Job control: stop it, see it, end it (what is stopped does not hear a SIGTERM).
        screen.type_in(&format!("{SLEEPS}\n"))?;
        screen.until("begun")?;
        screen.type_in("\x1a")?;
        screen.until("Stopped")?;
        screen.type_in("jobs; kill -9 %1\n")?;
        screen.until("Stopped")?;
        // The first is refused if the shell has not noticed yet that its job is gone.
        screen.type_in("exit 5\nexit 5\n")?;
        assert_eq!(screen.end()?, ExitStatus::Code(5));
        vm.check(vm.machine().ping())?;
        vm.power_off()
    })
}

/// As `top` and `vi` use it: raw keys, and a whole screen.
#[test]
fn full_screen_programs_work() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let mut vi = Screen::open(&vm, &Program::new(["vi", "/tmp/written"]))?;
        vi.until("written")?;
        vi.type_in("ihello from vi\x1b")?;
        // The escape key is known by what does not follow it: only when the mode is shown may something follow.
        vi.until("- /tmp/written [Modified]")?;
        vi.type_in(":wq\r")?;
        assert_eq!(vi.end()?, ExitStatus::Code(0));
        assert_eq!(vm.read("a", "cat /tmp/written")?, "hello from vi");
        let mut top = Screen::open(&vm, &Program::new(["top"]))?;
        top.until("Load average")?;
        top.type_in("q")?;
        assert_eq!(top.end()?, ExitStatus::Code(0));
        vm.power_off()
    })
}

/// Nothing of a session that the host left stays, and what a session left in the background does not hold it up.
#[test]
fn what_sessions_leave_behind() -> Outcome {
    guest_test(|suite| {
        let vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let background = vm.sh("a", "sleep 4321 & echo started")?;
        assert_eq!(text(&background.stdout), "started\n");
        assert_eq!(vm.read("a", "ps -o args | grep -c '[s]leep 4321'")?, "1");

        let abandoned = vm.check(vm.distribution("a")?.exec(&Program::new(["sleep", "1234"]), Pipes::ALL))?;
        assert_eq!(vm.read("a", "ps -o args | grep -c '[s]leep 1234'")?, "1");
        drop(abandoned);
        until("what the host abandoned still runs", || {
            Ok(vm.read("a", "ps -o args | grep -c '[s]leep 1234' || true")? == "0")
        })?;

        // Orphans are reaped: no zombie is left of a hundred.
        vm.read("a", "for i in $(seq 100); do (true &) ; done")?;
        until("orphans are not reaped", || Ok(vm.read("a", "ps -o stat,comm | grep -c ^Z || true")? == "0"))?;

        // Many, one after another and together.
        let sessions: Result<Vec<_>, _> = (0..20)
            .map(|n| {
                vm.distribution("a")
                    .map(|d| d.exec(&Program::new(["echo".to_owned(), n.to_string()]), Pipes::ALL))
            })
            .collect();
        for (n, session) in sessions?.into_iter().enumerate() {
            let session = vm.check(session)?;
            let mut out = Vec::new();
            vm.check(session.relay(Input::Null, &mut out, std::io::sink()))?;
            assert_eq!(text(&out), format!("{n}\n"));
        }
        vm.power_off()
    })
}
