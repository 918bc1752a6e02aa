//! The command line's side: finds the service, or starts it; asks; connects a session's streams.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{FlockOperation, flock};
use undercroft_protocol::{FrameError, read_frame, session::ExitStatus, write_frame};

use super::{
    error::ServiceError,
    greeting::write_request,
    paths::{Paths, rotate},
    wire::{Answer, Event, Request, Run, receive_descriptors, send_descriptors},
};
use crate::{
    error::{Error, Result},
    session::{Input, Relayed, Steer, Steering, Streams, relay},
};

/// How often a client begins anew because the service left just when it connected.
const TRIES: u32 = 3;
/// From this length on a log begins anew, in bytes.
const LONG: u64 = 1 << 20;

/// A way to the service.
#[derive(Debug)]
pub struct Client {
    paths: Paths,
    start: bool,
}

/// A process that runs in a distribution, for this client.
#[derive(Debug)]
pub struct Remote {
    pid: u32,
    streams: Streams,
    stream: Arc<Mutex<UnixStream>>,
    reader: UnixStream,
    gone: Error,
}

impl Client {
    /// Of this user's service, which is started if it does not run.
    pub fn new() -> Result<Self> {
        Ok(Self { paths: Paths::of_user()?, start: true })
    }

    /// Of this user's service, if it runs: nothing is started only to say that nothing runs.
    pub fn if_running() -> Result<Option<Self>> {
        let paths = Paths::of_user()?;
        Ok(UnixStream::connect(paths.socket()).is_ok().then_some(Self { paths, start: false }))
    }

    /// Of the service that has these places. It is not started.
    pub fn of(paths: Paths) -> Self {
        Self { paths, start: false }
    }

    /// Asks something; `event` hears progress and warnings. A stream, if there is one, goes along.
    pub fn ask(
        &self,
        request: &Request,
        stream: Option<&dyn AsFd>,
        mut event: impl FnMut(Event),
    ) -> Result<Answer> {
        let (mut connection, mut first) = self.open(request, stream)?;
        loop {
            let next = match first.take() {
                Some(event) => event,
                None => read_frame(&mut connection).map_err(|error| self.told(error))?,
            };
            match next {
                Event::Done(answer) => return Ok(answer),
                Event::Failed { message, status } => {
                    return Err(ServiceError::Failed { message, status }.into());
                }
                other => event(other),
            }
        }
    }

    /// Starts a process; `event` hears warnings until it runs.
    pub fn run(&self, run: Run, mut event: impl FnMut(Event)) -> Result<Remote> {
        let (mut connection, mut first) = self.open(&Request::Run(run), None)?;
        let (pid, count) = loop {
            let next = match first.take() {
                Some(event) => event,
                None => read_frame(&mut connection).map_err(|error| self.told(error))?,
            };
            match next {
                Event::Started { pid, streams } => break (pid, streams),
                Event::Failed { message, status } => {
                    return Err(ServiceError::Failed { message, status }.into());
                }
                other => event(other),
            }
        };
        let mut streams = receive_descriptors(&connection, count.into())?.into_iter().map(UnixStream::from);
        let streams = match (streams.next(), streams.next(), streams.next()) {
            (Some(terminal), None, None) => Streams::Terminal(terminal),
            (stdin, stdout, stderr) => Streams::Pipes { stdin, stdout, stderr },
        };
        let reader = connection.try_clone();
        let reader = reader.map_err(|source| Error::System { what: "listen to the service", source })?;
        let gone = ServiceError::Gone(self.paths.log()).into();
        Ok(Remote { pid, streams, stream: Arc::new(Mutex::new(connection)), reader, gone })
    }

