//! The loop of PID 1, or of systemd's companion: requests of the host's, events of the relays', ends of processes.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{ForkResult, Pid},
};
use undercroft_config::DistributionConfig;
use undercroft_guest::{
    channel::Channel,
    process::{Reaped, fork, reap},
};
use undercroft_protocol::{
    command::Launch,
    session::{Exec, ExitStatus, InitEvent, InitRequest, StartError},
};

use crate::{log, process, relay, time_zone};

/// The grace time if whoever sent SIGTERM named none.
const GRACE: Duration = Duration::from_secs(5);
/// `si_code` of a signal that came by sigqueue, with a number (sigaction(2), SI_QUEUE).
const SI_QUEUE: i32 = -1;

/// What a session must know of its distribution.
#[derive(Debug)]
pub(crate) struct About {
    /// The launch.
    pub(crate) launch: Launch,
    /// /etc/wsl.conf.
    pub(crate) configuration: DistributionConfig,
    /// The host name that was set.
    pub(crate) hostname: String,
    /// LANG.
    pub(crate) language: String,
    /// Whether PID 1 is systemd, and this process its companion.
    pub(crate) systemd: bool,
}

#[derive(Debug)]
struct Session {
    relay: Channel,
    started: bool,
    finished: bool,
    /// It left processes behind.
    left: bool,
}

/// PID 1 or systemd's companion, set up.
#[derive(Debug)]
pub(crate) struct Server {
    host: Channel,
    about: About,
    signals: SignalFd,
    sessions: BTreeMap<u64, Session>,
    /// When init ends even if processes are left, if it was told to stop.
    end_at: Option<Instant>,
}

/// Blocks the signals that the loop takes by descriptor, in every child too until it unblocks them.
pub(crate) fn signals() -> io::Result<SignalFd> {
    Ok(SignalFd::with_flags(&block_signals()?, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Blocks them again, after what was to be executed could not be.
pub(crate) fn block_signals() -> io::Result<SigSet> {
    let set = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
    set.thread_block()?;
    Ok(set)
}

impl Server {
    /// Takes the connection to the host.
    pub(crate) fn new(host: OwnedFd, signals: SignalFd, about: About) -> io::Result<Self> {
        Ok(Self { host: Channel::new(host)?, about, signals, sessions: BTreeMap::new(), end_at: None })
    }

    /// Tells the host something.
    pub(crate) fn tell(&mut self, event: &InitEvent) {
        if let Err(error) = self.host.send(event) {
            log::warning(&format!("the host could not be told: {error}"));
        }
    }

    /// Serves until the distribution is to end.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.take_signals();
            let children = self.reap();
            self.take_events();
            self.take_requests();
            let processes = if self.about.systemd { !self.sessions.is_empty() } else { children };
            let over = self.end_at.is_some_and(|at| !processes || at <= Instant::now());
            if over {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let timeout = self.end_at.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.end_at.is_none() || !self.host.is_flushed() {
            descriptors.push(PollFd::new(self.host.as_fd(), self.host.interest()));
        }
        let relays = self.sessions.values().map(|s| &s.relay);
        descriptors.extend(relays.map(|relay| PollFd::new(relay.as_fd(), relay.interest())));
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                let named = (signal.ssi_code == SI_QUEUE)
                    .then(|| Duration::from_millis(signal.ssi_int.max(0) as u64));
                self.stop(named.unwrap_or(GRACE));
            }
        }
    }

    /// Takes the ends of children, which may be relays or orphans; whether children are left. What a relay has to say
    /// comes by its channel.
    fn reap(&mut self) -> bool {
        loop {
            match reap() {
                Reaped::Child(..) => {}
                Reaped::Nothing => return true,
                Reaped::NoChildren => return false,
            }
        }
    }

    /// Begins to stop: every process gets SIGTERM, and SIGHUP, which shells heed that ignore the first. Under systemd only
    /// the sessions are ours to end.
    fn stop(&mut self, grace: Duration) {
        if self.end_at.is_some() {
            return;
        }
        // The last third is for what comes after: the kernel's killing, and the file system.
        self.end_at = Some(Instant::now() + grace * 2 / 3);
        if self.about.systemd {
            for (&session, it) in &mut self.sessions {
                let _ = it.relay.send(&InitRequest::Signal { session, signal: Signal::SIGTERM as i32 });
                let _ = it.relay.send(&InitRequest::Abandon { session });
            }
            return;
        }
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCONT] {
            let _ = process::signal(Pid::from_raw(-1), signal as i32);
        }
    }

    fn take_events(&mut self) {
        let mut events = Vec::new();
        self.sessions.retain(|&session, it| {
            let (found, end) = it.relay.receive::<InitEvent>();
            for event in found {
                it.started |= matches!(event, InitEvent::Started { .. });
                it.finished |= matches!(event, InitEvent::Exited { .. } | InitEvent::NotStarted { .. });
                it.left |= matches!(event, InitEvent::Left { .. });
                events.push(event);
            }
            let _ = it.relay.flush();
            // A relay that ends without a last word was killed.
            if end.is_some() && !it.finished {
                events.push(if it.started {
                    InitEvent::Exited { session, status: ExitStatus::Signal(Signal::SIGKILL as i32) }
                } else {
                    let error = StartError::Other("the session's relay was killed".into());
                    InitEvent::NotStarted { session, error }
                });
            }
            if end.is_some() && it.left {
                events.push(InitEvent::Gone { session });
            }
            end.is_none()
        });
        for event in events {
            self.tell(&event);
        }
    }

    fn take_requests(&mut self) {
        if self.end_at.is_some() {
            let _ = self.host.flush();
            return;
        }
        let (requests, end) = self.host.receive::<InitRequest>();
        for request in requests {
            match request {
                InitRequest::Exec(exec) => self.start(&exec),
                InitRequest::TimeZone(name) if self.about.configuration.host_time_zone => {
                    time_zone::set(&name);
                }
                InitRequest::TimeZone(_) => {}
                InitRequest::Signal { session, .. }
                | InitRequest::Resize { session, .. }
                | InitRequest::Abandon { session } => {
                    // A session that is not there has just ended.
                    if let Some(it) = self.sessions.get_mut(&session) {
                        let _ = it.relay.send(&request);
                    }
                }
            }
        }
        let flushed = self.host.flush();
        if end.is_some() || flushed.is_err() {
            // Nobody could ever come in again.
            log::warning("the host has closed the distribution's connection; stopping");
            self.stop(GRACE);
        }
    }

    fn start(&mut self, exec: &Exec) {
        let session = exec.session;
        let failed =
            |error: io::Error| InitEvent::NotStarted { session, error: StartError::Other(error.to_string()) };
        if self.sessions.contains_key(&session) {
            return self.tell(&failed(io::Error::other(format!("the session number {session} is in use"))));
        }
        match self.fork_relay(exec) {
            Ok(relay) => {
                self.sessions
                    .insert(session, Session { relay, started: false, finished: false, left: false });
            }
            Err(error) => self.tell(&failed(error)),
        }
    }

    fn fork_relay(&self, exec: &Exec) -> io::Result<Channel> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        match fork()? {
            ForkResult::Child => relay::run(theirs, exec, &self.about),
            ForkResult::Parent { .. } => Channel::new(ours),
        }
    }
}
