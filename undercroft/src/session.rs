//! One process tree started from the host in a distribution, with its streams.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use undercroft_protocol::session::{ExitStatus, InitRequest, Program as What, WindowSize};

use crate::{
    distribution::Inner,
    error::{Error, Result},
};

/// Bytes moved at a time.
const CHUNK: usize = 256 << 10;
/// How long a stream may be silent after its process ended, before a background process that still holds it is left
/// alone.
const SILENCE: Duration = Duration::from_millis(500);

/// A program to run in a distribution, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub(crate) what: What,
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) directory: Option<Vec<u8>>,
    pub(crate) user: Option<String>,
}

impl Program {
    fn of(what: What) -> Self {
        Self { what, environment: Vec::new(), directory: None, user: None }
    }

    /// The user's login shell.
    pub fn login_shell() -> Self {
        Self::of(What::LoginShell)
    }

    /// A command line for the user's shell.
    pub fn shell(line: impl Into<Vec<u8>>) -> Self {
        Self::of(What::ShellCommand(line.into()))
    }

    /// What the protocol calls it.
    pub fn what(what: What) -> Self {
        Self::of(what)
    }

    /// A program, found in PATH, and its arguments.
    pub fn new<A: Into<Vec<u8>>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::of(What::Argv(arguments.into_iter().map(Into::into).collect()))
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Its working directory, instead of the user's home.
    pub fn directory(mut self, directory: impl Into<Vec<u8>>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Its user, by name or number, instead of the distribution's default.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }
}

/// A session's open streams.
#[derive(Debug)]
pub enum Streams {
    /// What was asked for with [`Pipes`](crate::Pipes).
    Pipes {
        /// Shutting its sending side down is end of file for the process.
        stdin: Option<UnixStream>,
        /// Ends when nobody in the distribution holds the pipe any more.
        stdout: Option<UnixStream>,
        /// The same.
        stderr: Option<UnixStream>,
    },
    /// Both directions of a terminal.
    Terminal(UnixStream),
}

/// Where a session's input comes from.
#[derive(Debug)]
pub enum Input {
    /// Nowhere: end of file at once.
    Null,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file, pipe or terminal of the host.
    File(OwnedFd),
}

/// What a session wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How its process ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// What can be done to a running session, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steer {
    /// Send a signal to the terminal's foreground process group, or the process's own.
    Signal(i32),
    /// Its terminal's new size.
    Resize(WindowSize),
    /// End it as if its terminal were hung up.
    Abandon,
}

/// A way to a running session, for other threads.
pub trait Steering: Send + Sync + std::fmt::Debug {
    /// Passes it on. That the session has ended is no error.
    fn steer(&self, what: Steer) -> Result<()>;
}

/// A session whose streams can be connected with others.
pub trait Relayed {
    /// A way to it while it runs.
    fn steering(&self) -> Box<dyn Steering>;

    /// Moves input and output until the process has ended and all that it wrote was moved.
    ///
    /// Output that its writer refuses (a closed pipe) closes the stream, and the process learns it as it would on one
    /// machine. A background process that keeps the streams open does not keep this from returning.
    fn relay(self, input: Input, stdout: impl Write + Send, stderr: impl Write + Send) -> Result<ExitStatus>;
}

/// A started process. Dropping it before it ended abandons it: it gets SIGHUP, then SIGKILL.
#[derive(Debug)]
pub struct Session {
    control: Control,
    streams: Option<Streams>,
    pub(crate) pid: u32,
    pub(crate) over: bool,
}

/// What can be done to a session from other threads.
#[derive(Debug, Clone)]
pub struct Control {
    distribution: Arc<Inner>,
    id: u64,
}

impl Control {
    /// Sends a signal to the terminal's foreground process group, or the process's own.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.distribution.send(&InitRequest::Signal { session: self.id, signal })
    }

    /// Tells the terminal's new size.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        self.distribution.send(&InitRequest::Resize { session: self.id, size })
    }

    /// Lets the session end as if its terminal were hung up.
    pub fn abandon(&self) -> Result<()> {
        self.distribution.send(&InitRequest::Abandon { session: self.id })
    }
}

impl Session {
    pub(crate) fn new(distribution: Arc<Inner>, id: u64) -> Self {
        Self { control: Control { distribution, id }, streams: None, pid: 0, over: false }
    }

    pub(crate) fn with(mut self, streams: Streams) -> Self {
        self.streams = Some(streams);
        self
    }

    /// Its process id in the distribution.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A handle for other threads.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Its streams, for who wants to read and write them himself; once.
    pub fn take_streams(&mut self) -> Option<Streams> {
        self.streams.take()
    }

