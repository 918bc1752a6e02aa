//! The loop: commands of the host's, words of the children's, ends of processes.

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
    },
    unistd::Pid,
};
use undercroft_guest::{
    channel::Channel,
    clock as moments,
    process::{Reaped, reap},
};
use undercroft_protocol::{
    command::{Command, Done, Event, Failure, FailureKind, Launch, Reply, Request},
    session::ExitStatus,
};

use crate::{
    clock, disk,
    distribution::{self, Distribution},
    export, folder, grow, import,
    jobs::{self, Job, Purpose, Word},
    launch, log, modprobe, network, power,
    reclaim::{self, Reclaimer, Sample},
    swap, usage,
};

/// What the distributions get when the host is gone: enough to write what they have in mind.
const GRACE_WITHOUT_HOST: Duration = Duration::from_secs(5);
/// How long the last reply may take to reach the host before the power goes.
const LAST_WORD: Duration = Duration::from_secs(1);

/// mini-init, after the hello.
#[derive(Debug)]
pub(crate) struct Server {
    command: Channel,
    notify: Channel,
    signals: SignalFd,
    jobs: Vec<Job>,
    distributions: BTreeMap<u32, Distribution>,
    /// Launches' numbers, which are never used twice.
    used: std::collections::BTreeSet<u32>,
    reclaimer: Reclaimer,
    complaints: Vec<String>,
    /// Set when the machine is to stop: the request that asked for it, if one did.
    stopping: Option<Option<u64>>,
    host_gone: bool,
}

impl Server {
    /// Takes the two connections. Signals are blocked from here on, in every child too, until it unblocks them.
    pub(crate) fn new(command: OwnedFd, notify: OwnedFd) -> io::Result<Self> {
        // SIGINT is what the kernel makes of Ctrl-Alt-Del. SIGTERM is blocked for the distributions' sake: one that is
        // told to stop before its init listens must find the signal waiting.
        let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
        signals.thread_block()?;
        Ok(Self {
            command: Channel::new(command)?,
            notify: Channel::new(notify)?,
            signals: SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            jobs: Vec::new(),
            distributions: BTreeMap::new(),
            used: std::collections::BTreeSet::new(),
            reclaimer: Reclaimer::new(),
            complaints: Vec::new(),
            stopping: None,
            host_gone: false,
        })
    }

