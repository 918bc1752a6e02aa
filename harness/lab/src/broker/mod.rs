//! The process that keeps a lab alive: it starts virtiofsd and QEMU, waits for the agent, then hands frames on.
//!
//! Its stdout is a pipe to whoever started it and carries one line: `ready`, or why there is no lab. Its end is the lab's
//! end: QEMU dies with it (`PR_SET_PDEATHSIG`), and each virtiofsd with QEMU's connection.

mod qemu;
mod relay;

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use std::os::fd::AsFd;

use undercroft_lab::launch::{CONSOLE, Launch, QEMU_LOG, SOCKET};
use undercroft_lab::pump::{Pump, PumpError};
use undercroft_lab::wire::{Frame, Message, Payload, VERSION};

use relay::{Over, Relay};

/// How long L1 may take to be ready: it takes 3 to 6 seconds, and many times that on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// Lines of L1's console that are shown when it does not come up.
const LAST_LINES: usize = 15;

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    /// A step on the host failed.
    #[error("{what}: {source}")]
    Step {
        /// The step.
        what: String,
        /// Its error.
        source: std::io::Error,
    },
    /// The connection to the agent failed.
    #[error("the connection to the agent: {0}")]
    Port(#[from] PumpError),
    /// QEMU ended.
    #[error("QEMU ended with {0}")]
    QemuEnded(String),
    /// No hello.
    #[error("the agent in the lab did not answer within {} seconds", PATIENCE.as_secs())]
    NoAgent,
    /// Another agent, or another version.
    #[error("the agent in the lab is of another build: it said {0:?}")]
    OtherAgent(String),
    /// Asked to end before it was ready.
    #[error("ended by a signal before it was ready")]
    Stopped,
}

impl BrokerError {
    pub(crate) fn at(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        BrokerError::Step { what: what.into(), source: source.into() }
    }
}

pub(crate) fn main(launch: &OsStr) -> ExitCode {
    match start(Path::new(launch)) {
        Ok(mut lab) => {
            println!("ready");
            let _ = std::io::stdout().flush();
            // Whoever started us waits for the end of this pipe's line only; but it may be a test's captured stdout.
            close_stdout();
            let why = lab.serve();
            eprintln!("lab broker: {why}");
            let _ = std::fs::remove_file(lab.launch.folder.join(SOCKET));
            lab.end();
            ExitCode::SUCCESS
        }
        Err((error, console)) => {
            println!("{error}{}", console.as_deref().map(last_lines).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// A running lab, seen from the broker.
struct Lab {
    launch: Launch,
    machine: qemu::Machine,
    relay: Relay,
    signals: SignalFd,
}

type Failure = (BrokerError, Option<std::path::PathBuf>);

fn start(file: &Path) -> Result<Lab, Failure> {
    let begun = Instant::now();
    let early = |e: BrokerError| (e, None);
    let bytes = std::fs::read(file).map_err(|e| early(BrokerError::at(file.display().to_string(), e)))?;
    let launch: Launch = postcard::from_bytes(&bytes).map_err(|e| {
        early(BrokerError::at(
            file.display().to_string(),
            std::io::Error::new(std::io::ErrorKind::InvalidData, e),
        ))
    })?;
    let mut watched = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        watched.add(signal);
    }
    watched.thread_block().map_err(|e| early(BrokerError::at("blocking signals", e)))?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| early(BrokerError::at("making a signalfd", e)))?;
    std::env::set_current_dir(&launch.folder)
        .map_err(|e| early(BrokerError::at(launch.folder.display().to_string(), e)))?;

    let console = launch.folder.join(CONSOLE);
    let late = |e: BrokerError| (e, Some(console.clone()));
    let nonce = nonce();
    let (machine, port) = qemu::Machine::start(&launch, &nonce).map_err(late)?;
    let mut machine = machine;
    let port = match greet(&mut machine, port, &signals, &nonce, begun) {
        Ok(port) => port,
        Err(e) => {
            machine.end();
            return Err(late(e));
        }
    };
    let _ = std::fs::remove_file(SOCKET);
    // By a relative name, because a socket's path may be 107 bytes long at most.
    let listener =
        UnixListener::bind(SOCKET).map_err(|e| late(BrokerError::at("listening for clients", e)))?;
    let relay = Relay::new(port, listener, &launch, machine.pid(), begun).map_err(|e| late(e.into()))?;
    Ok(Lab { launch, machine, relay, signals })
}

/// Waits for the agent's hello.
fn greet(
    machine: &mut qemu::Machine,
    port: OwnedFd,
    signals: &SignalFd,
    nonce: &str,
    begun: Instant,
) -> Result<Pump, BrokerError> {
    let mut port = Pump::new(port).map_err(PumpError::from)?;
    loop {
        let left = PATIENCE.checked_sub(begun.elapsed()).ok_or(BrokerError::NoAgent)?;
        let mut fds =
            [PollFd::new(port.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(BrokerError::at("poll", e)),
        }
        if let Some(status) = machine.ended() {
            return Err(BrokerError::QemuEnded(status));
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                return Err(BrokerError::Stopped);
            }
        }
        if !port.fill(64 << 10)? {
            return Err(BrokerError::QemuEnded("its port closed".into()));
        }
        match port.next()? {
            Some(Frame { payload: Payload::Message(Message::Hello { version, name }), .. })
                if version == VERSION && name == nonce =>
            {
                return Ok(port);
            }
            Some(other) => return Err(BrokerError::OtherAgent(format!("{:?}", other.payload))),
            None => {}
        }
    }
}

impl Lab {
    /// Serves clients until there is a reason to end.
    fn serve(&mut self) -> String {
        loop {
            if let Err(over) = self.relay.turn(&self.signals) {
                match over {
                    Over::Signals => {}
                    Over::Idle => return "nothing to do for a while, the lab ends".into(),
                    Over::Asked => return "asked to end".into(),
                    Over::Silent(silence) => {
                        return format!("the agent has said nothing for {} seconds", silence.as_secs());
                    }
                    Over::Broken(e) => return format!("the connection to the agent: {e}"),
                }
            }
            while let Ok(Some(signal)) = self.signals.read_signal() {
                if signal.ssi_signo != Signal::SIGCHLD as u32 {
                    return format!("ended by signal {}", signal.ssi_signo);
                }
            }
            if let Some(status) = self.machine.ended() {
                return format!("QEMU ended with {status}");
            }
        }
    }

    fn end(mut self) {
        self.machine.end();
    }
}

/// A number that no other boot has.
fn nonce() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), time.as_nanos())
}

/// Lets go of the pipe on stdout.
fn close_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

/// What QEMU said, the end of the console's log, and where all of it is.
fn last_lines(console: &Path) -> String {
    let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let (qemu, linux) = (text(&console.with_file_name(QEMU_LOG)), text(console));
    let all: Vec<&str> =
        qemu.lines().chain(linux.lines()).map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let last = &all[all.len().saturating_sub(LAST_LINES)..];
    let shown: String = last.iter().map(|line| format!("\n  | {line}")).collect();
    format!("{shown}\n  the whole console: {}", console.display())
}
