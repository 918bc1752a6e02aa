//! When what stops, and why it does not yet.
//!
//! A distribution stops when it has had no session for a while, nor anything that a session left in the background; its services
//! do not keep it. The machine stops when it has had no distribution for a while; the service when there is no machine, and nobody is connected.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    state::{Entry, Host, Service, State},
    wire::Doing,
};

/// How long the service stays when there is neither a machine nor a client. A client that comes later starts another one.
const LINGER: Duration = Duration::from_secs(10);

/// What to do now, or how long there is nothing to do.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    StopDistribution(String),
    StopMachine,
    Leave,
    Wait(Option<Duration>),
}

/// How long something runs on that nobody uses; `None` for ever.
#[derive(Debug, Clone, Copy)]
struct Times {
    instance: Option<Duration>,
    vm: Option<Duration>,
}

/// What keeps something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// Somebody uses it, or it is to stay.
    For(&'static str),
    /// So long.
    Rest(Duration),
}

fn rest(since: Instant, limit: Option<Duration>, now: Instant) -> Stay {
    match limit {
        None => Stay::For("it is configured not to stop when idle"),
        Some(limit) => Stay::Rest((since + limit).saturating_duration_since(now)),
    }
}

fn distribution(entry: &Entry, times: Times, now: Instant) -> Stay {
    match (entry.doing, entry.sessions) {
        (Doing::Running, 0) if entry.keep => Stay::For("it is to be kept alive"),
        (Doing::Running, 0) if entry.left > 0 => Stay::For("processes that a session left in the background"),
        (Doing::Running, 0) => rest(entry.idle, times.instance, now),
        (Doing::Running, _) => Stay::For("sessions"),
        _ => Stay::For("it is busy"),
    }
}

fn machine(state: &State, times: Times, now: Instant) -> Stay {
    if state.distributions.is_empty() {
        rest(state.unused, times.vm, now)
    } else {
        Stay::For("distributions")
    }
}

fn next(state: &State, times: Times, now: Instant) -> Next {
    let mut soonest = None;
    let mut wait = |rest: Duration| soonest = Some(soonest.map_or(rest, |other: Duration| other.min(rest)));
    for entry in state.distributions.values() {
        match distribution(entry, times, now) {
            Stay::Rest(Duration::ZERO) => return Next::StopDistribution(entry.name.clone()),
            Stay::Rest(rest) => wait(rest),
            Stay::For(_) => {}
        }
    }
    match &state.host {
        Host::On(_) => match machine(state, times, now) {
            Stay::Rest(Duration::ZERO) => return Next::StopMachine,
            Stay::Rest(rest) => wait(rest),
            Stay::For(_) => {}
        },
        Host::Off if state.distributions.is_empty() && state.clients == 0 => {
            match rest(state.unused.max(state.quiet), Some(LINGER), now) {
                Stay::Rest(Duration::ZERO) => return Next::Leave,
                Stay::Rest(rest) => wait(rest),
                Stay::For(_) => {}
            }
        }
        _ => {}
    }
    Next::Wait(soonest)
}

impl Service {
    fn times(&self) -> Times {
        let host = &self.settings().host;
        Times { instance: host.instance_idle_timeout, vm: host.vm_idle_timeout }
    }

