//! The VMM's process and its control socket.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IoSlice, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use undercroft_protocol::opening::Mark;
use undercroft_vmm::{
    End, MachineConfig,
    control::{Action, Event, Message, Request, Started, Statistics},
};

use crate::{
    board::Board,
    console::last_lines,
    error::{Cause, Ending, Error, Result},
    guest::spawn,
    watched::Watched,
};

/// The longest line that the VMM may write on its control socket, in bytes.
const LINE: usize = 1 << 20;

/// A running VMM.
#[derive(Debug)]
pub(crate) struct Vmm {
    control: Arc<Control>,
    process: Arc<Process>,
    waiter: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What can be asked of it, from any thread.
#[derive(Debug)]
pub(crate) struct Control {
    board: Arc<Board>,
    socket: Mutex<UnixStream>,
    next: AtomicU64,
}

/// The process, and why it was killed.
#[derive(Debug, Default)]
struct Process {
    process: Watched,
    why: Mutex<Option<Cause>>,
}

impl Process {
    fn kill(&self, why: Cause) {
        // Held until it is known whether that is why: who waits for its end looks then.
        let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if self.process.kill() {
            first.get_or_insert(why);
        }
    }
}

/// Kills a machine from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Process>);

impl Stopper {
    /// Ends the machine at once; what waits for it is told that this signal did.
    pub fn interrupt(&self, signal: i32) {
        self.0.kill(Cause::Interrupted(signal));
    }
}

impl Vmm {
    /// Starts the program with this configuration; `messages` is where its standard error goes. The VMM alone has `inherited`
    /// from then on, under the numbers that its configuration names.
    pub(crate) fn start(
        program: &Path,
        mut config: MachineConfig,
        inherited: Vec<OwnedFd>,
        messages: PathBuf,
        board: &Arc<Board>,
    ) -> Result<Self> {
        let failed = |what| move |source| Error::System { what, source };
        let (control, theirs) = UnixStream::pair().map_err(failed("make the VMM's control socket"))?;
        let (config_reader, mut config_writer) = io::pipe().map_err(failed("make a pipe"))?;
        config.control_fd = Some(theirs.as_raw_fd());
        let text = serde_json::to_vec(&config).map_err(|e| Error::System {
            what: "write down the machine's configuration",
            source: e.into(),
        })?;
        let log = File::create(&messages).map_err(|source| Error::File {
            what: "create",
            path: messages.clone(),
            source,
        })?;
        let mut command = Command::new(program);
        command
            .arg("--config-fd")
            .arg(config_reader.as_raw_fd().to_string())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for name in ["RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // Out of the terminal's foreground group: Ctrl-C is not for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut keep = vec![config_reader.as_raw_fd(), theirs.as_raw_fd()];
        keep.extend(inherited.iter().map(AsRawFd::as_raw_fd));
        crate::spawn::prepare(&mut command, keep);

        let process = Arc::new(Process::default());
        let (started, start) = mpsc::channel();
        let (shared, told) = (process.clone(), board.clone());
        let reader = control.try_clone().map_err(failed("read the VMM's control socket"))?;
        let listening = board.clone();
        let listener = spawn("vmm control", move || read_control(reader, &listening))?;
        let waiter = spawn("vmm process", move || {
            let child = command.spawn();
            // Only the VMM itself holds its ends now: when it dies, this side sees the end.
            drop((config_reader, theirs, inherited, command));
            let child = match child {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            shared.process.runs(&child);
            let waits = started.send(Ok(()));
            debug_assert!(waits.is_ok(), "the starting thread waits for this");
            let status = shared.process.wait(child);
            // What it said last has been heard when its end of the socket is closed, as it now is. A listener that
            // panicked has said so itself.
            let _ = listener.join();
            let why = shared.why.lock().unwrap_or_else(PoisonError::into_inner).take();
            let console = told.console();
            told.update(|state| {
                let said = state.vmm_end.take();
                let cause = why.unwrap_or_else(|| cause(status, said, &messages));
                state.ended = Some(Ending { cause, console });
            });
        })?;
        match start.recv() {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(Error::File { what: "execute", path: program.into(), source }),
            Err(_) => return Err(failed("start the VMM")(io::ErrorKind::Other.into())),
        }
        // A VMM that died already says so by its end, not by this broken pipe.
        let _ = config_writer.write_all(&text);
        drop(config_writer);
        let control = Control { board: board.clone(), socket: Mutex::new(control), next: AtomicU64::new(1) };
        Ok(Self { control: Arc::new(control), process, waiter: Mutex::new(Some(waiter)) })
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.process.clone())
    }

    /// Process id, as long as it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.process.pid()
    }

