//! What can go wrong between the host and its utility VM, one variant a cause.

use std::{fmt, io, path::PathBuf, time::Duration};

use undercroft_protocol::{
    FrameError,
    command::FailureKind,
    network::Endpoint,
    session::{ExitStatus, StartError},
};

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More distributions than there are ranges of user ids were launched in one run of the VM.
    #[error(
        "one virtual machine has users for {most} distributions, and so many were launched: shut it down and start it anew"
    )]
    NoUsersLeft {
        /// Ranges.
        most: u32,
    },
    /// A file or folder of the host could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// A verb: `open`, `create`, …
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The host's kernel refused something that is not about a file.
    #[error("cannot {what}")]
    System {
        /// A verb and its object.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// A folder of the host's cannot be had by a distribution.
    #[error("{} is not shared: {why}", host.display())]
    NotShared {
        /// The folder.
        host: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// A port cannot be published there.
    #[error("{at} cannot be published")]
    NotPublished {
        /// Where on the host.
        at: Endpoint,
        /// What the kernel says.
        source: io::Error,
    },
    /// Nothing is published, because nothing of the machine's is reached from the host.
    #[error(
        "{at} cannot be published: the virtual machine's ports are not reached from the host \
         (localhostForwarding = false, or networkingMode = none)"
    )]
    NoRelay {
        /// Where on the host.
        at: Endpoint,
    },
    /// No space is left where a disk or an archive is written.
    #[error("no space is left on the file system of {} ({free_mib} MiB free): make room there and try again", path.display())]
    DiskFull {
        /// The file that grew.
        path: PathBuf,
        /// Mebibytes that a normal user can still write.
        free_mib: u64,
    },
    /// A program that this crate runs is not installed.
    #[error("{program} is not installed: it is in the Debian package {package}")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
    },
    /// A program that this crate runs failed.
    #[error("{program} failed ({status}): {message}")]
    Program {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last line of its standard error.
        message: String,
    },
    /// The virtual machine ended.
    #[error("{0}")]
    Ended(Box<Ending>),
    /// The guest or the VMM did not answer in time.
    #[error("{what} did not come within {} s{console}", limit.as_secs())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
        /// What the guest said last.
        console: Console,
    },
    /// The guest's command or notify connection ended while the VM runs.
    #[error("mini-init's {channel} connection ended while the machine runs: {reason}{console}")]
    GuestLost {
        /// `command` or `notify`.
        channel: &'static str,
        /// Why.
        reason: String,
        /// What the guest said last.
        console: Console,
    },
    /// The guest's first words were not understood.
    #[error("{who} was not understood")]
    Protocol {
        /// Which peer.
        who: &'static str,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// mini-init could not do what it was asked.
    #[error("the VM could not {what}: {message}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// What kind of failure it is.
        kind: FailureKind,
        /// What it says, in a sentence.
        message: String,
    },
    /// A reply that does not belong to the request.
    #[error("mini-init answered a request to {what} with something else: {answer}")]
    WrongAnswer {
        /// What it was asked.
        what: &'static str,
        /// Its answer.
        answer: String,
    },
    /// The VMM could not do what it was asked over its control socket.
    #[error("the VMM could not {what}: {message}")]
    Vmm {
        /// What it was asked.
        what: &'static str,
        /// What it says.
        message: String,
    },
    /// A distribution's init ended before, or while, it was needed.
    #[error("the init of {name} ended ({}){}", describe(*status), before(*ready))]
    DistributionEnded {
        /// The distribution's name.
        name: String,
        /// How its PID 1 ended.
        status: ExitStatus,
        /// Whether it had said that it is ready.
        ready: bool,
    },
    /// A distribution's connection broke while it runs.
    #[error("the connection to the init of {name} broke: {reason}")]
    DistributionLost {
        /// The distribution's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A session's process could not be started.
    #[error("{}", start_error(.0))]
    NotStarted(StartError),
    /// The terminal could not be used.
    #[error("cannot {what} the terminal")]
    Terminal {
        /// A verb.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// A file is not what it was a moment ago.
    #[error("{} was changed while it was being read: try again when nobody writes to it", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// Whoever asked for it does not want it any more.
    #[error("cancelled")]
    Cancelled,
    /// The store could not do what it was asked.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The service refused, or could not be asked.
    #[error(transparent)]
    Service(#[from] crate::service::error::ServiceError),
    /// A distribution could not be had from where it is to come from.
    #[error(transparent)]
    Source(#[from] crate::source::SourceError),
    /// An archive could not be taken.
    #[error(transparent)]
    Archive(#[from] crate::import::ArchiveError),
}

impl Error {
    /// What a shell's exit status would be: 127 for a program that is not there, 126 for one that cannot be executed,
    /// `None` for everything that is not about the program.
    pub fn shell_status(&self) -> Option<i32> {
        match self {
            Self::NotStarted(StartError::NotFound(_)) => Some(127),
            Self::NotStarted(StartError::NotExecutable(_) | StartError::Directory(_)) => Some(126),
            Self::Service(crate::service::ServiceError::Failed { status, .. }) => *status,
            _ => None,
        }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        // Transparent ones repeat themselves.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// init names the thing and says what is the matter with it; of a user it gives the name only.
fn start_error(error: &StartError) -> String {
    match error {
        StartError::NoUser(name) => format!("{name}: no such user in the distribution"),
        StartError::NotFound(message)
        | StartError::NotExecutable(message)
        | StartError::Directory(message)
        | StartError::Other(message) => message.clone(),
    }
}

fn before(ready: bool) -> &'static str {
    if ready { "" } else { " before it was ready" }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("status {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
    }
}

/// How a virtual machine ended, with what its console said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub cause: Cause,
    /// What the guest said last.
    pub console: Console,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            // Whoever stopped it knows why.
            Cause::Interrupted(_) | Cause::Stopped => write!(f, "{}", self.cause),
            _ => write!(f, "{}{}", self.cause, self.console),
        }
    }
}

/// Why a virtual machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked; its last words where they are known.
    GuestPanic(String),
    /// A CPU could not deliver an exception, nor the exception about that.
    TripleFault,
    /// KVM could not go on.
    Internal(String),
    /// The VMM could not start or go on: what it says.
    Vmm(String),
    /// The VMM was killed by this signal; 31 is its own system call filter.
    Killed(i32),
    /// The process that owns the machine got this signal.
    Interrupted(i32),
    /// [`Machine`](crate::Machine) was told to end it.
    Stopped,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the virtual machine powered off"),
            Self::Reset => f.write_str("the virtual machine reset itself"),
            Self::GuestPanic(words) if words.is_empty() => f.write_str("the guest's kernel panicked"),
            Self::GuestPanic(words) => write!(f, "the guest's kernel panicked: {words}"),
            Self::TripleFault => {
                f.write_str("the guest stopped with a triple fault (is this a kernel for this CPU?)")
            }
            Self::Internal(what) if what.is_empty() => f.write_str("KVM stopped with an internal error"),
            Self::Internal(what) => write!(f, "KVM stopped with an internal error: {what}"),
            Self::Vmm(what) if what.is_empty() => f.write_str("the VMM failed and did not say why"),
            Self::Vmm(what) => f.write_str(what),
            Self::Killed(31) => f.write_str("the VMM was killed by its system call filter (SIGSYS)"),
            Self::Killed(signal) => write!(f, "the VMM was killed by signal {signal}"),
            Self::Interrupted(signal) => write!(f, "interrupted by signal {signal}"),
            Self::Stopped => f.write_str("the virtual machine was stopped"),
        }
    }
}

/// The end of a guest's console and where the rest of it is. Displays as nothing when there is nothing to show, else
/// as lines of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Console {
    /// The last lines, oldest first.
    pub last: Vec<String>,
    /// The whole log.
    pub log: Option<PathBuf>,
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.last {
            write!(f, "\n  | {line}")?;
        }
        match &self.log {
            Some(log) if self.last.is_empty() => {
                write!(f, "\n  the guest's console is silent: {}", log.display())
            }
            Some(log) => write!(f, "\n  the whole console: {}", log.display()),
            None => Ok(()),
        }
    }
}
