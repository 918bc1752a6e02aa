//! One session: a process between the host's streams and the program that was asked for.
//!
//! A relay of its own for each session, so that PID 1 stays small and a session that fills its buffers stops nobody else.
//! It adopts what its program leaves behind, and lives until all of that is gone, as the reference system has it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{ForkResult, Pid, pipe2, setsid},
};
use undercroft_guest::{
    channel::Channel,
    clock, host,
    process::{Reaped, exit_child, fork, reap},
};
use undercroft_protocol::{
    FrameError, Opening, Token,
    frame::{read_frame, write_frame},
    session::{Exec, ExitStatus, InitEvent, InitRequest, StartError, Stdio},
};

use crate::{
    copy::Copy,
    process,
    program::{self, Ends},
    server::About,
    systemd::login::Login,
    terminal, users,
};

/// Between the host's end being gone and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// Runs a session, in a process of its own that ends with it.
pub(crate) fn run(control: OwnedFd, exec: &Exec, about: &About) -> ! {
    process::close_all_but(&control);
    let session = exec.session;
    let outcome = (|| {
        let mut control = Channel::new(control)?;
        match start(exec, about) {
            Ok(mut relay) => {
                let mark = clock::mark("init: program executed");
                control.send(&InitEvent::Started { session, pid: relay.program.as_raw() as u32, mark })?;
                relay.serve(&mut control, session)
            }
            Err(error) => {
                control.send(&InitEvent::NotStarted { session, error })?;
                Ok(())
            }
        }
    })();
    exit_child(i32::from(outcome.is_err()))
}

#[derive(Debug)]
struct Relay {
    program: Pid,
    status: Option<ExitStatus>,
    /// Exited was said.
    told: bool,
    /// And that something was left behind.
    left: bool,
    signals: SignalFd,
    /// The terminal's master, if there is one.
    master: Option<File>,
    input: Option<Copy>,
    outputs: Vec<Copy>,
    /// The host's end is gone; SIGKILL is due then.
    kill_at: Option<Instant>,
}

/// The relay's ends of what the program was given.
struct Near {
    master: Option<File>,
    input: Option<Copy>,
    outputs: Vec<Copy>,
}

fn start(exec: &Exec, about: &About) -> Result<Relay, StartError> {
    let other = |what: &'static str| move |error: io::Error| StartError::Other(format!("{what}: {error}"));
    // All of them: what is sent to every process when the distribution stops is for the programs, and the relay ends
    // after them.
    let _ = SigSet::all().thread_block();
    let signals = SignalFd::with_flags(
        &SigSet::from_iter([Signal::SIGCHLD]),
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )
    .map_err(|e| StartError::Other(format!("making a signalfd: {e}")))?;
    let _ = setsid();
    let _ = process::adopt_orphans();

    let name = exec.user.as_deref().or(about.configuration.user.as_deref()).unwrap_or("root");
    let user = users::find(name).ok_or_else(|| StartError::NoUser(name.into()))?;
    let login =
        if about.systemd { Login::of(&user, about.configuration.init_timeout) } else { Login::default() };
    let (far, near) = connect(&exec.stdio).map_err(other("connecting the session to the host"))?;

    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|e| other("making a pipe")(e.into()))?;
    let program = match fork().map_err(|e| other("starting a process")(e.into()))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let error = program::become_it(exec, &user, about, &login, &far);
            let _ = write_frame(&mut File::from(reporter), &error);
            exit_child(127)
        }
    };
    drop((far, reporter));
    // The pipe is closed by the exec.
    match read_frame::<StartError>(&mut File::from(report)) {
        Err(FrameError::Closed) => {}
        Ok(error) => return Err(error),
        Err(error) => {
            return Err(StartError::Other(format!("the process did not say whether it started: {error}")));
        }
    }
    let Near { master, input, outputs } = near;
    Ok(Relay {
        program,
        status: None,
        told: false,
        left: false,
        signals,
        master,
        input,
        outputs,
        kill_at: None,
    })
}

/// Opens the streams that were asked for, and what the program gets on the other side of them.
fn connect(stdio: &Stdio) -> io::Result<(Ends, Near)> {
    let stream = |token: Token| host::connect_as(&Opening::Stream(token)).map(File::from);
    match *stdio {
        Stdio::Terminal { stream: token, size } => {
            let stream = stream(token)?;
            let (master, slave) = terminal::open(size)?;
            let input = Copy::new(stream.try_clone()?, master.try_clone()?)?;
            let output = Copy::new(master.try_clone()?, stream)?;
            Ok((
                Ends::Terminal(slave),
                Near { master: Some(master), input: Some(input), outputs: vec![output] },
            ))
        }
        Stdio::Pipes { stdin, stdout, stderr } => {
            let null = || File::options().read(true).write(true).open("/dev/null");
            let pipe = || pipe2(OFlag::O_CLOEXEC).map(|(read, write)| (File::from(read), File::from(write)));
            let mut near = Near { master: None, input: None, outputs: Vec::new() };
            let stdin = match stdin {
                None => null()?,
                Some(token) => {
                    let (read, write) = pipe()?;
                    near.input = Some(Copy::new(stream(token)?, write)?);
                    read
                }
            };
            let mut output = |token: Option<Token>| match token {
                None => null(),
                Some(token) => {
                    let (read, write) = pipe()?;
                    near.outputs.push(Copy::new(read, stream(token)?)?);
                    Ok(write)
                }
            };
            let (stdout, stderr) = (output(stdout)?, output(stderr)?);
            Ok((Ends::Three(stdin, stdout, stderr), near))
        }
    }
}

