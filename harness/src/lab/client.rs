//! One command in the lab, seen from the host: a connection to the broker, and this process's streams.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use undercroft_lab::launch::{CONSOLE, SOCKET};
use undercroft_lab::pump::Pump;
use undercroft_lab::wire::{CHUNK, Ended, Frame, Message, Payload, Start, Stream, VERSION, WINDOW};

use super::{Command, Input, LabError, terminal};

/// The command's number on its own connection.
const COMMAND: u32 = 1;

/// What is written at once to a descriptor that may block: a pipe that poll(2) calls writable takes that much.
const PIPE_BUF: usize = 4096;

/// Signals that are handed on.
const FORWARDED: &[Signal] =
    &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// A command's end and, where they were collected, its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// Connects to the broker of the lab in that folder, and says hello.
///
/// By way of the folder's descriptor, because a socket's path may be 107 bytes long at most.
pub(super) fn connect(folder: &Path) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

pub(super) fn run(command: &Command<'_>, collect: bool) -> Result<Output, LabError> {
    let stream = connect(&command.folder).map_err(LabError::at("connecting to the lab"))?;
    let mut broker = Pump::new(stream.into()).map_err(LabError::at("connecting to the lab"))?;
    broker.say(0, Message::Hello { version: VERSION, name: String::new() });
    broker.say(COMMAND, Message::Start(start(command)?));

    let signals = Signals::new(command)?;
    let _raw = command.tty.then(terminal::Raw::new);
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut session = Session {
        broker,
        stdin: match &command.input {
            Input::Inherited => Some(stdin.as_fd()),
            Input::Null => None,
            Input::From(fd) => Some(*fd),
        },
        credit: WINDOW,
        outputs: [Sink::new(stdout.as_fd(), collect), Sink::new(stderr.as_fd(), collect)],
        ended: None,
        signals,
    };
    loop {
        if let Some(ended) = session.ended.filter(|_| session.outputs.iter().all(|o| o.queue.is_empty())) {
            let [stdout, stderr] = session.outputs.map(|o| o.collected.unwrap_or_default());
            return Ok(Output { ended, stdout, stderr });
        }
        if !session.turn()? {
            return Err(LabError::Lost { console: command.folder.join(CONSOLE) });
        }
    }
}

fn start(command: &Command<'_>) -> Result<Start, LabError> {
    let bytes = |s: &std::ffi::OsString| s.as_bytes().to_vec();
    let directory = match &command.directory {
        Some(directory) => directory.clone(),
        None => std::env::current_dir().map_err(LabError::at("finding the current directory"))?,
    };
    let groups = nix::unistd::getgroups().map_err(|e| LabError::at("asking for groups")(e.into()))?;
    Ok(Start {
        argv: command.argv.iter().map(bytes).collect(),
        environment: command.environment.iter().map(|(n, v)| (bytes(n), bytes(v))).collect(),
        directory,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        terminal: command.tty.then(terminal::size),
        no_stdin: matches!(command.input, Input::Null) && !command.tty,
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
    })
}

/// Signals that come as bytes while a command runs, and as they came before afterwards.
struct Signals {
    fd: Option<SignalFd>,
    before: SigSet,
}

impl Signals {
    fn new(command: &Command<'_>) -> Result<Self, LabError> {
        let mut wanted = SigSet::empty();
        if command.forward_signals {
            FORWARDED.iter().for_each(|s| wanted.add(*s));
        }
        if command.tty {
            wanted.add(Signal::SIGWINCH);
        }
        let failed = |e: Errno| LabError::at("blocking signals")(e.into());
        let before = wanted.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed)?;
        let mut signals = Signals { fd: None, before };
        if command.forward_signals || command.tty {
            let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
            signals.fd = Some(SignalFd::with_flags(&wanted, flags).map_err(failed)?);
        }
        Ok(signals)
    }

    fn next(&mut self) -> Option<Signal> {
        let signal = self.fd.as_mut()?.read_signal().ok()??;
        Signal::try_from(signal.ssi_signo as i32).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Where an output goes.
struct Sink<'a> {
    fd: BorrowedFd<'a>,
    collected: Option<Vec<u8>>,
    /// Never more than [`WINDOW`] bytes: credit is given when they are written.
    queue: VecDeque<u8>,
    gone: bool,
}

impl<'a> Sink<'a> {
    fn new(fd: BorrowedFd<'a>, collect: bool) -> Self {
        Sink { fd, collected: collect.then(Vec::new), queue: VecDeque::new(), gone: false }
    }
}

