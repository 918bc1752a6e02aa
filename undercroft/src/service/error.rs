//! What the service refuses, and what keeps a client from it.

use std::{path::PathBuf, time::Duration};

use undercroft_protocol::FrameError;

use super::wire::Doing;
use crate::error::Console;

/// Why a request was refused, or the service could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no home directory to keep anything in.
    #[error(
        "HOME is not set to an absolute path: distributions are kept below it (or set XDG_DATA_HOME and the other XDG directories)"
    )]
    NoHome,
    /// The folder of the socket is not this user's own.
    #[error("{} is not a folder of this user alone (owner and mode 0700 were expected): remove it, or set XDG_RUNTIME_DIR", .0.display())]
    NotPrivate(PathBuf),
    /// Nobody is there to be asked, and none could be started.
    #[error("the service did not start: {0}")]
    NotStarted(String),
    /// The service was not understood.
    #[error("the service was not understood")]
    Wire(#[source] FrameError),
    /// It is of another version than this client.
    #[error(
        "the service that runs is of another version than this program: stop it with `undercroft shutdown` of that version, or kill process {pid}, and try again"
    )]
    OtherVersion {
        /// Its process.
        pid: String,
    },
    /// The service ended while it was needed.
    #[error("the service ended while it was needed: its log is {}", .0.display())]
    Gone(PathBuf),
    /// Somebody of another user connected.
    #[error("user {0} connected; this service is for user {1} alone")]
    Stranger(u32, u32),
    /// Another service of this user runs.
    #[error("another service of this user runs already")]
    Second,
    /// Nothing is installed.
    #[error(
        "there is no distribution yet: `undercroft install NAME`, or `undercroft import NAME FILE` with a root file system's tar archive"
    )]
    NoDistribution,
    /// It does something that excludes what was asked.
    #[error("{name} is {}: try again when that is done", doing.name().to_lowercase())]
    Busy {
        /// Which.
        name: String,
        /// What it does.
        doing: Doing,
    },
    /// It is to be used as it is, and does not run.
    #[error("{0} does not run: `undercroft run {0}` starts it")]
    NotRunning(String),
    /// A folder that is to be shared is none.
    #[error("{host} cannot be shared")]
    NoFolder {
        /// The folder.
        host: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else is at it.
    #[error("{0} is being set up in another terminal: finish that first")]
    BeingSetUp(String),
    /// What its makers say cannot be read.
    #[error("cannot read /etc/wsl-distribution.conf of {name}, which says how it is set up: {reason}")]
    Package {
        /// Which distribution.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The kernel took too long.
    #[error(
        "the virtual machine did not boot within {} ms (`kernelBootTimeout` in .wslconfig), and was stopped{console}",
        limit.as_millis()
    )]
    SlowBoot {
        /// How long it had.
        limit: Duration,
        /// What it said last.
        console: Console,
    },
    /// A distribution took too long.
    #[error(
        "{name} did not start within {} ms (`distributionStartTimeout` in .wslconfig), and was stopped: {what} was waited for{console}",
        limit.as_millis()
    )]
    SlowStart {
        /// Which.
        name: String,
        /// What it had not done.
        what: &'static str,
        /// How long it had.
        limit: Duration,
        /// What the machine said last.
        console: Console,
    },
    /// KVM is no good here.
    #[error("{0} (`undercroft doctor` looks at everything that undercroft needs)")]
    NoKvm(String),
    /// A new distribution has no name.
    #[error("the distribution needs a name: expected one before the archive, or by --name")]
    NoName,
    /// What was to be shared went away meanwhile.
    #[error("the last distribution of the same archive was removed at this moment: try again")]
    BaseGone,
    /// A part of this program's installation is missing.
    #[error(
        "{what} is missing: `undercroft parts ARCHIVE`, with an archive of undercroft by its path or address, brings it (or name the folder of the parts in UNDERCROFT_PARTS); looked for {}",
        looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Missing {
        /// Which part.
        what: &'static str,
        /// Where it could have been.
        looked: Vec<PathBuf>,
    },
    /// An archive does not bring the parts.
    #[error("{archive} is no archive of undercroft's that brings its parts: {why}")]
    NoParts {
        /// The archive.
        archive: String,
        /// Why not.
        why: String,
    },
    /// The machine is being stopped.
    #[error("the virtual machine is being shut down: try again in a moment")]
    ShuttingDown,
    /// What the service said of its failure.
    #[error("{message}")]
    Failed {
        /// In its words.
        message: String,
        /// What a shell would give as status.
        status: Option<i32>,
    },
}