    /// Waits for the process's end. Its output may still be on the way.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let Control { distribution, id } = &self.control;
        let status = distribution
            .wait("the session's end", None, |state| distribution.session(state, *id)?.exited.map(Ok))?;
        self.over = true;
        Ok(status)
    }

    /// Gives the bytes as input, and collects the output.
    pub fn output(self, input: impl Into<Vec<u8>>) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.relay(Input::Bytes(input.into()), &mut stdout, &mut stderr)?;
        Ok(Output { status, stdout, stderr })
    }
}

impl Steering for Control {
    fn steer(&self, what: Steer) -> Result<()> {
        match what {
            Steer::Signal(signal) => self.signal(signal),
            Steer::Resize(size) => self.resize(size),
            Steer::Abandon => self.abandon(),
        }
    }
}

impl Relayed for Session {
    fn steering(&self) -> Box<dyn Steering> {
        Box::new(self.control())
    }

    fn relay(
        mut self,
        input: Input,
        stdout: impl Write + Send,
        stderr: impl Write + Send,
    ) -> Result<ExitStatus> {
        let streams = self.take_streams();
        relay(streams, input, stdout, stderr, || self.wait())
    }
}

/// Moves what a session's streams carry until `wait` says that its process has ended, and the rest after that.
pub(crate) fn relay(
    streams: Option<Streams>,
    input: Input,
    stdout: impl Write + Send,
    stderr: impl Write + Send,
    wait: impl FnOnce() -> Result<ExitStatus>,
) -> Result<ExitStatus> {
    let (stdin, out, err) = match streams {
        Some(Streams::Pipes { stdin, stdout, stderr }) => (stdin, stdout, stderr),
        Some(Streams::Terminal(stream)) => {
            let input = stream
                .try_clone()
                .map_err(|source| Error::System { what: "use the session's terminal twice", source })?;
            (Some(input), Some(stream), None)
        }
        None => (None, None, None),
    };
    let (cancel, cancelled) =
        UnixStream::pair().map_err(|source| Error::System { what: "make a socket pair", source })?;
    let hang_up = stdin
        .as_ref()
        .map(UnixStream::try_clone)
        .transpose()
        .map_err(|source| Error::System { what: "use the session's input twice", source })?;
    let exited = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || feed(input, stdin, &cancelled));
        let exited = &exited;
        let out = scope.spawn(move || out.map(|stream| drain(stream, stdout, exited)));
        let err = scope.spawn(move || err.map(|stream| drain(stream, stderr, exited)));
        let status = wait();
        exited.store(true, Ordering::Release);
        // A thread that panicked is told below by its join; the writers are the caller's.
        for thread in [out, err] {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        // The feeding thread waits for input, or for the session to take some.
        drop(cancel);
        if let Some(stream) = hang_up {
            // It may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        status
    })
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.over {
            // A distribution that is gone needs no telling.
            let _ = self.control.abandon();
        }
        self.control.distribution.forget_session(self.control.id);
    }
}

/// Moves input to the session until it ends, the session refuses more, or `cancelled` hangs up.
fn feed(input: Input, stream: Option<UnixStream>, cancelled: &UnixStream) {
    let Some(mut stream) = stream else { return };
    match input {
        Input::Null => {}
        // The process may end before it has read all; that is its right.
        Input::Bytes(bytes) => drop(stream.write_all(&bytes)),
        Input::File(file) => feed_file(file, &mut stream, cancelled),
    }
    // Fails only if the session is gone already.
    let _ = stream.shutdown(Shutdown::Write);
}

fn feed_file(file: OwnedFd, stream: &mut UnixStream, cancelled: &UnixStream) {
    let mut file = std::fs::File::from(file);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = [
            PollFd::new(file.as_fd(), PollFlags::POLLIN),
            PollFd::new(cancelled.as_fd(), PollFlags::POLLIN),
            // Asked for nothing: tells only that the session has closed its input.
            PollFd::new(stream.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if fds[1].any().unwrap_or(true) || fds[2].any().unwrap_or(true) {
            return;
        }
        match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A terminal that hung up, a file that cannot be read: the process sees the end of its input.
            Err(_) => return,
        }
    }
}

/// Moves a stream's bytes to a writer until its end, or until it is silent for a while after the process ended.
fn drain(mut stream: UnixStream, mut writer: impl Write, exited: &AtomicBool) {
    if stream.set_read_timeout(Some(Duration::from_millis(50))).is_err() {
        return;
    }
    let mut buffer = vec![0; CHUNK];
    let mut silent_since = None;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                silent_since = None;
                if write(&mut writer, &buffer[..n]).is_err() {
                    // Closing the stream tells the process, as a broken pipe would.
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if exited.load(Ordering::Acquire)
                    && silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE
                {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn write(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes)?;
    writer.flush()
}
