//! A distribution: started by whoever needs it first, watched, stopped.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    error::ServiceError,
    host::explained,
    state::{Live, Service},
    wire::Doing,
};
use crate::{
    Change, LaunchOptions, Limits,
    error::{Error, Result, chain, describe},
    guest::spawn,
    store::StoreError,
};

/// What a distribution gets to end by itself, on hardware.
const GRACE: Duration = Duration::from_secs(10);

/// Somebody's use of a running distribution: it does not stop for idleness while there is one.
#[derive(Debug)]
pub(super) struct Use {
    service: Arc<Service>,
    name: String,
    live: Arc<Live>,
}

impl Use {
    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    /// The distribution's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.service.update(|state| {
            // It may have ended and been started anew meanwhile.
            if let Some(entry) = state.entry(&self.name)
                && entry.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.live))
            {
                entry.sessions -= 1;
                entry.idle = Instant::now();
            }
        });
    }
}

impl Service {
    /// The distribution's name as it is written, from what somebody typed; the default one's without.
    pub(super) fn name(&self, wanted: Option<&str>) -> Result<String> {
        match wanted {
            Some(name) => match self.store.distribution(name)? {
                Some(record) => Ok(record.name),
                None => Err(StoreError::Unknown(name.into()).into()),
            },
            None => Ok(self.default_name()?.ok_or(ServiceError::NoDistribution)?),
        }
    }

    /// Which one is meant when none is named.
    pub(super) fn default_name(&self) -> Result<Option<String>> {
        self.store.default_distribution()
    }

    /// Uses a distribution; starts it if it does not run and may be started.
    pub(super) fn using(self: &Arc<Self>, name: &str, start: bool) -> Result<Use> {
        let mut state = self.lock();
        loop {
            match state.entry(name) {
                None => break,
                Some(entry) => match (entry.doing, &entry.live) {
                    (Doing::Running, Some(live)) if live.distribution.ended().is_none() => {
                        let live = live.clone();
                        entry.sessions += 1;
                        return Ok(Use { service: self.clone(), name: name.into(), live });
                    }
                    (Doing::Running | Doing::Starting | Doing::Stopping, _) => {
                        state = self.wait(state, Some(Duration::from_secs(1)));
                    }
                    (doing, _) => return Err(ServiceError::Busy { name: name.into(), doing }.into()),
                },
            }
        }
        if !start {
            return Err(ServiceError::NotRunning(name.into()).into());
        }
        // Just seen free, under the same lock.
        let _ = state.begin(name, Doing::Starting);
        drop(state);
        let launched = self.launch(name);
        let keep = launched.as_ref().is_ok_and(|live| self.keeps(name, live));
        self.update(|state| match (&launched, state.entry(name)) {
            (Ok(live), Some(entry)) => {
                entry.doing = Doing::Running;
                entry.live = Some(live.clone());
                entry.sessions = 1;
                entry.keep = keep;
            }
            _ => state.end(name),
        });
        let live = launched?;
        let (service, watched, of) = (self.clone(), live.clone(), name.to_owned());
        spawn("distribution's end", move || service.watch_distribution(&of, &watched))?;
        Ok(Use { service: self.clone(), name: name.into(), live })
    }

    /// Starts the distributions that the host's file wants started with the service.
    pub(super) fn start_those_that_start_by_themselves(self: &Arc<Self>) {
        let all = match self.store.list() {
            Ok(all) => all.distributions,
            Err(error) => return self.note(chain(&error)),
        };
        let settings = self.settings();
        for record in all.iter().filter(|record| settings.of(&record.name).auto_start) {
            if let Err(error) = self.using(&record.name, true) {
                self.note(format!("{} did not start: {}", record.name, chain(&error)));
            }
        }
    }

    /// Looks anew which distributions that run stay when they are idle.
    pub(super) fn look_who_stays(&self) {
        let running: Vec<_> = {
            let state = self.lock();
            let entries = state.distributions.values();
            entries.filter_map(|entry| Some((entry.name.clone(), entry.live.clone()?))).collect()
        };
        for (name, live) in running {
            let keep = self.keeps(&name, &live);
            self.update(|state| {
                if let Some(entry) = state.entry(&name) {
                    entry.keep = keep;
                }
            });
        }
    }

    /// Whether it stays when it is idle: the host's file has the first word, then what was set, then its own wish.
    fn keeps(&self, name: &str, live: &Live) -> bool {
        let recorded =
            || self.store.distribution(name).ok().flatten().is_some_and(|record| record.settings.keep_alive);
        self.settings().of(name).keep_alive.unwrap_or_else(|| recorded() || live.distribution.wants_to_live())
    }