struct Session<'a> {
    broker: Pump,
    stdin: Option<BorrowedFd<'a>>,
    /// Bytes of stdin that may be sent.
    credit: u32,
    outputs: [Sink<'a>; 2],
    ended: Option<Ended>,
    signals: Signals,
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Session<'_> {
    /// Waits for something to happen and does what follows from it. `false` if the broker is gone.
    fn turn(&mut self) -> Result<bool, LabError> {
        self.broker.flush()?;
        let mut interest = PollFlags::POLLIN;
        if self.broker.pending() > 0 {
            interest |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.broker.as_fd(), interest)];
        let mut position = [None; 4];
        let mut watch = |slot: usize, fd, flags| {
            position[slot] = Some(fds.len());
            fds.push(PollFd::new(fd, flags));
        };
        if let Some(stdin) = self.stdin.filter(|_| self.credit > 0 && self.ended.is_none()) {
            watch(0, stdin, PollFlags::POLLIN);
        }
        for (slot, output) in self.outputs.iter().enumerate() {
            if !output.queue.is_empty() {
                watch(1 + slot, output.fd, PollFlags::POLLOUT);
            }
        }
        if let Some(signals) = &self.signals.fd {
            watch(3, signals.as_fd(), PollFlags::POLLIN);
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(LabError::at("waiting for the lab")(e.into())),
        }
        let happened = |i: usize| fds[i].revents().is_some_and(|r| !r.is_empty());
        let from_broker = happened(0);
        let [stdin, stdout, stderr, signals] = position.map(|p| p.is_some_and(happened));
        if signals {
            self.forward();
        }
        if stdin {
            self.read_stdin();
        }
        if stdout {
            self.write_output(0);
        }
        if stderr {
            self.write_output(1);
        }
        if from_broker && self.ended.is_none() {
            let open = self.broker.fill(1 << 20)?;
            while let Some(frame) = self.broker.next()? {
                self.obey(frame)?;
            }
            return Ok(open || self.ended.is_some());
        }
        Ok(true)
    }

    fn forward(&mut self) {
        while let Some(signal) = self.signals.next() {
            let message = match signal {
                Signal::SIGWINCH => Message::Resize(terminal::size()),
                signal => Message::Signal(signal as i32),
            };
            self.broker.say(COMMAND, message);
        }
    }

    fn read_stdin(&mut self) {
        let Some(stdin) = self.stdin else { return };
        let mut bytes = vec![0; CHUNK.min(self.credit as usize)];
        match nix::unistd::read(stdin, &mut bytes) {
            Ok(n) if n > 0 => {
                bytes.truncate(n);
                self.credit -= n as u32;
                self.broker.queue(&Frame::data(COMMAND, Stream::Stdin, bytes));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                self.stdin = None;
                self.broker.say(COMMAND, Message::End(Stream::Stdin));
            }
        }
    }

    fn write_output(&mut self, which: usize) {
        let output = &mut self.outputs[which];
        let (front, _) = output.queue.as_slices();
        match nix::unistd::write(output.fd, &front[..front.len().min(PIPE_BUF)]) {
            Ok(n) => {
                output.queue.drain(..n);
                self.broker.say(COMMAND, Message::Credit(STREAMS[which], n as u32));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => {
                // Our own reader is gone: the command's pipe is closed too, and it learns in its own way.
                output.queue.clear();
                output.gone = true;
                self.broker.say(COMMAND, Message::End(STREAMS[which]));
            }
        }
    }

    fn obey(&mut self, frame: Frame) -> Result<(), LabError> {
        match frame.payload {
            Payload::Data(Stream::Stdin, _) => {}
            Payload::Data(stream, bytes) => {
                let output = &mut self.outputs[if stream == Stream::Stderr { 1 } else { 0 }];
                if let Some(collected) = &mut output.collected {
                    self.broker.say(COMMAND, Message::Credit(stream, bytes.len() as u32));
                    collected.extend_from_slice(&bytes);
                } else if !output.gone {
                    output.queue.extend(bytes);
                }
            }
            Payload::Message(Message::Credit(Stream::Stdin, bytes)) => {
                self.credit = self.credit.saturating_add(bytes);
            }
            Payload::Message(Message::End(Stream::Stdin)) => self.stdin = None,
            Payload::Message(Message::Ended(ended)) => self.ended = Some(ended),
            Payload::Message(Message::Refused(reason)) => return Err(LabError::Refused(reason)),
            Payload::Message(_) => {}
        }
        Ok(())
    }
}
