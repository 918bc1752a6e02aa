//! The guest's side of a running machine as the host sees it: mini-init's two channels and requests over them.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use undercroft_protocol::{
    FrameError,
    command::{Command, Done, Event, Reply, Request},
    opening::GuestHello,
    read_frame, write_frame,
};

use crate::{
    board::{Board, MARKS, State, WARNINGS},
    door::Door,
    error::{Error, Result},
};

/// What is waited for while a machine boots.
pub const HELLO: &str = "mini-init's hello";
/// What is killed gets this long to be gone before somebody asks what holds it.
const KILLED: Duration = Duration::from_secs(5);

/// mini-init, connected.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) board: Arc<Board>,
    /// How much longer than on hardware everything may take.
    pub(crate) patience: u32,
    command: Mutex<Option<UnixStream>>,
    next_request: AtomicU64,
    next_distribution: AtomicU32,
    _door: Door,
}

impl Guest {
    /// Listens for the guest; the VMM may start after this.
    pub(crate) fn listen(socket: &Path, board: Arc<Board>, patience: u32) -> Result<Self> {
        let door = Door::open(socket, board.clone())?;
        Ok(Self {
            board,
            patience: patience.max(1),
            command: Mutex::new(None),
            next_request: AtomicU64::new(1),
            next_distribution: AtomicU32::new(1),
            _door: door,
        })
    }

    /// A time limit in seconds of hardware.
    pub(crate) fn limit(&self, seconds: u32) -> Duration {
        Duration::from_secs(u64::from(seconds) * u64::from(self.patience))
    }

    /// Waits for mini-init's hello and its two channels.
    pub(crate) fn greet(&self, limit: Duration) -> Result<GuestHello> {
        let (hello, command, notify) = self.board.wait(HELLO, Some(limit), |state| {
            if let Some(source) = state.not_understood.take() {
                return Some(Err(Error::Protocol {
                    who: "mini-init, which connected from the guest,",
                    source,
                }));
            }
            if state.command.is_none() || state.notify.is_none() {
                return None;
            }
            let hello = state.hello.clone()?;
            Some(Ok((hello, state.command.take()?, state.notify.take()?)))
        })?;
        let start = |e| Error::System { what: "start a thread", source: e };
        let writer = command.try_clone().map_err(start)?;
        *self.command.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        let board = self.board.clone();
        spawn("guest replies", move || read_replies(command, &board))?;
        let board = self.board.clone();
        spawn("guest events", move || read_events(notify, &board))?;
        self.board.update(|state| {
            state.marks.extend(hello.marks.iter().take(MARKS).cloned().map(|mark| ("guest", mark)));
            state.warnings.extend(hello.warnings.iter().take(WARNINGS).cloned());
        });
        Ok(hello)
    }

    /// A number for a new distribution.
    pub(crate) fn distribution_id(&self) -> u32 {
        self.next_distribution.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request, and gives its number.
    pub(crate) fn send(&self, command: Command) -> Result<Pending> {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        self.board.update(|state| state.replies.insert(id, None));
        let pending = Pending { id, board: self.board.clone() };
        let mut stream = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writer) = stream.as_mut() else {
            return Err(Error::System {
                what: "ask mini-init",
                source: std::io::ErrorKind::NotConnected.into(),
            });
        };
        match write_frame(writer, &Request { id, command }) {
            Ok(()) => Ok(pending),
            Err(FrameError::Io(_)) => {
                // The connection is gone; the wait for the reply tells why.
                drop(stream);
                self.board
                    .update(|state| lose(state, "command", "it does not take requests any more".into()));
                Ok(pending)
            }
            Err(source) => Err(Error::Protocol { who: "a request to mini-init", source }),
        }
    }

    /// Sends a request and waits for what came of it.
    pub(crate) fn ask(&self, what: &'static str, command: Command, limit: Option<Duration>) -> Result<Done> {
        self.send(command)?.wait(what, limit)
    }

    /// The same, where nothing is to be said.
    pub(crate) fn ask_nothing(&self, what: &'static str, command: Command, limit: Duration) -> Result<()> {
        match self.ask(what, command, Some(limit))? {
            Done::Nothing => Ok(()),
            other => Err(wrong(what, &other)),
        }
    }

