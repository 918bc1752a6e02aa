//! PID 1 of L1: loads KVM, makes the host's files visible at their own paths, then starts commands for the broker.

mod child;
mod command;
mod mounts;
mod network;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_settime};

use undercroft_lab::launch;
use undercroft_lab::pump::{Pump, PumpError};
use undercroft_lab::wire::{Ended, Frame, Message, Payload, VERSION};

use command::Command;

/// Commands read no more output while this many bytes wait for the port.
const PORT_QUEUE: usize = 1 << 20;

/// Never returns: the last thing PID 1 does is to power off, with the reason on the console.
pub(crate) fn main() -> ! {
    let Err(error) = run();
    println!("lab agent: {error}");
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}

fn run() -> Result<Infallible, AgentError> {
    let nonce = mounts::prepare()?;
    let port: OwnedFd =
        open("/dev/vport0p1", OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
            .map_err(|e| AgentError::at("opening the port /dev/vport0p1", e))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().map_err(|e| AgentError::at("blocking SIGCHLD", e))?;
    let deaths = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| AgentError::at("making a signalfd", e))?;
    let mut agent = Agent { port: Pump::new(port)?, commands: BTreeMap::new() };
    agent.port.say(0, Message::Hello { version: VERSION, name: nonce });
    println!("lab agent: ready");
    loop {
        agent.turn(&deaths)?;
    }
}

/// Why L1 cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// A step failed.
    #[error("{what}: {source}")]
    Step {
        /// The step.
        what: String,
        /// Its error.
        source: io::Error,
    },
    /// The port failed.
    #[error("{0}")]
    Port(#[from] PumpError),
    /// A descriptor failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The broker has closed the port.
    #[error("the broker has gone")]
    Gone,
}

impl AgentError {
    pub(crate) fn at(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        AgentError::Step { what: what.into(), source: source.into() }
    }
}

struct Agent {
    port: Pump,
    commands: BTreeMap<u32, Command>,
}

/// What a polled descriptor stands for.
#[derive(Clone, Copy)]
enum Watched {
    Port,
    Deaths,
    Input(u32),
    Output(u32, usize),
}

impl Agent {
    /// Waits for something to happen, and does what follows from it.
    fn turn(&mut self, deaths: &SignalFd) -> Result<(), AgentError> {
        self.port.flush()?;
        let ready = self.wait(deaths)?;
        for watched in ready {
            match watched {
                Watched::Port => {
                    if !self.port.fill(256 << 10)? {
                        return Err(AgentError::Gone);
                    }
                    while let Some(frame) = self.port.next()? {
                        self.obey(frame);
                    }
                }
                Watched::Deaths => {
                    while let Ok(Some(_)) = deaths.read_signal() {}
                    self.reap();
                }
                Watched::Input(n) => {
                    if let Some(command) = self.commands.get_mut(&n) {
                        command.feed(n, &mut self.port);
                    }
                }
                Watched::Output(n, which) => {
                    if let Some(command) = self.commands.get_mut(&n) {
                        command.drain(n, which, &mut self.port);
                    }
                }
            }
        }
        self.bury();
        Ok(())
    }

    fn wait(&self, deaths: &SignalFd) -> Result<Vec<Watched>, AgentError> {
        let mut fds = Vec::new();
        let mut meaning = Vec::new();
        let mut port = PollFlags::POLLIN;
        if self.port.pending() > 0 {
            port |= PollFlags::POLLOUT;
        }
        fds.push(PollFd::new(self.port.as_fd(), port));
        meaning.push(Watched::Port);
        fds.push(PollFd::new(deaths.as_fd(), PollFlags::POLLIN));
        meaning.push(Watched::Deaths);
        let room = self.port.pending() < PORT_QUEUE;
        for (&n, command) in &self.commands {
            if let Some(fd) = command.wants_to_feed() {
                fds.push(PollFd::new(fd, PollFlags::POLLOUT));
                meaning.push(Watched::Input(n));
            }
            for which in 0..2 {
                if let Some(fd) = command.wants_to_drain(which).filter(|_| room) {
                    fds.push(PollFd::new(fd, PollFlags::POLLIN));
                    meaning.push(Watched::Output(n, which));
                }
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(AgentError::at("poll", e)),
        }
        let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        Ok(fds.iter().zip(meaning).filter(|(fd, _)| happened(fd)).map(|(_, m)| m).collect())
    }

    fn obey(&mut self, frame: Frame) {
        let n = frame.channel;
        match frame.payload {
            Payload::Message(Message::Start(start)) => {
                if self.commands.is_empty() {
                    set_clock(start.now);
                }
                match Command::start(n, &start) {
                    Ok(command) => {
                        self.port.say(n, Message::Started(command.pid()));
                        self.commands.insert(n, command);
                    }
                    Err(reason) => self.port.say(n, Message::Refused(reason)),
                }
            }
            Payload::Message(Message::Ping) => self.port.say(n, Message::Pong),
            Payload::Message(message) => {
                if let Some(command) = self.commands.get_mut(&n) {
                    command.obey(n, &message, &mut self.port);
                }
            }
            Payload::Data(_, bytes) => {
                if let Some(command) = self.commands.get_mut(&n) {
                    command.take(&bytes);
                    command.feed(n, &mut self.port);
                }
            }
        }
    }

    /// Takes the statuses of all that died; orphans are PID 1's children too, and nobody asks for theirs.
    fn reap(&mut self) {
        loop {
            let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, Ended::Exited(status as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Signalled(signal as u8)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            for command in self.commands.values_mut() {
                if command.pid() == pid.as_raw() {
                    command.died(ended);
                }
            }
        }
    }

    /// Reports the commands that are over and whose output has all gone out.
    fn bury(&mut self) {
        let port = &mut self.port;
        let over: Vec<u32> =
            self.commands.iter_mut().filter_map(|(&n, c)| c.is_over(n, port).then_some(n)).collect();
        for n in over {
            if let Some(ended) = self.commands.remove(&n).and_then(Command::bury) {
                self.port.say(n, Message::Ended(ended));
            }
        }
    }
}

/// Sets the clock to the host's if they are further apart than a message is under way. Only while nothing runs that would
/// see it jump.
fn set_clock(host: u64) {
    let host = Duration::from_nanos(host);
    let Ok(ours) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
    if ours.abs_diff(host) > Duration::from_millis(100) {
        let time = TimeSpec::new(host.as_secs() as i64, i64::from(host.subsec_nanos()));
        if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, time) {
            println!("lab agent: setting the clock: {error}");
        }
    }
}

/// The number that the broker gave on the kernel command line.
fn nonce(command_line: &str) -> Option<String> {
    command_line.split_whitespace().find_map(|word| word.strip_prefix(launch::NONCE)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_number_is_found_on_the_command_line() {
        assert_eq!(super::nonce("quiet undercroft.nonce=abc panic=-1\n"), Some("abc".into()));
        assert_eq!(super::nonce("quiet"), None);
    }
}
