//! A running distribution: its init, and the sessions that are started through it.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use undercroft_protocol::{
    command::{Command, Done, Folder, Launch, Limits, Root, Users},
    network::Wire,
    read_frame,
    session::{Exec, ExitStatus, InitEvent, InitRequest, Stdio, WindowSize},
    write_frame,
};

use crate::{
    board::{Board, MARKS, State},
    door::Expected,
    error::{Error, Result},
    guest::{Guest, reason, spawn, wrong},
    session::{Program, Session, Streams},
    upkeep,
};

/// What mini-init is asked.
const LAUNCH: &str = "launch the distribution";

/// A launched distribution. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Distribution {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) guest: Arc<Guest>,
    id: u32,
    name: String,
    connection: Mutex<UnixStream>,
    next_session: AtomicU64,
}

/// What is to be launched, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Its name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Where its root file system is.
    pub root: Root,
    /// Whether its users are nobody outside it. Without, its root is the VM's.
    pub own_users: bool,
    /// Whether it has a network of its own, with its own ports. Without, it shares the VM's.
    pub own_network: bool,
    /// How much of the VM it may take.
    pub limits: Limits,
    /// The host's time zone, which it has too unless its own configuration says otherwise.
    pub time_zone: Option<String>,
    /// How long it may take until it is ready; `None` is half a minute for each step.
    pub limit: Option<Duration>,
}

impl LaunchOptions {
    /// A distribution with users of its own in the VM's network, no limits, a host name like its name, and the host's time zone.
    pub fn new(name: &str, root: Root) -> Self {
        Self {
            name: name.into(),
            hostname: hostname(name),
            root,
            own_users: true,
            own_network: false,
            limits: Limits::default(),
            time_zone: upkeep::time_zone(),
            limit: None,
        }
    }
}

/// What the machine gives a distribution.
#[derive(Debug)]
pub(crate) struct Given {
    /// Its number.
    pub(crate) id: u32,
    pub(crate) users: Users,
    pub(crate) wire: Option<Wire>,
    pub(crate) folders: Vec<Folder>,
}

/// A name may hold what a host name may not.
fn hostname(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' });
    let hostname: String = letters.take(63).collect();
    let hostname = hostname.trim_matches('-');
    if hostname.is_empty() { "undercroft".into() } else { hostname.into() }
}

/// What a distribution did that somebody watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// So many of its ended sessions have processes that go on.
    Left(u32),
    /// Its init has ended, so if it is known; or its machine has.
    Ended(Option<ExitStatus>),
}

/// Which of a session's pipes there are; the others are /dev/null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipes {
    /// Host → process.
    pub stdin: bool,
    /// Process → host.
    pub stdout: bool,
    /// Process → host.
    pub stderr: bool,
}

impl Pipes {
    /// All three.
    pub const ALL: Self = Self { stdin: true, stdout: true, stderr: true };
}

