//! What the host and a distribution's init say to each other: sessions.

use serde::{Deserialize, Serialize};

use crate::opening::{Mark, Token};

/// What a distribution's init is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitRequest {
    /// Start a process for a person or program on the host.
    Exec(Exec),
    /// Send a signal to a session's process group: the foreground one of its terminal, or the process's own.
    Signal {
        /// [`Exec::session`].
        session: u64,
        /// A Linux signal number.
        signal: i32,
    },
    /// The terminal's window has another size now.
    Resize {
        /// [`Exec::session`].
        session: u64,
        /// The new size.
        size: WindowSize,
    },
    /// The host's side is gone: the session gets SIGHUP, and after two seconds SIGKILL.
    Abandon {
        /// [`Exec::session`].
        session: u64,
    },
    /// The host's time zone, as /usr/share/zoneinfo names it (`Europe/Berlin`): for distributions that want to have the
    /// same.
    TimeZone(String),
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Chosen by the host, never used twice in one run of the distribution.
    pub session: u64,
    /// What to run.
    pub program: Program,
    /// Environment to add to the login environment (PATH, HOME, USER, SHELL, LANG, …), as `NAME`, `value`.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// The working directory; `None` is the user's home directory. `~/…` is below it.
    pub directory: Option<Vec<u8>>,
    /// A user name or number; `None` is the distribution's default user.
    pub user: Option<String>,
    /// Where its input comes from and its output goes.
    pub stdio: Stdio,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// The user's login shell, interactive.
    LoginShell,
    /// One command line, by `SHELL -c`, through the user's shell.
    ShellCommand(Vec<u8>),
    /// A program and its arguments, found in PATH, without a shell. The first is the program.
    Argv(Vec<Vec<u8>>),
    /// As [`ShellCommand`](Self::ShellCommand), through a login shell: what the user's profile sets is there.
    LoginCommand(Vec<u8>),
}

/// A session's input and output. For each token init's relay opens one stream to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Three streams that stay apart. A stream whose token is `None` is /dev/null.
    Pipes {
        /// Host → process. The host's shutdown of its sending side is end of file.
        stdin: Option<Token>,
        /// Process → host.
        stdout: Option<Token>,
        /// Process → host.
        stderr: Option<Token>,
    },
    /// One terminal, in the distribution's own /dev/pts, as the controlling terminal of a new session.
    Terminal {
        /// Both directions.
        stream: Token,
        /// Its first size.
        size: WindowSize,
    },
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// What a distribution's init tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitEvent {
    /// It is set up and takes sessions. The first event.
    Ready {
        /// What was done when, for the timeline.
        marks: Vec<Mark>,
        /// What did not work, a line each (a file of its configuration that could not be read, say).
        warnings: Vec<String>,
    },
    /// The session's process has been started (executed, not only forked).
    Started {
        /// [`Exec::session`].
        session: u64,
        /// Process id in the distribution.
        pid: u32,
        /// When, for the timeline.
        mark: Mark,
    },
    /// The session's process could not be started; nothing else follows for it.
    NotStarted {
        /// [`Exec::session`].
        session: u64,
        /// Why.
        error: StartError,
    },
    /// The session's process has ended, and all that it had written was sent on its streams.
    Exited {
        /// [`Exec::session`].
        session: u64,
        /// How.
        status: ExitStatus,
    },
    /// What its own configuration says that the host has to know; told before `Ready`.
    Configured {
        /// `undercroft.keepAlive`: it would rather go on when its last session has ended.
        keep_alive: bool,
        /// `user.default`: who sessions run as that name no user.
        user: Option<String>,
    },
    /// The session's process has ended, and others that it started go on.
    Left {
        /// [`Exec::session`].
        session: u64,
    },
    /// What that session had [left](Self::Left) behind is gone, too.
    Gone {
        /// [`Exec::session`].
        session: u64,
    },
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartError {
    /// No such program (a shell says 127).
    NotFound(String),
    /// It is there and cannot be executed (a shell says 126).
    NotExecutable(String),
    /// No such user in the distribution.
    NoUser(String),
    /// The working directory cannot be entered.
    Directory(String),
    /// Something else, in a sentence.
    Other(String),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By `exit`, with this status, 0 to 255.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl ExitStatus {
    /// As a shell says it: the status, or 128 + the signal's number.
    ///
    /// ```
    /// use undercroft_protocol::session::ExitStatus;
    /// assert_eq!(ExitStatus::Code(7).shell(), 7);
    /// assert_eq!(ExitStatus::Signal(9).shell(), 137);
    /// ```
    pub fn shell(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}