    /// Ends the connections.
    pub(crate) fn hang_up(&self) {
        if let Some(stream) = self.command.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.hang_up();
    }
}

pub(crate) fn wrong(what: &'static str, done: &Done) -> Error {
    Error::WrongAnswer { what, answer: format!("{done:?}").chars().take(80).collect() }
}

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Pending {
    id: u64,
    board: Arc<Board>,
}

impl Pending {
    /// What came of it, if it came.
    pub(crate) fn look(&self, what: &'static str, state: &mut State) -> Option<Result<Done>> {
        let outcome = state.replies.get_mut(&self.id)?.take()?;
        Some(outcome.map_err(|failure| Error::Refused { what, kind: failure.kind, message: failure.message }))
    }

    /// Why it was refused, if it was. That it was carried out stays to be looked at.
    pub(crate) fn refusal(&self, what: &'static str, state: &mut State) -> Option<Error> {
        match state.replies.get(&self.id)? {
            Some(Err(_)) => self.look(what, state)?.err(),
            _ => None,
        }
    }

    pub(crate) fn wait(&self, what: &'static str, limit: Option<Duration>) -> Result<Done> {
        self.board.wait("an answer of mini-init", limit, |state| self.look(what, state))
    }

    /// What came of a request to stop something, of what gets `grace` to end by itself. It is waited for as long as it
    /// `is_at_it`, by and by a look; if even its being killed has no effect, `let_go` sees to it that nothing holds it any more.
    pub(crate) fn stopped(
        &self,
        what: &'static str,
        (grace, limit): (Duration, Duration),
        mut is_at_it: impl FnMut() -> bool,
        let_go: impl FnOnce(),
    ) -> Result<Vec<String>> {
        let mut done = self.wait(what, Some(grace + KILLED));
        while matches!(done, Err(Error::Timeout { .. })) && is_at_it() {
            done = self.wait(what, Some(KILLED));
        }
        if let Err(Error::Timeout { .. }) = done {
            let_go();
            done = self.wait(what, Some(limit));
        }
        match done? {
            Done::Stopped { complaints } => Ok(complaints),
            other => Err(wrong(what, &other)),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.board.lock().replies.remove(&self.id);
    }
}

fn lose(state: &mut State, channel: &'static str, reason: String) {
    state.lost.get_or_insert((Instant::now(), channel, reason));
}

/// An error and what caused it, in one line.
pub(crate) fn reason(error: &FrameError) -> String {
    match error {
        FrameError::Io(source) => format!("{error}: {source}"),
        FrameError::Malformed { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

fn read_replies(mut stream: UnixStream, board: &Board) {
    loop {
        match read_frame::<Reply>(&mut stream) {
            Ok(reply) => board.update(|state| {
                // A reply that nobody waits for any more is of no interest.
                if let Some(place @ None) = state.replies.get_mut(&reply.id) {
                    *place = Some(reply.outcome);
                }
            }),
            Err(error) => return board.update(|state| lose(state, "command", reason(&error))),
        }
    }
}

fn read_events(mut stream: UnixStream, board: &Board) {
    loop {
        match read_frame::<Event>(&mut stream) {
            Ok(Event::ImportProgress { entries, bytes }) => {
                board.update(|state| state.import = (entries, bytes))
            }
            Ok(Event::ExportProgress { archive, entries, about }) => board.update(|state| {
                if let Some(known) = state.exports.get_mut(&archive) {
                    *known = (entries, about);
                }
            }),
            Ok(Event::DistributionEnded { distribution, status }) => board.update(|state| {
                if let Some(known) = state.distributions.get_mut(&distribution) {
                    known.ended = Some(status);
                }
            }),
            Ok(Event::Warning(warning)) => board.update(|state| {
                if state.warnings.len() < WARNINGS {
                    state.warnings.push(warning);
                }
            }),
            Err(error) => return board.update(|state| lose(state, "notify", reason(&error))),
        }
    }
}

/// Starts a named thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>> {
    let builder = thread::Builder::new().name(name.into());
    builder.spawn(body).map_err(|source| Error::System { what: "start a thread", source })
}
