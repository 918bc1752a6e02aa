//! Frames from clients to the agent and back: one command a client, renumbered, nothing refused.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use undercroft_lab::launch::{CONSOLE, Launch};
use undercroft_lab::pump::{Pump, PumpError};
use undercroft_lab::wire::{Frame, Message, Payload, Report, VERSION};

/// How often the agent is asked whether it is there. A question is an interrupt for L1, too.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How many questions in a row the agent may leave without an answer: an emulated processor that has lost its timer stands still
/// for minutes. PID 1 of L1 has nothing else to do than to answer, but its machine may be very busy. Counted, and not timed: this
/// process may have stood still itself.
const UNANSWERED_MAX: u32 = 9;

/// Why a turn was the last one; or that a signal came, which is for the caller.
pub(crate) enum Over {
    /// The signalfd has something.
    Signals,
    /// No client for the idle time, or the last one left a lab that is replaced.
    Idle,
    /// A client asked for the end.
    Asked,
    /// The agent answers no more, for so long.
    Silent(Duration),
    /// The agent's connection failed.
    Broken(PumpError),
}

/// A client's connection.
struct Client {
    pump: Pump,
    greeted: bool,
    /// It has a command, which has not ended.
    runs: bool,
    /// To be closed when everything is written.
    leaving: bool,
}

/// All connections.
pub(crate) struct Relay {
    agent: Pump,
    listener: UnixListener,
    /// By the number that the agent knows the client's command by.
    clients: BTreeMap<u32, Client>,
    next: u32,
    identity: String,
    idle: Duration,
    last_used: Instant,
    /// When the agent was last asked, and how often since it was heard.
    asked: Instant,
    unanswered: u32,
    retired: bool,
    report: Report,
    begun: Instant,
}

impl Relay {
    pub(crate) fn new(
        agent: Pump,
        listener: UnixListener,
        launch: &Launch,
        qemu: i32,
        begun: Instant,
    ) -> Result<Self, PumpError> {
        listener.set_nonblocking(true)?;
        let report = Report {
            qemu,
            broker: std::process::id() as i32,
            ready_ms: begun.elapsed().as_millis() as u64,
            up_seconds: 0,
            commands: 0,
            started: 0,
            console: PathBuf::from(&launch.folder).join(CONSOLE),
        };
        Ok(Relay {
            agent,
            listener,
            clients: BTreeMap::new(),
            next: 1,
            identity: launch.identity.clone(),
            idle: Duration::from_secs(launch.idle_seconds),
            last_used: Instant::now(),
            asked: Instant::now(),
            unanswered: 0,
            retired: false,
            report,
            begun,
        })
    }

    /// Waits for something to happen, and hands on what came.
    pub(crate) fn turn(&mut self, signals: &SignalFd) -> Result<(), Over> {
        let timeout = self.time_left()?.min(self.heartbeat()?);
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![
            PollFd::new(self.agent.as_fd(), interest(&self.agent)),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let numbers: Vec<u32> = self.clients.keys().copied().collect();
        fds.extend(self.clients.values().map(|c| PollFd::new(c.pump.as_fd(), interest(&c.pump))));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Over::Broken(std::io::Error::from(e).into())),
        }
        let happened: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
        if happened[0] {
            self.hear_agent().map_err(Over::Broken)?;
        }
        if happened[1] {
            self.accept();
        }
        for (&number, _) in numbers.iter().zip(&happened[3..]).filter(|(_, h)| **h) {
            self.hear_client(number)?;
        }
        self.agent.flush().map_err(Over::Broken)?;
        let gone: Vec<u32> = self
            .clients
            .iter_mut()
            .filter_map(|(&n, c)| {
                (c.pump.flush().is_err() || c.leaving && c.pump.pending() == 0).then_some(n)
            })
            .collect();
        for number in gone {
            self.forget(number);
        }
        if happened[2] { Err(Over::Signals) } else { Ok(()) }
    }

    /// How long to wait for a client.
    fn time_left(&self) -> Result<Duration, Over> {
        if !self.clients.is_empty() {
            return Ok(Duration::MAX);
        }
        self.idle.checked_sub(self.last_used.elapsed()).filter(|_| !self.retired).ok_or(Over::Idle)
    }

    /// Asks the agent whether it is there, when it is time to; gives how long until then.
    fn heartbeat(&mut self) -> Result<Duration, Over> {
        if self.asked.elapsed() >= HEARTBEAT {
            if self.unanswered >= UNANSWERED_MAX {
                return Err(Over::Silent(HEARTBEAT * self.unanswered));
            }
            self.unanswered += 1;
            self.agent.say(0, Message::Ping);
            self.agent.flush().map_err(Over::Broken)?;
            self.asked = Instant::now();
        }
        Ok(HEARTBEAT.saturating_sub(self.asked.elapsed()))
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(pump) = Pump::new(stream.into()) {
                let client = Client { pump, greeted: false, runs: false, leaving: false };
                self.clients.insert(self.next, client);
                self.next += 1;
            }
        }
    }

    fn hear_agent(&mut self) -> Result<(), PumpError> {
        if !self.agent.fill(1 << 20)? {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        self.unanswered = 0;
        while let Some(frame) = self.agent.next()? {
            // None is a client that has gone while its command was being killed.
            let Some(client) = self.clients.get_mut(&frame.channel) else { continue };
            if let Payload::Message(Message::Ended(_) | Message::Refused(_)) = frame.payload {
                client.leaving = true;
                client.runs = false;
            }
            client.pump.queue(&Frame { channel: 1, payload: frame.payload });
        }
        Ok(())
    }

    fn hear_client(&mut self, number: u32) -> Result<(), Over> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        let open = client.pump.fill(1 << 20).unwrap_or(false);
        loop {
            let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
            match client.pump.next() {
                Ok(Some(frame)) => self.obey(number, frame)?,
                Ok(None) if open => return Ok(()),
                Ok(None) | Err(_) => {
                    self.forget(number);
                    return Ok(());
                }
            }
        }
    }

    fn obey(&mut self, number: u32, frame: Frame) -> Result<(), Over> {
        let commands = self.clients.values().filter(|c| c.runs).count() as u32;
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        match frame.payload {
            Payload::Message(Message::Hello { .. }) => {
                client.greeted = true;
                client.pump.say(0, Message::Hello { version: VERSION, name: self.identity.clone() });
            }
            // Before any hello, so that every version of a client can end every version of a lab.
            Payload::Message(Message::Down) => return Err(Over::Asked),
            Payload::Message(Message::Retire) => self.retired = true,
            Payload::Message(Message::Status) => {
                let up_seconds = self.begun.elapsed().as_secs();
                client.pump.say(0, Message::Report(Report { up_seconds, commands, ..self.report.clone() }));
            }
            payload if client.greeted && !client.leaving => {
                if let Payload::Message(Message::Start(_)) = payload {
                    if client.runs {
                        return Ok(());
                    }
                    client.runs = true;
                    self.report.started += 1;
                }
                self.agent.queue(&Frame { channel: number, payload });
            }
            _ => {}
        }
        Ok(())
    }

    fn forget(&mut self, number: u32) {
        if let Some(client) = self.clients.remove(&number) {
            if client.runs {
                self.agent.say(number, Message::Abandon);
            }
            if client.greeted {
                self.last_used = Instant::now();
            }
        }
    }
}

fn interest(pump: &Pump) -> PollFlags {
    if pump.pending() > 0 { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
}
