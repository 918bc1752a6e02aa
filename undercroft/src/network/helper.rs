//! A process in the VM that works for the host: mini-init starts it when it is asked to, and it comes with a connection. One that
//! has ended is asked for anew, as long as the machine runs: an out-of-memory kill of one process is no reason to be without
//! names until the next start.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use undercroft_protocol::{Token, command::Command};

use super::pause::Pause;
use crate::{
    door::Expected,
    error::{Error, Result},
    guest::Guest,
};

/// One, whichever process it is just now.
pub(super) struct Helper {
    guest: Arc<Guest>,
    what: &'static str,
    command: fn(Token) -> Command,
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    /// A second handle on its connection, for what is said to it and for its end.
    stream: UnixStream,
    pause: Pause,
    is_over: bool,
}

impl Helper {
    /// Has the guest start one; gives its connection, too. `what` is what messages call it.
    pub(super) fn start(
        guest: &Arc<Guest>,
        what: &'static str,
        command: fn(Token) -> Command,
    ) -> Result<(Arc<Self>, UnixStream)> {
        let (stream, second) = connect(guest, what, command)?;
        let now = Now { stream: second, pause: Pause::new(), is_over: false };
        let (now, changed) = (Mutex::new(now), Condvar::new());
        Ok((Arc::new(Self { guest: guest.clone(), what, command, now, changed }), stream))
    }

    /// Its connection, to say something.
    pub(super) fn with<T>(&self, say: impl FnOnce(&mut UnixStream) -> T) -> T {
        say(&mut self.lock().stream)
    }

    /// Another one's connection, when one's is at its end. `None` if there is to be none any more.
    pub(super) fn again(&self) -> Option<UnixStream> {
        let mut is_told = false;
        loop {
            let pause = self.lock().pause.after();
            let waited = self.changed.wait_timeout_while(self.lock(), pause, |now| !now.is_over);
            if waited.unwrap_or_else(PoisonError::into_inner).0.is_over {
                return None;
            }
            match connect(&self.guest, self.what, self.command) {
                Ok((stream, second)) => {
                    let mut now = self.lock();
                    if now.is_over {
                        return None;
                    }
                    now.stream = second;
                    now.pause.started();
                    self.guest
                        .board
                        .warn(format!("{} had ended in the VM, and was started again", self.what));
                    return Some(stream);
                }
                Err(Error::Ended(_)) => return None,
                Err(error) if !is_told => {
                    is_told = true;
                    let what = self.what;
                    self.guest
                        .board
                        .warn(format!("{what} has ended in the VM, and does not start again: {error}"));
                }
                Err(_) => {}
            }
        }
    }

    /// Ends it, for good.
    pub(super) fn end(&self) {
        let mut now = self.lock();
        now.is_over = true;
        // It may be gone already.
        let _ = now.stream.shutdown(Shutdown::Both);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(
    guest: &Arc<Guest>,
    what: &'static str,
    command: fn(Token) -> Command,
) -> Result<(UnixStream, UnixStream)> {
    let expected = Expected::new(&guest.board)?;
    let limit = guest.limit(10);
    guest.ask_nothing(what, command(expected.token()), limit)?;
    let stream = expected.wait(what, limit)?;
    let second = stream.try_clone();
    second
        .map(|second| (stream, second))
        .map_err(|source| Error::System { what: "use a connection twice", source })
}