    /// Kills it, if it still runs, and waits for its end.
    pub(crate) fn kill(&self) {
        self.process.kill(Cause::Stopped);
        let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiter) = waiter {
            // A waiter that panicked has said so already.
            let _ = waiter.join();
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Control {
    pub(crate) fn attach(
        &self,
        lun: u16,
        read_only: bool,
        disk: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<()> {
        self.ask("attach a disk", Action::Attach { lun, read_only }, Some(disk), limit).map(drop)
    }

    pub(crate) fn detach(&self, lun: u16, limit: Duration) -> Result<()> {
        self.ask("detach a disk", Action::Detach { lun }, None, limit).map(drop)
    }

    /// The guest is to have so many MiB of memory; that it does is not waited for.
    pub(crate) fn set_memory(&self, mib: u64, limit: Duration) -> Result<()> {
        self.ask("change the machine's memory", Action::Memory { mib }, None, limit).map(drop)
    }

    pub(crate) fn statistics(&self, limit: Duration) -> Result<Statistics> {
        const WHAT: &str = "say how the machine is";
        let value = self.ask(WHAT, Action::Statistics, None, limit)?;
        serde_json::from_value(value).map_err(|e| Error::Vmm { what: WHAT, message: e.to_string() })
    }

    fn ask(
        &self,
        what: &'static str,
        action: Action,
        fd: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<serde_json::Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { id, action })
            .map_err(|e| Error::System { what: "write down a request to the VMM", source: e.into() })?;
        line.push(b'\n');
        self.board.update(|state| state.vmm_replies.insert(id, None));
        {
            let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            // A VMM that is gone says so by its end.
            let _ = send(&mut socket, &line, fd);
        }
        let answer = self.board.wait("an answer of the VMM", Some(limit), |state| {
            let answer = state.vmm_replies.get_mut(&id)?.take()?;
            Some(answer.map_err(|message| Error::Vmm { what, message }))
        });
        self.board.lock().vmm_replies.remove(&id);
        answer
    }

    /// Whether the machine has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.board.lock().ended.is_some()
    }

    /// The network card's cable goes there from now on.
    pub(crate) fn link(&self, to: BorrowedFd<'_>, limit: Duration) -> Result<()> {
        self.ask("connect the network", Action::Link, Some(to), limit).map(drop)
    }
}

/// Sends a line, and the descriptor with its first byte.
fn send(control: &mut UnixStream, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(fd) = fd else { return control.write_all(line) };
    let fds = [fd.as_raw_fd()];
    let sent = sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(line)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    control.write_all(&line[sent..])
}

/// Why the VMM ended, from its exit status, what it said on the control socket, and its standard error.
fn cause(status: io::Result<ExitStatus>, said: Option<Cause>, messages: &Path) -> Cause {
    let status = match status {
        Ok(status) => status,
        Err(error) => return Cause::Vmm(format!("the VMM cannot be waited for: {error}")),
    };
    if let Some(signal) = status.signal() {
        return Cause::Killed(signal);
    }
    let words = || last_lines(messages, 2).join("; ");
    match (status.code().unwrap_or(-1), said) {
        (0 | 3..=6, Some(said)) => said,
        (0, None) => Cause::PowerOff,
        (3, None) => Cause::Reset,
        (4, None) => Cause::GuestPanic(String::new()),
        (5, None) => Cause::TripleFault,
        (6, None) => Cause::Internal(words()),
        _ => Cause::Vmm(words()),
    }
}

fn read_control(control: UnixStream, board: &Board) {
    let mut reader = BufReader::new(control);
    loop {
        let mut line = Vec::new();
        match io::Read::take(&mut reader, LINE as u64).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 && line.ends_with(b"\n") => {}
            // Its end; the thread that waits for the process tells.
            _ => return,
        }
        // What a newer VMM says besides is of no interest here.
        if let Ok(message) = serde_json::from_slice::<Message>(&line) {
            hear(message, board);
        }
    }
}

fn hear(message: Message, board: &Board) {
    board.update(|state| match message {
        Message::Done { id, ok } => {
            if let Some(place @ None) = state.vmm_replies.get_mut(&id) {
                *place = Some(Ok(ok));
            }
        }
        Message::Failed { id, error } => {
            if let Some(place @ None) = state.vmm_replies.get_mut(&id) {
                *place = Some(Err(error));
            }
        }
        Message::Event { event: Event::Started(Started { process, vm, kernel, vcpu }) } => {
            let moments = [
                ("process started", process),
                ("VM made", vm),
                ("kernel loaded", kernel),
                ("first vCPU runs", vcpu),
            ];
            state.marks.extend(
                moments.map(|(name, realtime_ns)| {
                    ("vmm", Mark { name: name.into(), boottime_ns: 0, realtime_ns })
                }),
            );
        }
        Message::Event { event: Event::Ended(ended) } => {
            state.vmm_end = Some(match ended.end {
                End::PowerOff => Cause::PowerOff,
                End::Reset => Cause::Reset,
                End::GuestPanic(line) => Cause::GuestPanic(crate::console::printable(&line)),
                End::TripleFault => Cause::TripleFault,
                End::InternalError { suberror, rip, detail } => {
                    Cause::Internal(format!("{detail} (suberror {suberror}, rip {rip:#x})"))
                }
                End::Killed => Cause::Stopped,
            });
        }
    });
}
