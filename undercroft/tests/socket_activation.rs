//! The service as systemd starts it: with a socket that is open already (sd_listen_fds(3)). No machine is needed for that.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs::{self, DirBuilder},
    io::{BufRead, BufReader},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_undercroft");
/// How long anything may take, on a host that is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// A user that has never used it.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        let user = Self(tempfile::tempdir().unwrap());
        DirBuilder::new().mode(0o700).create(user.0.path().join("undercroft")).unwrap();
        user
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("undercroft/service.sock")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        for variable in ["HOME", "XDG_RUNTIME_DIR"] {
            command.env(variable, self.0.path());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// The service, with this socket as descriptor 3. The shell has the process id that its variable must name.
    fn serve(&self, listener: UnixListener) -> Served {
        let mut shell = self.command("/bin/sh");
        shell.args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" service", PROGRAM]);
        Served(shell.stdin(OwnedFd::from(listener)).spawn().unwrap())
    }

    fn list(&self) -> (bool, String) {
        let output = self.command(PROGRAM).args(["list", "-q"]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

struct Served(Child);

impl Served {
    fn ask_to_stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ends_well(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return status.success(),
                None => assert!(begun.elapsed() < LIMIT, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_socket_that_was_given_is_served_and_left_where_it_is() {
    let user = User::new();
    let listener = UnixListener::bind(user.socket()).unwrap();
    let inode = || fs::metadata(user.socket()).unwrap().ino();
    let before = inode();
    // systemd keeps its own, and starts the service when somebody connects.
    let kept = listener.try_clone().unwrap();
    let mut served = user.serve(listener);
    assert_eq!(user.list(), (true, String::new()));
    served.ask_to_stop();
    assert!(served.ends_well());
    assert_eq!(inode(), before);
    // Who connects between two services waits for the next one.
    UnixStream::connect(user.socket()).unwrap();
    let mut again = user.serve(kept);
    assert_eq!(user.list(), (true, String::new()));
    again.ask_to_stop();
    assert!(again.ends_well());
}

#[test]
fn systemd_takes_over_from_a_service_that_a_command_started() {
    let user = User::new();
    let mut first = Served(user.command(PROGRAM).arg("service").spawn().unwrap());
    let mut said = String::new();
    BufReader::new(first.0.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    // The file is systemd's from now on.
    fs::remove_file(user.socket()).unwrap();
    let mut second = user.serve(UnixListener::bind(user.socket()).unwrap());
    first.ask_to_stop();
    assert!(first.ends_well());
    assert!(user.socket().exists(), "it has removed another's socket");
    assert_eq!(user.list(), (true, String::new()));
    second.ask_to_stop();
    assert!(second.ends_well());
}