    /// Answers until the machine is to be powered off and every distribution has ended.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            if let Some(request) = self.stopping
                && self.distributions.is_empty()
            {
                self.complaints.extend(power::stop_everything());
                self.last_word(request);
                return Ok(());
            }
            self.wait()?;
            self.take_signals();
            self.take_words();
            self.take_commands();
            for distribution in self.distributions.values_mut() {
                distribution.kill_if_due();
            }
            self.reclaim_if_due();
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&mut self) -> io::Result<()> {
        let kills = self.distributions.values().filter_map(|d| d.kill_at);
        let due = kills.chain(self.reclaimer.due()).min();
        let timeout = due.map_or(PollTimeout::NONE, |at| {
            // One more than the remaining milliseconds, so that it is due when the poll returns.
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if !self.host_gone {
            descriptors.push(PollFd::new(self.command.as_fd(), self.command.interest()));
            if !self.notify.is_flushed() {
                descriptors.push(PollFd::new(self.notify.as_fd(), PollFlags::POLLOUT));
            }
        }
        descriptors.extend(self.jobs.iter().map(|job| PollFd::new(job.ear.as_fd(), PollFlags::POLLIN)));
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.stop(None, GRACE_WITHOUT_HOST);
            }
        }
        while let Reaped::Child(pid, status) = reap() {
            self.ended(pid, status);
        }
    }

    /// A child has ended. Jobs are of no interest here: the end of their pipe says the same.
    fn ended(&mut self, pid: Pid, status: ExitStatus) {
        // The word that makes it a distribution's may still be in a pipe, as may its last ones if it died before it could
        // be executed.
        self.take_words();
        let Some((&id, distribution)) = self.distributions.iter_mut().find(|(_, d)| d.pid == Some(pid))
        else {
            return;
        };
        distribution.ended(status);
        self.clear_away(id);
    }

    /// Clears away after a distribution that has no process any more, or never had one.
    fn clear_away(&mut self, id: u32) {
        let Some(distribution) = self.distributions.get(&id) else { return };
        let device = distribution.device.clone();
        match jobs::start(Purpose::Cleanup { distribution: id }, |_| {
            Ok(distribution::clear_away(id, &device))
        }) {
            Ok(job) => self.jobs.push(job),
            Err(failure) => self.cleared(id, vec![failure.message]),
        }
    }

    fn take_commands(&mut self) {
        if self.host_gone {
            return;
        }
        let (requests, end) = self.command.receive::<Request>();
        for request in requests {
            self.carry_out(request);
        }
        let flushed = self.command.flush();
        // A notify channel that fails is only of interest with the command channel, which fails with it.
        let _ = self.notify.flush();
        let reason = match (end, flushed) {
            (None, Ok(())) => return,
            (Some(Ok(())), _) => "it closed the command connection".to_owned(),
            (Some(Err(error)), _) | (None, Err(error)) => error.to_string(),
        };
        log::line(log::Level::Info, &format!("the host is gone ({reason}); powering off"));
        self.host_gone = true;
        self.stop(None, GRACE_WITHOUT_HOST);
    }

    fn carry_out(&mut self, Request { id, command }: Request) {
        let work = |work: &dyn Fn() -> Result<Done, Failure>| jobs::start(Purpose::Request(id), |_| work());
        let job = match command {
            Command::Ping => return self.answer(id, Ok(Done::Nothing)),
            Command::AttachDisk(address) => work(&|| disk::attach(&address)),
            Command::DetachDisk(address) => work(&|| disk::detach(&address)),
            Command::Modules { disk } => work(&|| modprobe::serve_from(&disk)),
            Command::Grow { memory, limit_ms } => {
                grow::raise_limits(memory);
                let limit = Duration::from_millis(limit_ms.into());
                // Nobody may be waiting for the answer.
                jobs::start(Purpose::Request(id), |mouth| {
                    grow::grow(memory, limit).inspect_err(|failure| mouth.warn(failure.message.clone()))
                })
            }
            Command::Reclaim(settings) => {
                self.reclaimer.configure(settings, Instant::now());
                return self.answer(id, Ok(Done::Nothing));
            }
            Command::Usage => {
                let usage = usage::take(self.distributions.keys().copied());
                return self.answer(id, Ok(Done::Usage(usage)));
            }
            Command::SwapOn(what) => work(&|| swap::on(&what)),
            Command::SetTime { realtime_ns, tolerance_ms } => {
                let tolerance = Duration::from_millis(tolerance_ms.into());
                return self.answer(id, clock::follow(realtime_ns, tolerance));
            }
            Command::Network(what) => work(&|| network::configure(&what)),
            // At once: what is launched next finds them.
            Command::Names(names) => return self.answer(id, network::names::write(&names)),
            Command::Relay { token } => {
                jobs::start(Purpose::Request(id), |mouth| network::relay::run(token, mouth))
            }
            Command::Resolver { token, address } => {
                jobs::start(Purpose::Request(id), |mouth| network::resolver::run(token, address, mouth))
            }
            Command::Share(what) => self.doors(what.distribution).and_then(|doors| {
                jobs::start(Purpose::Request(id), |mouth| folder::run(&what, doors, mouth))
            }),
            Command::Import(what) => jobs::start(Purpose::Request(id), |mouth| import::run(&what, mouth)),
            Command::Export(what) => launch::Devices::of(&what.root).and_then(|devices| {
                self.unused(&devices)?;
                jobs::start(Purpose::Request(id), |mouth| export::run(&what, &devices, mouth))
            }),
            Command::Launch(what) => self.launch(id, &what),
            Command::Terminate { distribution, grace_ms } => {
                match self.distributions.get_mut(&distribution) {
                    Some(it) => {
                        it.asked_by.push(id);
                        return it.stop(Duration::from_millis(grace_ms.into()));
                    }
                    None => Err(not_running(distribution)),
                }
            }
            Command::PowerOff { grace_ms } => {
                return self.stop(Some(id), Duration::from_millis(grace_ms.into()));
            }
        };
        match job {
            Ok(job) => self.jobs.push(job),
            Err(failure) => self.answer(id, Err(failure)),
        }
    }

    /// Refuses a disk that a distribution runs from.
    fn unused(&self, devices: &launch::Devices) -> Result<(), Failure> {
        match self.distributions.values().find(|it| it.device == devices.own) {
            Some(it) => Err(invalid(format!("{} runs from this disk: stop it first", it.name))),
            None => Ok(()),
        }
    }

    /// The ways into a distribution that runs. They are opened here, where no process can take its first one's number meanwhile.
    fn doors(&self, id: u32) -> Result<folder::Doors, Failure> {
        let running = self.distributions.get(&id).filter(|it| it.launched && it.status.is_none());
        match running.and_then(|it| it.pid) {
            Some(pid) => folder::Doors::of(pid).map_err(jobs::system("entering the distribution")),
            None => Err(not_running(id)),
        }
    }

    fn launch(&mut self, request: u64, what: &Launch) -> Result<Job, Failure> {
        if self.stopping.is_some() {
            return Err(invalid("the virtual machine is being powered off".into()));
        }
        if !self.used.insert(what.id) {
            return Err(invalid(format!("the number {} was used for a distribution before", what.id)));
        }
        let devices = launch::Devices::of(&what.root)?;
        let pending = launch::start(request, what, &devices)?;
        self.distributions.insert(
            what.id,
            Distribution {
                pid: None,
                name: what.name.clone(),
                device: devices.own,
                launched: false,
                kill_at: None,
                asked_by: Vec::new(),
                told_to_stop: None,
                status: None,
            },
        );
        Ok(pending)
    }

    /// Looks whether there is memory to give back, when that is due.
    fn reclaim_if_due(&mut self) {
        if self.stopping.is_some() || self.reclaimer.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let Some(sample) = Sample::take() else { return self.reclaimer.give_up() };
        let Some(settings) = self.reclaimer.look(sample) else { return };
        let purpose = Purpose::Reclaim { more: false };
        match jobs::start(purpose, |mouth| reclaim::run(settings, mouth)) {
            Ok(job) => self.jobs.push(job),
            // There may be memory for a process the next time.
            Err(_) => self.reclaimer.worked(false, Instant::now()),
        }
    }

    /// Begins to stop the machine.
    fn stop(&mut self, request: Option<u64>, grace: Duration) {
        if let Some(first) = &mut self.stopping {
            // Asked again: the later request is answered, unless one waits already.
            if let Some(id) = request {
                match first {
                    Some(_) => self
                        .answer(id, Err(invalid("the virtual machine is already being powered off".into()))),
                    None => *first = Some(id),
                }
            }
            return;
        }
        self.stopping = Some(request);
        self.reclaimer.give_up();
        for distribution in self.distributions.values_mut() {
            distribution.stop(grace);
        }
    }

    /// Takes what the children have said.
    fn take_words(&mut self) {
        let mut jobs = std::mem::take(&mut self.jobs);
        jobs.retain_mut(|job| {
            let (words, end) = job.ear.receive::<Word>();
            for word in words {
                match word {
                    Word::Event(event) => self.tell(&event),
                    Word::Mark(mark) => job.marks.push(mark),
                    Word::Born(pid) => self.born(job.purpose, Pid::from_raw(pid)),
                    Word::More => job.purpose = Purpose::Reclaim { more: true },
                    Word::Answer(answer) => {
                        self.finish(job, Some(answer));
                        return false;
                    }
                }
            }
            if end.is_some() {
                self.finish(job, None);
            }
            end.is_none()
        });
        jobs.append(&mut self.jobs);
        self.jobs = jobs;
    }

    /// A launch has made the distribution's first process.
    fn born(&mut self, purpose: Purpose, pid: Pid) {
        if let Purpose::Launch { distribution, .. } = purpose
            && let Some(distribution) = self.distributions.get_mut(&distribution)
        {
            distribution.born(pid);
        }
    }

    /// A child has answered, or its pipe has ended without.
    fn finish(&mut self, job: &mut Job, answer: Option<Result<Done, Failure>>) {
        let silent = || Failure {
            kind: FailureKind::System,
            message: "the process that did this ended without an answer; the kernel's log may say why".into(),
        };
        match (job.purpose, answer) {
            (Purpose::Request(id), answer) => self.answer(id, answer.unwrap_or_else(|| Err(silent()))),
            (Purpose::Launch { request, distribution }, Some(failed)) => {
                self.answer(request, failed);
                // One that has a process is cleared away when that has ended, which it does now.
                if self.distributions.get(&distribution).is_some_and(|d| d.pid.is_none()) {
                    self.clear_away(distribution);
                }
            }
            (Purpose::Launch { request, distribution }, None) => {
                let mut marks = std::mem::take(&mut job.marks);
                marks.push(moments::mark("mini-init: init executed"));
                if let Some(distribution) = self.distributions.get_mut(&distribution) {
                    distribution.launched = true;
                }
                let pid = self.distributions.get(&distribution).and_then(|d| d.pid);
                let done = pid.map(|pid| Done::Launched { pid: pid.as_raw() as u32, marks });
                self.answer(request, done.ok_or_else(silent));
                if pid.is_none() {
                    self.clear_away(distribution);
                }
            }
            (Purpose::Cleanup { distribution }, Some(Ok(Done::Stopped { complaints }))) => {
                self.cleared(distribution, complaints);
            }
            (Purpose::Reclaim { .. }, Some(Err(failure))) => {
                self.reclaimer.give_up();
                self.tell(&Event::Warning(failure.message));
            }
            (Purpose::Reclaim { more }, _) => self.reclaimer.worked(more, Instant::now()),
            (Purpose::Cleanup { distribution }, _) => self.cleared(distribution, vec![silent().message]),
        }
    }

    /// Nothing of a distribution is left.
    fn cleared(&mut self, id: u32, complaints: Vec<String>) {
        let Some(distribution) = self.distributions.remove(&id) else { return };
        let complaints: Vec<String> =
            complaints.into_iter().map(|c| format!("distribution {}: {c}", distribution.name)).collect();
        for complaint in &complaints {
            log::line(log::Level::Warning, complaint);
        }
        if distribution.launched {
            let status = distribution.status.unwrap_or(ExitStatus::Signal(Signal::SIGKILL as i32));
            self.tell(&Event::DistributionEnded { distribution: id, status });
        }
        if self.stopping.is_some() {
            self.complaints.extend(complaints.clone());
        } else if distribution.asked_by.is_empty() {
            for complaint in &complaints {
                self.tell(&Event::Warning(complaint.clone()));
            }
        }
        for request in distribution.asked_by {
            self.answer(request, Ok(Done::Stopped { complaints: complaints.clone() }));
        }
    }

    /// Answers a request. That the host is gone is noticed where the connection is read.
    fn answer(&mut self, id: u64, outcome: Result<Done, Failure>) {
        if let Err(error) = self.command.send(&Reply { id, outcome }) {
            log::line(log::Level::Warning, &format!("an answer could not be sent: {error}"));
        }
    }

    fn tell(&mut self, event: &Event) {
        if let Err(error) = self.notify.send(event) {
            log::line(log::Level::Warning, &format!("an event could not be sent: {error}"));
        }
    }

    /// Answers the request that asked for the end, and waits until the host has read it: it closes its side then.
    fn last_word(mut self, request: Option<u64>) {
        for complaint in &self.complaints {
            log::line(log::Level::Warning, complaint);
        }
        let Some(id) = request else { return };
        let complaints = std::mem::take(&mut self.complaints);
        self.answer(id, Ok(Done::Stopped { complaints }));
        let end = Instant::now() + LAST_WORD;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.command.flush().is_err() || self.command.receive::<Request>().1.is_some() {
                return;
            }
            if self.command.is_flushed() {
                let socket = std::os::fd::AsRawFd::as_raw_fd(&self.command.as_fd());
                let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Write);
            }
            let mut descriptor = [PollFd::new(self.command.as_fd(), self.command.interest())];
            let _ = poll(&mut descriptor, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        }
    }
}

fn not_running(id: u32) -> Failure {
    invalid(format!("no distribution with the number {id} runs"))
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message }
}