    /// Stops what is idle until nothing is left to serve.
    pub(super) fn stop_the_idle(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            match next(&state, self.times(), Instant::now()) {
                Next::StopDistribution(name) => {
                    drop(state);
                    if let Err(error) = self.stop_idle_distribution(&name) {
                        self.note(format!("{name} could not be stopped: {error}"));
                    }
                }
                Next::StopMachine => {
                    // Under the lock that it was found idle by: who comes now waits, and starts another one.
                    let Some(machine) = state.begin_to_stop() else { continue };
                    drop(state);
                    eprintln!("stopping the virtual machine: no distribution runs");
                    for complaint in self.power_off(&machine, false) {
                        self.note(complaint);
                    }
                }
                Next::Leave => {
                    state.closing = true;
                    return;
                }
                Next::Wait(limit) => drop(self.wait(state, limit)),
            }
        }
    }

    /// Why a distribution still runs, or when it will stop.
    pub(super) fn why(&self, entry: &Entry) -> String {
        match distribution(entry, self.times(), Instant::now()) {
            Stay::For("sessions") if entry.sessions == 1 => "1 session".into(),
            Stay::For("sessions") => format!("{} sessions", entry.sessions),
            Stay::For(reason) => reason.into(),
            Stay::Rest(rest) => format!("idle, stops in {}", in_words(rest)),
        }
    }

    /// Seconds until a distribution stops, if nobody uses it until then.
    pub(super) fn stops_in(&self, entry: &Entry) -> Option<u64> {
        match distribution(entry, self.times(), Instant::now()) {
            Stay::For(_) => None,
            Stay::Rest(rest) => Some(rest.as_secs() + u64::from(rest.subsec_nanos() > 0)),
        }
    }

    /// Why the machine still runs, or when it will stop.
    pub(super) fn why_machine(&self, state: &State) -> String {
        match machine(state, self.times(), Instant::now()) {
            Stay::For("distributions") => match state.distributions.len() {
                1 => "1 distribution".into(),
                n => format!("{n} distributions"),
            },
            Stay::For(reason) => reason.into(),
            Stay::Rest(rest) => format!("no distribution runs, stops in {}", in_words(rest)),
        }
    }
}

/// Seconds, rounded up; minutes from two on.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use super::*;

    const TIMES: Times = Times { instance: Some(Duration::from_secs(15)), vm: Some(Duration::from_secs(60)) };

    fn state(now: Instant, entries: &[(&str, Doing, u32, u64)]) -> State {
        let entries = entries.iter().map(|&(name, doing, sessions, idle)| {
            let idle = now - Duration::from_secs(idle);
            (
                name.to_owned(),
                Entry {
                    name: name.into(),
                    doing,
                    live: None,
                    sessions,
                    left: 0,
                    idle,
                    keep: false,
                    setting_up: false,
                },
            )
        });
        State {
            host: Host::Off,
            distributions: entries.collect::<BTreeMap<_, _>>(),
            clients: 0,
            unused: now,
            quiet: now - Duration::from_secs(100),
            untold: 0,
            notes: VecDeque::new(),
            asked: Vec::new(),
            closing: false,
        }
    }

    #[test]
    fn the_idle_stop_and_nobody_else() {
        let now = Instant::now() + Duration::from_secs(1000);
        let times = TIMES;
        let busy =
            [("a", Doing::Running, 1, 99), ("b", Doing::Running, 0, 5), ("c", Doing::Exporting, 0, 99)];
        assert_eq!(next(&state(now, &busy), times, now), Next::Wait(Some(Duration::from_secs(10))));
        let idle = [("a", Doing::Running, 1, 99), ("b", Doing::Running, 0, 15)];
        assert_eq!(next(&state(now, &idle), times, now), Next::StopDistribution("b".into()));
        let never = Times { instance: None, ..times };
        assert_eq!(next(&state(now, &idle), never, now), Next::Wait(None));
    }

    #[test]
    fn the_service_leaves_when_nobody_needs_it() {
        let now = Instant::now() + Duration::from_secs(1000);
        let times = TIMES;
        let mut quiet = state(now, &[]);
        assert_eq!(next(&quiet, times, now), Next::Wait(Some(LINGER)));
        quiet.unused = now - LINGER;
        assert_eq!(next(&quiet, times, now), Next::Leave);
        quiet.clients = 1;
        assert_eq!(next(&quiet, times, now), Next::Wait(None));
        quiet.host = Host::Starting;
        assert_eq!(next(&quiet, times, now), Next::Wait(None));
    }

    #[test]
    fn times_are_short_words() {
        assert_eq!(in_words(Duration::from_millis(1500)), "2 s");
        assert_eq!(in_words(Duration::from_secs(121)), "3 min");
    }
}
