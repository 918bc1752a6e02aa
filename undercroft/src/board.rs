//! The board: all that is known about a running machine, under one lock.
//!
//! Readers of connections (one thread each) write on it, and whoever waits for something waits here. One lock and one
//! condition make every wait also a wait for the machine's end: a guest that panics while an import runs is told as a
//! panic, not as a broken pipe. Traffic is a few messages a second; the bytes of sessions never pass here.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use undercroft_protocol::{
    FrameError, Token,
    command::{Done, Failure},
    opening::{GuestHello, Mark},
    session::{ExitStatus, InitEvent, StartError},
};

use crate::{
    console::Log,
    error::{Cause, Console, Ending, Error, Result},
};

/// How long a lost connection waits for the machine's end, which explains it better.
const EXPLANATION: Duration = Duration::from_millis(if cfg!(test) { 2_000 } else { 5_000 });

/// All that is known.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The machine's end.
    pub(crate) ended: Option<Ending>,
    /// The guest's channels that are gone, since when and why.
    pub(crate) lost: Option<(Instant, &'static str, String)>,
    /// A peer whose first words were not understood, before the guest said hello.
    pub(crate) not_understood: Option<FrameError>,
    /// mini-init's hello; present from the command channel's opening on.
    pub(crate) hello: Option<GuestHello>,
    /// The command channel, until its reader takes it.
    pub(crate) command: Option<UnixStream>,
    /// The notify channel, until its reader takes it.
    pub(crate) notify: Option<UnixStream>,
    /// Whether a notify channel was ever taken.
    pub(crate) notify_seen: bool,
    /// Connections that are expected or were not fetched yet.
    pub(crate) tokens: HashMap<Token, Option<UnixStream>>,
    /// Requests to mini-init that wait.
    pub(crate) replies: HashMap<u64, Option<std::result::Result<Done, Failure>>>,
    /// Requests to the VMM that wait.
    pub(crate) vmm_replies: HashMap<u64, Option<std::result::Result<serde_json::Value, String>>>,
    /// What the VMM said of its end on the control socket.
    pub(crate) vmm_end: Option<Cause>,
    /// Entries and bytes of the import that runs.
    pub(crate) import: (u64, u64),
    /// Of the exports that run, by their archive's token: entries so far, and about how many bytes there will be.
    pub(crate) exports: HashMap<Token, (u64, u64)>,
    /// Distributions by the id of their launch.
    pub(crate) distributions: HashMap<u32, DistributionState>,
    /// What the guest warned of, for people, not fetched yet.
    pub(crate) warnings: Vec<String>,
    /// Moments that were told, by who told them.
    pub(crate) marks: Vec<(&'static str, Mark)>,
}

/// A distribution that was launched.
#[derive(Debug, Default)]
pub(crate) struct DistributionState {
    /// It takes sessions.
    pub(crate) ready: bool,
    /// Its own configuration would have it go on when its last session has ended.
    pub(crate) keep_alive: bool,
    /// Its own configuration's default user.
    pub(crate) user: Option<String>,
    /// Its PID 1 ended.
    pub(crate) ended: Option<ExitStatus>,
    /// Its connection broke.
    pub(crate) lost: Option<(Instant, String)>,
    /// Its sessions.
    pub(crate) sessions: HashMap<u64, SessionState>,
    /// Sessions that have ended and left processes behind.
    pub(crate) left: u32,
}

/// A session that was asked for.
#[derive(Debug, Default)]
pub(crate) struct SessionState {
    /// Process id, or why there is none.
    pub(crate) started: Option<std::result::Result<u32, StartError>>,
    /// How it ended.
    pub(crate) exited: Option<ExitStatus>,
}

impl State {
    /// Notes what a distribution's init said. What it says of sessions that nobody asked for is dropped.
    pub(crate) fn init_event(&mut self, distribution: u32, event: InitEvent) {
        let Some(known) = self.distributions.get_mut(&distribution) else { return };
        match event {
            InitEvent::Configured { keep_alive, user } => {
                (known.keep_alive, known.user) = (keep_alive, user);
            }
            // Once each: what says it again is no init of ours.
            InitEvent::Ready { marks, warnings } if !known.ready => {
                known.ready = true;
                let marks = marks.into_iter().filter(is_short).take(MARKS);
                self.marks.extend(marks.map(|mark| ("init", mark)));
                self.warnings.extend(warnings.into_iter().take(WARNINGS).map(short));
            }
            InitEvent::Ready { .. } => {}
            InitEvent::Started { session, pid, mark } => {
                if let Some(s) = known.sessions.get_mut(&session).filter(|s| s.started.is_none()) {
                    s.started = Some(Ok(pid));
                    if self.marks.len() < MARKS * 8 && is_short(&mark) {
                        self.marks.push(("session", mark));
                    }
                }
            }
            InitEvent::NotStarted { session, error } => {
                if let Some(s) = known.sessions.get_mut(&session).filter(|s| s.started.is_none()) {
                    s.started = Some(Err(error));
                }
            }
            InitEvent::Left { .. } => known.left = known.left.saturating_add(1),
            InitEvent::Gone { .. } => known.left = known.left.saturating_sub(1),
            InitEvent::Exited { session, status } => {
                if let Some(s) = known.sessions.get_mut(&session) {
                    s.exited = Some(status);
                }
            }
        }
    }
}

/// The longest name and line that are kept of what a distribution says, in characters.
const LONGEST: usize = 500;

fn is_short(mark: &Mark) -> bool {
    mark.name.len() <= LONGEST
}

fn short(line: String) -> String {
    if line.len() <= LONGEST { line } else { line.chars().take(LONGEST).collect() }
}

/// The most marks and warnings kept of one message: a hostile init cannot fill the host's memory with them.
pub(crate) const MARKS: usize = 2_000;
/// See [`MARKS`].
pub(crate) const WARNINGS: usize = 100;

/// The state, its lock, and the bell that rings when it changes.
#[derive(Debug)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
    log: Option<Log>,
}

impl Board {
    pub(crate) fn new(log: Option<Log>) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), log }
    }

    /// The state as it is. A thread that panicked while it held the lock left nothing half-written: every change is
    /// one assignment.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and rings.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Something that a person should read.
    pub(crate) fn warn(&self, text: String) {
        self.update(|state| {
            if state.warnings.len() < WARNINGS {
                state.warnings.push(text);
            }
        });
    }

    /// What the guest's console said last.
    pub(crate) fn console(&self) -> Console {
        self.log.as_ref().map(Log::console).unwrap_or_default()
    }

    /// Waits until `look` finds something, the machine ends, or the time is over.
    pub(crate) fn wait<T>(
        &self,
        what: &'static str,
        limit: Option<Duration>,
        mut look: impl FnMut(&mut State) -> Option<Result<T>>,
    ) -> Result<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return found;
            }
            if let Some(ending) = &state.ended {
                return Err(Error::Ended(Box::new(ending.clone())));
            }
            let mut until = deadline;
            if let Some((since, channel, reason)) = &state.lost {
                if since.elapsed() >= EXPLANATION {
                    let (channel, reason) = (*channel, reason.clone());
                    return Err(Error::GuestLost { channel, reason, console: self.console() });
                }
                let explained = *since + EXPLANATION;
                until = Some(until.map_or(explained, |until| until.min(explained)));
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let now = Instant::now();
                    if deadline.is_some_and(|deadline| now >= deadline) {
                        let limit = limit.unwrap_or_default();
                        return Err(Error::Timeout { what, limit, console: self.console() });
                    }
                    let rest = until.saturating_duration_since(now).max(Duration::from_millis(1));
                    self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