    /// Connects, sends the request, and reads the first event: a service that leaves at that moment is started anew,
    /// unless a stream goes along: some of it may be read already.
    fn open(&self, request: &Request, stream: Option<&dyn AsFd>) -> Result<(UnixStream, Option<Event>)> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut connection = self.connect()?;
            let sent = write_request(&connection, request).and_then(|()| match stream {
                None => Ok(()),
                Some(stream) => send_descriptors(&connection, &[stream.as_fd()])
                    .map_err(|error| io::Error::other(error).into()),
            });
            let first = sent.and_then(|()| read_frame::<Event>(&mut connection));
            match first {
                Ok(event) => return Ok((connection, Some(event))),
                Err(FrameError::Closed | FrameError::Io(_))
                    if self.start && stream.is_none() && tries < TRIES => {}
                Err(error) => return Err(self.told(error)),
            }
        }
    }

    fn told(&self, error: FrameError) -> Error {
        match error {
            FrameError::Closed | FrameError::Io(_) => ServiceError::Gone(self.paths.log()).into(),
            FrameError::Version { .. } => {
                let pid = std::fs::read_to_string(self.paths.lock()).unwrap_or_default();
                ServiceError::OtherVersion { pid: pid.trim().into() }.into()
            }
            other => ServiceError::Wire(other).into(),
        }
    }

    fn connect(&self) -> Result<UnixStream> {
        let socket = self.paths.socket();
        if let Ok(stream) = UnixStream::connect(&socket) {
            return Ok(stream);
        }
        let failed = |source| Error::File { what: "connect to", path: socket.clone(), source };
        if !self.start {
            return UnixStream::connect(&socket).map_err(failed);
        }
        self.paths.make()?;
        // One of several clients starts it.
        let path = self.paths.runtime.join("start.lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| Error::File { what: "open", path: path.clone(), source })?;
        let locked = flock(&lock, FlockOperation::LockExclusive);
        locked.map_err(|error| Error::File { what: "lock", path, source: error.into() })?;
        if let Ok(stream) = UnixStream::connect(&socket) {
            return Ok(stream);
        }
        self.start_service()?;
        UnixStream::connect(&socket).map_err(failed)
    }

    /// Starts the service, out of this terminal's reach, and waits until it says that it is ready.
    fn start_service(&self) -> Result<()> {
        let path = self.paths.log();
        if path.metadata().is_ok_and(|about| about.len() > LONG) {
            rotate(&path);
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.map_err(|source| Error::File { what: "open", path, source })?;
        let program = std::env::current_exe();
        let program = program.map_err(|source| Error::System { what: "find this program", source })?;
        // Cargo, or an update, may have put a newer one in its place (proc(5), /proc/PID/exe).
        let program = program.to_string_lossy();
        let program = program.trim_end_matches(" (deleted)").to_owned();
        let child = Command::new(&program)
            // Whatever the file is called: `wsl` would take the verb for a command.
            .arg0("undercroft")
            .arg("service")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn();
        let mut child =
            child.map_err(|source| Error::File { what: "execute", path: program.into(), source })?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.map_err(|source| Error::System { what: "listen to the service", source })?;
        }
        match line.trim_end() {
            super::listen::READY => Ok(()),
            "" => Err(ServiceError::NotStarted(format!("its log is {}", self.paths.log().display())).into()),
            said => Err(ServiceError::NotStarted(said.into()).into()),
        }
    }
}

impl Remote {
    /// Its process id in the distribution.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

#[derive(Debug)]
struct Way(Arc<Mutex<UnixStream>>);

impl Steering for Way {
    fn steer(&self, what: Steer) -> Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match write_frame(&mut *stream, &what) {
            // Whoever waits for the session's end learns why.
            Ok(()) | Err(FrameError::Io(_)) => Ok(()),
            Err(error) => Err(ServiceError::Wire(error).into()),
        }
    }
}

impl Relayed for Remote {
    fn steering(&self) -> Box<dyn Steering> {
        Box::new(Way(self.stream.clone()))
    }

    fn relay(self, input: Input, stdout: impl Write + Send, stderr: impl Write + Send) -> Result<ExitStatus> {
        let Self { streams, mut reader, gone, stream, .. } = self;
        let status = relay(Some(streams), input, stdout, stderr, || match read_frame(&mut reader) {
            Ok(Event::Exited(status)) => Ok(status),
            Ok(Event::Failed { message, status }) => Err(ServiceError::Failed { message, status }.into()),
            Ok(_) | Err(_) => Err(gone),
        });
        // A signal that comes now has nowhere to go.
        let _ = stream.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
        status
    }
}
