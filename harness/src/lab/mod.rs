//! The lab: a machine with working KVM, made in software, for hosts that have none.
//!
//! ```no_run
//! use undercroft_harness::lab;
//!
//! if let Some(reason) = lab::needed() {
//!     std::process::exit(lab::rerun(&reason)?.into());
//! }
//! # Ok::<(), lab::LabError>(())
//! ```
//!
//! L1 is a QEMU without acceleration whose processor has AMD's SVM, with Debian's 6.12 cloud kernel and its unmodified
//! KVM. In it the host's files are at their own paths: read-only, but for the work tree, the target directory and the
//! cache; `/run` and `/dev/shm` are its own, and `/tmp` shows the host's and keeps what is written to itself. So a
//! program that was built on the host runs in it as it is. The first command starts the lab (some five seconds) and it
//! stays for the next ones, until nothing has run in it for a quarter of an hour.

mod client;
mod environment;
mod error;
mod folder;
mod initramfs;
mod kernel;
mod start;
mod terminal;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use undercroft_vmm::probe::{Verdict, probe};

pub use client::Output;
pub use error::LabError;
pub use start::{down, ensure, ensure_nth, rust_virtiofsd, status};
pub use undercroft_lab::wire::{Ended, Report, Size};

/// Set in L1 for every command.
const INSIDE: &str = "UNDERCROFT_LAB";

/// Whether this process runs in the lab.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why KVM cannot be used here and the lab is needed; `None` where it can, and in the lab itself. The probe runs once
/// in a process; `UNDERCROFT_KVM=hardware` and `UNDERCROFT_KVM=lab` answer in its place.
pub fn needed() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            if inside() {
                return None;
            }
            match std::env::var("UNDERCROFT_KVM").as_deref() {
                Ok("hardware") => None,
                Ok("lab") => Some("UNDERCROFT_KVM=lab asks for it".into()),
                _ => match probe() {
                    Verdict::Hardware => None,
                    verdict => Some(verdict.to_string()),
                },
            }
        })
        .clone()
}

/// Runs this very command in the lab, after one line that says so, with a terminal if this one has one. Gives the
/// status to end with.
pub fn rerun(reason: &str) -> Result<u8, LabError> {
    eprintln!("in the lab (KVM in software): {reason}");
    let program = std::env::current_exe().map_err(LabError::at("finding this program's own path"))?;
    let argv = std::iter::once(program.into_os_string()).chain(std::env::args_os().skip(1));
    Ok(ensure()?.command(argv).tty_if_terminal().forward_signals(true).status()?.code())
}

/// A lab that is up.
#[derive(Debug, Clone)]
pub struct Lab {
    folder: PathBuf,
}

impl Lab {
    /// The log of L1's console: what its kernel complains of.
    pub fn console(&self) -> PathBuf {
        self.folder.join(undercroft_lab::launch::CONSOLE)
    }

    /// Ends it, unless something runs in it: then it ends with that.
    pub fn retire(&self) {
        start::retire(&self.folder);
    }

    /// Ends it, with what runs in it.
    pub fn end(&self) -> Result<(), LabError> {
        start::end(&self.folder)
    }

    /// A command to run in the lab: here, as this user, with what of this environment belongs to it.
    pub fn command<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(&self, argv: I) -> Command<'static> {
        Command {
            folder: self.folder.clone(),
            argv: argv.into_iter().map(|a| a.as_ref().to_owned()).collect(),
            environment: environment::chosen(),
            directory: None,
            tty: false,
            forward_signals: false,
            input: Input::Inherited,
        }
    }
}

/// A command for the lab.
#[derive(Debug)]
pub struct Command<'a> {
    folder: PathBuf,
    argv: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    tty: bool,
    forward_signals: bool,
    input: Input<'a>,
}

#[derive(Debug)]
enum Input<'a> {
    Inherited,
    Null,
    From(BorrowedFd<'a>),
}

impl<'a> Command<'a> {
    /// Gives it a terminal in L1; this process's stdin should be one, and is put into raw mode meanwhile.
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Gives it a terminal if stdin and stdout are one.
    pub fn tty_if_terminal(self) -> Self {
        use std::io::IsTerminal;
        let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        self.tty(tty)
    }

    /// Hands SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 on to the command. Only for a process with one
    /// thread: the others would still die of them.
    pub fn forward_signals(mut self, forward: bool) -> Self {
        self.forward_signals = forward;
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.retain(|(n, _)| n != name.as_ref());
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets several variables of its environment.
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(self, variables: impl IntoIterator<Item = (N, V)>) -> Self {
        variables.into_iter().fold(self, |command, (name, value)| command.env(name, value))
    }

    /// Where it runs; the current directory unless told.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// No stdin.
    pub fn stdin_null(mut self) -> Self {
        self.input = Input::Null;
        self
    }

    /// Stdin from a descriptor that can be polled or is a file.
    pub fn stdin_from<'b>(self, from: &'b impl AsFd) -> Command<'b> {
        Command { input: Input::From(from.as_fd()), ..self.forget_input() }
    }

    fn forget_input<'b>(self) -> Command<'b> {
        Command {
            folder: self.folder,
            argv: self.argv,
            environment: self.environment,
            directory: self.directory,
            tty: self.tty,
            forward_signals: self.forward_signals,
            input: Input::Null,
        }
    }

    /// Runs it with this process's stdout and stderr, and gives how it ended.
    pub fn status(self) -> Result<Ended, LabError> {
        client::run(&self, false).map(|output| output.ended)
    }

    /// Runs it and collects its output.
    pub fn output(self) -> Result<Output, LabError> {
        client::run(&self, true)
    }
}