    fn launch(self: &Arc<Self>, name: &str) -> Result<Arc<Live>> {
        // What cannot be had is said before a machine is made for it.
        let held = self.store.hold(name)?;
        let recorded = held.record.settings.clone();
        let machine = self.machine()?;
        let attached = machine.attach(held).map_err(|error| explained(&machine, error))?;
        let settings = self.settings();
        let limit = settings.host.distribution_start_timeout * settings.patience;
        let of = settings.of(name);
        // The host's file has the first word, then what was set for it.
        let options = LaunchOptions {
            own_users: recorded.own_users && !of.shared_users,
            own_network: of.private_network,
            limits: Limits {
                memory: of.memory.or(recorded.limits.memory),
                cpu_milli: of.cpu_milli.or(recorded.limits.cpu_milli),
                pids: of.processes.or(recorded.limits.pids),
                io_bytes: of.disk_bandwidth.or(recorded.limits.io_bytes),
            },
            limit: Some(limit),
            ..LaunchOptions::new(name, attached.root().clone())
        };
        match machine.launch(&options) {
            Ok(distribution) => {
                self.bring_folders(&machine, &distribution);
                for warning in machine.warnings() {
                    self.note(warning);
                }
                Ok(Arc::new(Live { distribution, machine, attached: Mutex::new(Some(attached)) }))
            }
            Err(error) => {
                if let Err(second) = machine.detach(attached) {
                    self.note(format!("{name}: its disk could not be taken out after it failed: {second}"));
                }
                Err(match explained(&machine, error) {
                    Error::Timeout { what, console, .. } => {
                        ServiceError::SlowStart { name: name.into(), what, limit, console }.into()
                    }
                    error => error,
                })
            }
        }
    }

    /// Takes note of a distribution's end, and takes its disks out.
    fn watch_distribution(&self, name: &str, live: &Arc<Live>) {
        let mut left = 0;
        let status = loop {
            match live.distribution.wait_for_change(left) {
                Change::Left(now) => {
                    left = now;
                    self.update(|state| {
                        if let Some(entry) = state.entry(name) {
                            entry.left = now;
                            entry.idle = Instant::now();
                        }
                    });
                }
                Change::Ended(status) => break status,
            }
        };
        let asked = self.update(|state| match state.entry(name) {
            Some(entry) if entry.doing == Doing::Stopping => true,
            Some(entry) => {
                entry.doing = Doing::Stopping;
                false
            }
            None => false,
        });
        if let Some(status) = status.filter(|_| !asked) {
            eprintln!("{name} ended by itself ({})", describe(status));
        }
        let attached = live.attached.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(attached) = attached
            && live.machine.end().is_none()
            && let Err(error) = live.machine.detach(attached)
            && live.machine.end().is_none()
        {
            self.note(format!("{name}: its disk could not be taken out: {error}"));
        }
        self.update(|state| state.end(name));
    }

    /// Stops a distribution and waits until its disks are out. Gives what did not go in order, a line each; one that does not
    /// run is stopped already.
    pub(super) fn stop_distribution(&self, name: &str, reason: &str) -> Result<Vec<String>> {
        self.stop(name, reason, self.grace(false), false)
    }

    /// The same, at once: nobody is waited for.
    pub(super) fn kill_distribution(&self, name: &str, reason: &str) -> Result<Vec<String>> {
        self.stop(name, reason, self.grace(true), false)
    }

    /// The same, of one that was found idle, unless it is not any more.
    pub(super) fn stop_idle_distribution(&self, name: &str) -> Result<Vec<String>> {
        self.stop(name, "it is idle", self.grace(false), true)
    }

    /// What a distribution gets to end by itself.
    pub(super) fn grace(&self, force: bool) -> Duration {
        if force { Duration::ZERO } else { GRACE * self.settings().patience.clamp(1, 4) }
    }

    fn stop(&self, name: &str, reason: &str, grace: Duration, only_if_idle: bool) -> Result<Vec<String>> {
        let live = {
            let mut state = self.lock();
            loop {
                match state.entry(name) {
                    None => return Ok(Vec::new()),
                    Some(entry) => match (entry.doing, &entry.live) {
                        // Somebody has come since it was found idle.
                        (Doing::Running, Some(_)) if only_if_idle && entry.sessions + entry.left > 0 => {
                            return Ok(Vec::new());
                        }
                        (Doing::Running, Some(live)) => {
                            let live = live.clone();
                            entry.doing = Doing::Stopping;
                            break live;
                        }
                        (Doing::Running | Doing::Starting | Doing::Stopping, _) => {
                            state = self.wait(state, Some(Duration::from_secs(1)));
                        }
                        (doing, _) => return Err(ServiceError::Busy { name: name.into(), doing }.into()),
                    },
                }
            }
        };
        eprintln!("stopping {name}: {reason}");
        let stopped = live.machine.terminate(&live.distribution, grace);
        let complaints = match stopped {
            Ok(complaints) => complaints,
            // It has ended by itself, or with its machine.
            Err(Error::Refused { .. }) if live.distribution.ended().is_some() => Vec::new(),
            Err(_) if live.machine.end().is_some() => Vec::new(),
            Err(error) => {
                // It runs on, and can be asked again; idle, after another while.
                self.update(|state| {
                    if let Some(entry) = state.entry(name) {
                        entry.doing = Doing::Running;
                        entry.idle = Instant::now();
                    }
                });
                return Err(error);
            }
        };
        let mut state = self.lock();
        while state
            .entry(name)
            .is_some_and(|entry| entry.live.as_ref().is_some_and(|now| Arc::ptr_eq(now, &live)))
        {
            state = self.wait(state, Some(Duration::from_secs(1)));
        }
        Ok(complaints)
    }
}
