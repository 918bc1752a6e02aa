//! Where the process's signals go: to the session while one runs, to the machine while it starts.
//!
//! Handlers are installed once; one thread waits for what they note. Without a target a signal is only remembered, and
//! [`Signals::check`] turns it into an error at the next good place, so that everything made so far is cleaned up.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH},
    iterator::{Handle, Signals as Waiting},
};

use crate::{
    error::{Error, Result},
    machine::Stopper,
    session::{Steer, Steering},
    terminal,
};

/// The thread that passes signals on; it ends when this is dropped.
#[derive(Debug)]
pub struct Signals {
    target: Arc<Mutex<Target>>,
    caught: Arc<AtomicI32>,
    handle: Handle,
}

#[derive(Debug)]
enum Target {
    Nobody,
    Machine(Stopper),
    Session { control: Box<dyn Steering>, terminal: bool, asked: bool },
}

impl Signals {
    /// Takes over SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT and SIGWINCH.
    pub fn watch() -> Result<Self> {
        let failed = |source| Error::System { what: "watch for signals", source };
        let mut waiting =
            Waiting::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGWINCH, SIGTSTP, SIGCONT]).map_err(failed)?;
        let handle = waiting.handle();
        let target = Arc::new(Mutex::new(Target::Nobody));
        let caught = Arc::new(AtomicI32::new(0));
        let (targets, noted) = (target.clone(), caught.clone());
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in &mut waiting {
                    if let Err(error) = pass(signal, &targets, &noted) {
                        // Nobody can be told but the person at the terminal.
                        eprintln!("undercroft: signal {signal}: {error}");
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self { target, caught, handle })
    }

    /// From now on a signal that would end the process stops the machine instead; whoever waits for it is told.
    pub fn to_machine(&self, machine: Stopper) {
        self.set(Target::Machine(machine));
    }

    /// From now on signals go to the session.
    pub(crate) fn to_session(&self, control: Box<dyn Steering>, terminal: bool) {
        self.set(Target::Session { control, terminal, asked: false });
    }

    /// From now on signals are only remembered.
    pub fn to_nobody(&self) {
        self.set(Target::Nobody);
    }

    /// The signal that was caught while nobody was there to take it.
    pub fn caught(&self) -> Option<i32> {
        Some(self.caught.load(Ordering::Acquire)).filter(|&signal| signal != 0)
    }

    /// An error if a signal was caught while nobody was there to take it.
    pub fn check(&self) -> Result<()> {
        match self.caught() {
            None => Ok(()),
            Some(_) => Err(Error::System { what: "go on", source: io::ErrorKind::Interrupted.into() }),
        }
    }

    fn set(&self, target: Target) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn pass(signal: i32, target: &Mutex<Target>, caught: &AtomicI32) -> Result<()> {
    let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
    match (&mut *target, signal) {
        (Target::Session { control, terminal: true, .. }, SIGWINCH | SIGCONT) => {
            control.steer(Steer::Resize(terminal::size()))
        }
        (_, SIGWINCH | SIGCONT) => Ok(()),
        (target, SIGTSTP) => {
            // From outside (`kill -TSTP`): a terminal's Ctrl-Z is a byte for the program in the distribution.
            let raw = matches!(target, Target::Session { terminal: true, .. });
            if raw {
                terminal::restore();
            }
            signal_hook::low_level::raise(signal_hook::consts::SIGSTOP)
                .map_err(|source| Error::System { what: "stop", source })?;
            if raw {
                terminal::make_raw()?;
            }
            Ok(())
        }
        (Target::Session { control, asked, terminal }, signal) => {
            // Interactive shells ignore SIGTERM; a terminal that is hung up they do not. And who asks twice means it.
            if signal == SIGHUP || *asked || (*terminal && signal == SIGTERM) {
                control.steer(Steer::Abandon)
            } else {
                *asked = signal != SIGINT || !*terminal;
                control.steer(Steer::Signal(signal))
            }
        }
        (Target::Machine(stopper), signal) => {
            caught.store(signal, Ordering::Release);
            stopper.interrupt(signal);
            Ok(())
        }
        (Target::Nobody, signal) => {
            caught.store(signal, Ordering::Release);
            Ok(())
        }
    }
}
