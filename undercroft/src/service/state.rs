//! What runs, under one lock; whoever waits for a change of it waits at one bell.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use undercroft_protocol::write_frame;

use super::{
    paths::Paths,
    settings::{Current, Settings},
    wire::{Doing, Event},
};
use crate::{Distribution, Machine, Store, error::Result, folders::Asked, store::Attached};

/// Notes that are kept for `status`.
const NOTES: usize = 50;

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) paths: Paths,
    settings: Current,
    pub(super) store: Store,
    state: Mutex<State>,
    changed: Condvar,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) host: Host,
    /// Those that are not stopped, by the name in lower case.
    pub(super) distributions: BTreeMap<String, Entry>,
    /// Connections that are being served.
    pub(super) clients: u32,
    /// Since when there is no distribution to keep the machine.
    pub(super) unused: Instant,
    /// Since when there is no client: to look at it keeps the service, and not the machine.
    pub(super) quiet: Instant,
    pub(super) notes: VecDeque<String>,
    /// How many of the last ones nobody was told yet.
    pub(super) untold: usize,
    /// What the machine that runs, or the next one, shares of the host's folders because somebody asked.
    pub(super) asked: Vec<Asked>,
    /// The service takes no more requests.
    pub(super) closing: bool,
}

/// The virtual machine.
#[derive(Debug)]
pub(super) enum Host {
    Off,
    Starting,
    On(On),
    Stopping,
}

/// A machine that runs.
#[derive(Debug, Clone)]
pub(super) struct On {
    pub(super) machine: Arc<Machine>,
    /// As they were when it was started.
    pub(super) settings: Arc<Settings>,
    pub(super) since: Instant,
}

/// A distribution that is not stopped.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it is written.
    pub(super) name: String,
    pub(super) doing: Doing,
    pub(super) live: Option<Arc<Live>>,
    /// Sessions that run or are being started.
    pub(super) sessions: u32,
    /// Sessions that have ended and left processes behind, which go on.
    pub(super) left: u32,
    /// Since when there is none of either.
    pub(super) idle: Instant,
    /// It does not stop for idleness.
    pub(super) keep: bool,
    /// Somebody sets it up.
    pub(super) setting_up: bool,
}

/// A distribution that was launched.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) distribution: Distribution,
    pub(super) machine: Arc<Machine>,
    pub(super) attached: Mutex<Option<Attached>>,
}

impl Service {
    pub(super) fn new(paths: Paths, settings: Settings) -> Result<Self> {
        let store = Store::open(&paths.data)?;
        let cleared = store.cleared().iter().map(ToString::to_string);
        let notes: VecDeque<_> =
            cleared.chain(settings.file.warnings.iter().map(ToString::to_string)).collect();
        let settings = Current::new(settings, &paths);
        let state = State {
            host: Host::Off,
            distributions: BTreeMap::new(),
            clients: 0,
            unused: Instant::now(),
            quiet: Instant::now(),
            untold: notes.len(),
            notes,
            asked: Vec::new(),
            closing: false,
        };
        Ok(Self { paths, settings, store, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// The settings as they are.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.get()
    }

    /// Looks whether the configuration has changed; notes what that means.
    pub(super) fn refresh(&self) {
        let Some(lines) = self.settings.refresh(&self.paths) else { return };
        for line in lines {
            self.note(line);
        }
        self.look_who_stays();
        let machine = match &self.lock().host {
            Host::On(on) => Some(on.machine.clone()),
            _ => None,
        };
        if let Some(machine) = machine {
            self.give_memory_back(&machine);
        }
        // Idle times may be others now.
        self.changed.notify_all();
    }

    /// The state as it is. Every change is whole before anything can panic.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and rings.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits for a change, or the time.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match limit {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    /// Keeps a line for `status`, and writes it to the log.
    pub(super) fn note(&self, line: impl Into<String>) {
        let line = line.into();
        eprintln!("{line}");
        self.update(|state| {
            if state.notes.len() == NOTES {
                state.notes.pop_front();
            }
            state.notes.push_back(line);
            state.untold = (state.untold + 1).min(NOTES);
        });
    }

    /// Tells a client what was noted and nobody was told yet: whoever comes first after something has happened learns of it, and
    /// `status` shows it to everybody else.
    pub(super) fn tell_notes(&self, mut stream: &UnixStream) {
        let lines: Vec<_> = self.update(|state| {
            let told = state.notes.len() - std::mem::take(&mut state.untold);
            state.notes.iter().skip(told).cloned().collect()
        });
        for line in lines {
            // Who has gone does not hear it.
            let _ = write_frame(&mut stream, &Event::Warning(line));
        }
    }

    /// How long something may take that takes so many seconds on hardware.
    pub(super) fn limit(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds * u64::from(self.settings().patience.max(1)))
    }
}

impl State {
    /// The machine, if it runs; it is stopping from now on.
    pub(super) fn begin_to_stop(&mut self) -> Option<Arc<Machine>> {
        let Host::On(on) = &self.host else { return None };
        let machine = on.machine.clone();
        self.host = Host::Stopping;
        Some(machine)
    }

    /// Takes note of folders that somebody asks for, each instead of what had its place before.
    pub(super) fn ask(&mut self, folders: Vec<Asked>) {
        for folder in folders {
            self.asked.retain(|asked| !asked.has_place_of(&folder));
            self.asked.push(folder);
        }
    }

    pub(super) fn entry(&mut self, name: &str) -> Option<&mut Entry> {
        self.distributions.get_mut(&name.to_ascii_lowercase())
    }

    /// Notes that a distribution does something, if it does nothing else.
    pub(super) fn begin(&mut self, name: &str, doing: Doing) -> std::result::Result<(), Doing> {
        match self.entry(name) {
            Some(entry) => Err(entry.doing),
            None => {
                let entry = Entry {
                    name: name.into(),
                    doing,
                    live: None,
                    sessions: 0,
                    left: 0,
                    idle: Instant::now(),
                    keep: false,
                    setting_up: false,
                };
                self.distributions.insert(name.to_ascii_lowercase(), entry);
                Ok(())
            }
        }
    }

    /// It does nothing any more.
    pub(super) fn end(&mut self, name: &str) {
        self.distributions.remove(&name.to_ascii_lowercase());
        self.unused = Instant::now();
    }
}