impl Relay {
    /// Copies until everything of the session is gone.
    fn serve(&mut self, control: &mut Channel, session: u64) -> io::Result<()> {
        loop {
            let children_are_gone = self.children_are_gone();
            for copy in self.input.iter_mut().chain(&mut self.outputs) {
                copy.step();
            }
            self.look_after_terminal();
            if let Some(status) = self.status.filter(|_| !self.told && self.outputs.iter().all(Copy::is_dry))
            {
                // What is written from here on is written by what the program left behind, and has no reader.
                self.outputs.iter_mut().for_each(Copy::discard_rest);
                self.told = true;
                control.send(&InitEvent::Exited { session, status })?;
            }
            if self.told && !children_are_gone && !self.left {
                self.left = true;
                control.send(&InitEvent::Left { session })?;
            }
            if children_are_gone && self.told && control.is_flushed() {
                return Ok(());
            }
            self.wait(control)?;
            let (requests, end) = control.receive::<InitRequest>();
            for request in requests {
                self.carry_out(&request);
            }
            if end.is_some() {
                // PID 1 is gone, and this namespace with it.
                return Ok(());
            }
            control.flush()?;
            self.kill_if_due();
        }
    }

    fn wait(&self, control: &Channel) -> io::Result<()> {
        let timeout = self.kill_at.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut descriptors = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), control.interest()),
        ];
        for copy in self.input.iter().chain(&self.outputs) {
            copy.poll_for(&mut descriptors);
        }
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the ends of children; whether none is left.
    fn children_are_gone(&mut self) -> bool {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match reap() {
                Reaped::Child(pid, status) if pid == self.program => {
                    self.status = Some(status);
                    // Nobody is to read the session's input any more.
                    if let Some(input) = &mut self.input {
                        input.close();
                    }
                }
                Reaped::Child(..) => {}
                Reaped::Nothing => return false,
                Reaped::NoChildren => return true,
            }
        }
    }

    fn carry_out(&mut self, request: &InitRequest) {
        match request {
            InitRequest::Signal { signal, .. } => self.signal(*signal),
            InitRequest::Resize { size, .. } => {
                if let Some(master) = &self.master {
                    let _ = terminal::resize(master, *size);
                }
            }
            InitRequest::Abandon { .. } => self.abandon(),
            InitRequest::Exec(_) | InitRequest::TimeZone(_) => {}
        }
    }

    /// To the foreground process group of the terminal, or to the program's own group.
    fn signal(&self, number: i32) {
        let own = (self.status.is_none()).then_some(self.program);
        let group = self.master.as_ref().and_then(terminal::foreground).or(own);
        if let Some(group) = group {
            let _ = process::signal(Pid::from_raw(-group.as_raw()), number);
        }
    }

    fn signal_session(&self, number: i32) {
        if self.status.is_none() {
            let _ = process::signal(Pid::from_raw(-self.program.as_raw()), number);
        }
        if let Some(group) =
            self.master.as_ref().and_then(terminal::foreground).filter(|g| *g != self.program)
        {
            let _ = process::signal(Pid::from_raw(-group.as_raw()), number);
        }
    }

    /// The host's side is gone: what a terminal does when its line is cut.
    fn abandon(&mut self) {
        if self.kill_at.is_none() && !self.told {
            self.kill_at = Some(Instant::now() + GRACE);
            self.signal_session(Signal::SIGHUP as i32);
            // A stopped process notices nothing until it goes on.
            self.signal_session(Signal::SIGCONT as i32);
            self.outputs.iter_mut().for_each(Copy::discard_rest);
        }
    }

    fn kill_if_due(&mut self) {
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            if !self.told {
                self.signal_session(Signal::SIGKILL as i32);
            }
        }
    }

    /// A terminal whose stream has gone is a line that was cut, even if the host has not said so.
    fn look_after_terminal(&mut self) {
        let cut = self.master.is_some() && self.outputs.iter().any(Copy::has_lost_reader);
        if cut && self.status.is_none() {
            self.abandon();
        }
    }
}
