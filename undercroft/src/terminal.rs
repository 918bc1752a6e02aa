//! The host's terminal while a session with a terminal runs: raw, and restored whatever happens.
//!
//! In raw mode every key is a byte for the program in the distribution: Ctrl-C, Ctrl-Z and Ctrl-\ are made into signals
//! by the terminal *there*. The saved mode is kept in one place of the process, so that a panic's message and a stop by
//! signal find the way back, too.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, Once, PoisonError},
};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use undercroft_protocol::session::{ExitStatus, WindowSize};

use crate::{
    error::{Error, Result},
    session::{Input, Relayed},
    signals::Signals,
};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// Whether standard input and output both are terminals.
pub fn is_interactive() -> bool {
    isatty(io::stdin()) && isatty(io::stdout())
}

/// The terminal's size; 24 × 80 where it does not know.
pub fn size() -> WindowSize {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => WindowSize { rows: 24, columns: 80 },
    }
}

/// How many columns standard output has, if it is a terminal.
pub fn width() -> Option<usize> {
    isatty(io::stdout()).then(|| size().columns.into())
}

/// The terminal in raw mode, until this is dropped.
#[derive(Debug)]
struct Raw;

impl Raw {
    fn enter() -> Result<Self> {
        PANIC_HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                previous(panic);
            }));
        });
        make_raw()?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal raw; what it was before is kept for [`restore`].
pub(crate) fn make_raw() -> Result<()> {
    let failed = |what| move |e: rustix::io::Errno| Error::Terminal { what, source: e.into() };
    let terminal = io::stdin();
    let saved = tcgetattr(&terminal).map_err(failed("ask for the mode of"))?;
    let mut raw = saved.clone();
    raw.make_raw();
    SAVED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(saved);
    // Draining first: what was written before must not be shown with the new mode.
    tcsetattr(&terminal, OptionalActions::Drain, &raw).map_err(failed("set the mode of"))
}

/// Gives the terminal its mode back, if it was taken.
pub(crate) fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone has no mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &saved);
    }
}

/// Connects the process's terminal with a session's until the session's process has ended.
pub fn relay(session: impl Relayed, signals: &Signals) -> Result<ExitStatus> {
    let input = own(io::stdin().as_fd())?;
    let output = std::fs::File::from(own(io::stdout().as_fd())?);
    let raw = Raw::enter()?;
    signals.to_session(session.steering(), true);
    let status = session.relay(Input::File(input), output, io::sink());
    signals.to_nobody();
    drop(raw);
    status
}

/// Connects the process's standard streams with a session's until the session's process has ended.
pub fn relay_pipes(session: impl Relayed, signals: &Signals) -> Result<ExitStatus> {
    let input = own(io::stdin().as_fd())?;
    let stdout = std::fs::File::from(own(io::stdout().as_fd())?);
    let stderr = std::fs::File::from(own(io::stderr().as_fd())?);
    signals.to_session(session.steering(), false);
    let status = session.relay(Input::File(input), stdout, stderr);
    signals.to_nobody();
    status
}

fn own(fd: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd> {
    fd.try_clone_to_owned().map_err(|source| Error::System { what: "use a standard stream", source })
}