impl Distribution {
    /// Asks mini-init for a launch, and waits until the distribution's init is ready.
    pub(crate) fn launch(guest: &Arc<Guest>, what: &LaunchOptions, given: Given) -> Result<Self> {
        let (board, name, id) = (&guest.board, what.name.as_str(), given.id);
        let expected = Expected::new(board)?;
        board.update(|state| state.distributions.insert(id, Default::default()));
        let forget = Forget { board, id, armed: true };
        let request = Command::Launch(Launch {
            id,
            name: name.into(),
            hostname: what.hostname.clone(),
            root: what.root.clone(),
            users: given.users,
            limits: what.limits,
            network: given.wire,
            folders: given.folders,
            token: expected.token(),
        });
        let begun = Instant::now();
        let rest = || match what.limit {
            Some(limit) => limit.saturating_sub(begun.elapsed()),
            None => guest.limit(30),
        };
        // Its disks are to be free again. That it has ended already, or cannot be asked any more, is no second error.
        let stop = || {
            let stop = Command::Terminate { distribution: id, grace_ms: 1000 };
            let _ = guest.ask("stop the distribution", stop, Some(guest.limit(30)));
        };
        let pending = guest.send(request)?;
        let look = |state: &mut State| pending.look(LAUNCH, state);
        match board.wait("an answer of mini-init", Some(rest()), look) {
            Ok(Done::Launched { marks, .. }) => board.update(|state| {
                state.marks.extend(marks.into_iter().take(MARKS).map(|mark| ("launch", mark)));
            }),
            Ok(other) => return Err(wrong(LAUNCH, &other)),
            Err(late @ Error::Timeout { .. }) => {
                if pending.wait(LAUNCH, Some(guest.limit(30))).is_ok() {
                    stop();
                }
                return Err(late);
            }
            Err(error) => return Err(error),
        }
        let connection = ready(guest, expected, id, name, rest).inspect_err(|_| stop())?;
        forget.disarm();
        let inner = Inner {
            guest: guest.clone(),
            id,
            name: name.into(),
            connection: Mutex::new(connection),
            next_session: AtomicU64::new(1),
        };
        if let Some(zone) = &what.time_zone {
            // Before any session: requests are taken in their order.
            inner.send(&InitRequest::TimeZone(zone.clone()))?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits until another number of its ended sessions has processes that go on, or its end.
    pub fn wait_for_change(&self, left: u32) -> Change {
        let changed = self.inner.guest.board.wait("a change of the distribution", None, |state| match state
            .distributions
            .get(&self.inner.id)
        {
            Some(known) if known.ended.is_none() => {
                (known.left != left).then_some(Ok(Change::Left(known.left)))
            }
            known => Some(Ok(Change::Ended(known.and_then(|known| known.ended)))),
        });
        changed.unwrap_or(Change::Ended(None))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether its own configuration would have it go on when its last session has ended.
    pub fn wants_to_live(&self) -> bool {
        let board = self.inner.guest.board.lock();
        board.distributions.get(&self.inner.id).is_some_and(|known| known.keep_alive)
    }

    /// Its own configuration's default user (`user.default`): who sessions run as that name no user.
    pub fn default_user(&self) -> Option<String> {
        self.inner.guest.board.lock().distributions.get(&self.inner.id)?.user.clone()
    }

    /// Its number in this run of the VM, by which [`Port`](crate::network::ports::Port)s name it.
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// How its init ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.inner.guest.board.lock().distributions.get(&self.inner.id)?.ended
    }

    /// Starts a process with pipes, and waits until it has been executed.
    pub fn exec(&self, program: &Program, pipes: Pipes) -> Result<Session> {
        let board = &self.inner.guest.board;
        let expect = |wanted: bool| wanted.then(|| Expected::new(board)).transpose();
        let (stdin, stdout, stderr) = (expect(pipes.stdin)?, expect(pipes.stdout)?, expect(pipes.stderr)?);
        let token = |expected: &Option<Expected>| expected.as_ref().map(Expected::token);
        let stdio = Stdio::Pipes { stdin: token(&stdin), stdout: token(&stdout), stderr: token(&stderr) };
        let session = self.start(program, stdio)?;
        let arrive = |expected: Option<Expected>| expected.map(|e| self.arrived(e)).transpose();
        let streams =
            Streams::Pipes { stdin: arrive(stdin)?, stdout: arrive(stdout)?, stderr: arrive(stderr)? };
        Ok(session.with(streams))
    }

    /// Starts a process with a terminal of its own, and waits until it has been executed.
    pub fn exec_terminal(&self, program: &Program, size: WindowSize) -> Result<Session> {
        let expected = Expected::new(&self.inner.guest.board)?;
        let session = self.start(program, Stdio::Terminal { stream: expected.token(), size })?;
        let stream = self.arrived(expected)?;
        Ok(session.with(Streams::Terminal(stream)))
    }

    fn arrived(&self, expected: Expected) -> Result<UnixStream> {
        expected.wait("a stream of the session", self.inner.guest.limit(30))
    }

    /// Sends the request; gives a session without streams once its process runs.
    fn start(&self, program: &Program, stdio: Stdio) -> Result<Session> {
        let inner = &self.inner;
        let id = inner.next_session.fetch_add(1, Ordering::Relaxed);
        inner.guest.board.update(|state| {
            if let Some(known) = state.distributions.get_mut(&inner.id) {
                known.sessions.insert(id, Default::default());
            }
        });
        // From here on its drop abandons the session.
        let mut session = Session::new(inner.clone(), id);
        inner.send(&InitRequest::Exec(Exec {
            session: id,
            program: program.what.clone(),
            environment: program.environment.clone(),
            directory: program.directory.clone(),
            user: program.user.clone(),
            stdio,
        }))?;
        let pid = inner.wait("the session's start", Some(inner.guest.limit(30)), |state| {
            let known = state.distributions.get(&inner.id)?.sessions.get(&id)?;
            known.started.clone().map(|started| started.map_err(Error::NotStarted))
        });
        match pid {
            Ok(pid) => session.pid = pid,
            Err(error) => {
                if matches!(error, Error::NotStarted(_)) {
                    session.over = true;
                }
                return Err(error);
            }
        }
        Ok(session)
    }

    /// Stops it: SIGTERM to its init, SIGKILL after the grace time; its file system is unmounted when this returns.
    /// Gives what did not go in order, a line each.
    pub fn terminate(&self, grace: Duration) -> Result<Vec<String>> {
        self.terminate_or(grace, || ())
    }

    /// The same; `let_go` is called if its processes are still there some seconds after they were killed.
    pub(crate) fn terminate_or(&self, grace: Duration, let_go: impl FnOnce()) -> Result<Vec<String>> {
        let guest = &self.inner.guest;
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = guest.send(Command::Terminate { distribution: self.inner.id, grace_ms })?;
        request.stopped("stop the distribution", (grace, guest.limit(30)), || false, let_go)
    }
}

impl Inner {
    /// Sends a request to the distribution's init. A connection that is gone is no error here: whoever waits for what
    /// comes of the request learns why.
    pub(crate) fn send(&self, request: &InitRequest) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        match write_frame(&mut *connection, request) {
            Ok(()) | Err(undercroft_protocol::FrameError::Io(_)) => Ok(()),
            Err(source) => Err(Error::Protocol { who: "a request to the distribution's init", source }),
        }
    }

    /// Waits for something of this distribution, or its end.
    pub(crate) fn wait<T>(
        &self,
        what: &'static str,
        limit: Option<Duration>,
        mut look: impl FnMut(&mut State) -> Option<Result<T>>,
    ) -> Result<T> {
        self.guest
            .board
            .wait(what, limit, |state| look(state).or_else(|| ended(state, self.id, &self.name).map(Err)))
    }

    pub(crate) fn session<'a>(
        &self,
        state: &'a mut State,
        id: u64,
    ) -> Option<&'a mut crate::board::SessionState> {
        state.distributions.get_mut(&self.id)?.sessions.get_mut(&id)
    }

    pub(crate) fn forget_session(&self, id: u64) {
        self.guest.board.update(|state| {
            state.distributions.get_mut(&self.id).and_then(|known| known.sessions.remove(&id));
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // It may be gone already.
        let _ = connection.shutdown(Shutdown::Both);
    }
}

/// Waits until a distribution's init has connected, and is ready; gives its connection.
fn ready(
    guest: &Guest,
    expected: Expected,
    id: u32,
    name: &str,
    rest: impl Fn() -> Duration,
) -> Result<UnixStream> {
    let board = &guest.board;
    let connection = board.wait("the distribution's init", Some(rest()), |state| {
        expected.take(state).map(Ok).or_else(|| ended(state, id, name).map(Err))
    })?;
    drop(expected);
    let failed = |source| Error::System { what: "keep the connection to the distribution's init", source };
    let reader = connection.try_clone().map_err(failed)?;
    let events = board.clone();
    spawn("distribution", move || read_events(reader, id, &events))?;
    board.wait("the distribution's readiness", Some(rest()), |state| match state.distributions.get(&id) {
        Some(known) if known.ready => Some(Ok(())),
        _ => ended(state, id, name).map(Err),
    })?;
    Ok(connection)
}

/// The end of a distribution as an error. A connection that broke waits a while for what explains it.
fn ended(state: &State, id: u32, name: &str) -> Option<Error> {
    let known = state.distributions.get(&id)?;
    if let Some(status) = known.ended {
        return Some(Error::DistributionEnded { name: name.into(), status, ready: known.ready });
    }
    let (since, reason) = known.lost.as_ref()?;
    let explained = since.elapsed() >= Duration::from_secs(2);
    explained.then(|| Error::DistributionLost { name: name.into(), reason: reason.clone() })
}

/// Forgets a distribution whose launch did not succeed.
struct Forget<'a> {
    board: &'a Board,
    id: u32,
    armed: bool,
}

impl Forget<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.board.update(|state| state.distributions.remove(&self.id));
        }
    }
}

fn read_events(mut stream: UnixStream, id: u32, board: &Board) {
    loop {
        match read_frame::<InitEvent>(&mut stream) {
            Ok(event) => board.update(|state| state.init_event(id, event)),
            Err(error) => {
                board.update(|state| {
                    if let Some(known) = state.distributions.get_mut(&id) {
                        known.lost = Some((Instant::now(), reason(&error)));
                    }
                });
                // Rings once more when the time for an explanation is over.
                std::thread::sleep(Duration::from_millis(2_100));
                return board.update(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_host_names() {
        assert_eq!(hostname("deb_12.x"), "deb-12-x");
        assert_eq!(hostname("..."), "undercroft");
    }
}
