//! What can be asked: the list, the status.

use std::time::UNIX_EPOCH;

use undercroft_protocol::command::{DistributionUsage, Usage};

use super::{
    state::{Entry, Host, On, Service, State},
    wire::{Answer, Doing, GuestMemory, Listed, Listening, Status, Used, Vm},
};
use crate::{error::Result, store::Record};

/// Less than this on the host is nothing, in MiB.
const LITTLE_MIB: u64 = 16;

impl Service {
    /// Every distribution, the default one first, the others as they were made.
    pub(super) fn list(&self) -> Result<Vec<Listed>> {
        self.list_with(None)
    }

    fn list_with(&self, usage: Option<&Usage>) -> Result<Vec<Listed>> {
        let all = self.store.list()?;
        for damaged in &all.damaged {
            self.note(damaged.to_string());
        }
        let default = self.default_name()?;
        let mut state = self.lock();
        let mut listed: Vec<Listed> = all
            .distributions
            .iter()
            .map(|record| self.listed(&mut state, record, default.as_deref() == Some(&record.name), usage))
            .collect();
        // Those that are being made have no record yet.
        for entry in state.distributions.values().filter(|entry| entry.doing == Doing::Installing) {
            if !listed.iter().any(|one| one.name.eq_ignore_ascii_case(&entry.name)) {
                listed.push(Listed {
                    name: entry.name.clone(),
                    default: false,
                    state: entry.doing,
                    sessions: 0,
                    why: String::new(),
                    stops_in: None,
                    used: None,
                    disk: 0,
                    created: UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
                });
            }
        }
        listed.sort_by_key(|one| (!one.default, one.created, one.name.clone()));
        Ok(listed)
    }

    fn listed(&self, state: &mut State, record: &Record, default: bool, usage: Option<&Usage>) -> Listed {
        let entry = state.entry(&record.name);
        let id = entry.as_ref().and_then(|entry| Some(entry.live.as_ref()?.distribution.id()));
        let of = |id| usage?.distributions.iter().find(|of| of.distribution == id);
        Listed {
            name: record.name.clone(),
            default,
            state: entry.as_ref().map_or(Doing::Stopped, |entry| entry.doing),
            sessions: entry.as_ref().map_or(0, |entry| entry.sessions),
            stops_in: entry.as_ref().and_then(|entry| self.stops_in(entry)),
            why: entry.map(|entry| self.why(entry)).unwrap_or_default(),
            used: id.and_then(of).map(|&DistributionUsage { memory, cache, cpu_us, .. }| Used {
                memory,
                cache,
                cpu_us,
            }),
            disk: self.store.disk_bytes(record).unwrap_or_default(),
            created: record.created,
        }
    }

    pub(super) fn status(&self) -> Result<Answer> {
        let machine = match &self.lock().host {
            Host::On(on) => Some(on.machine.clone()),
            _ => None,
        };
        // One that does not answer is shown without.
        let usage = machine.and_then(|machine| machine.usage().ok());
        let distributions = self.list_with(usage.as_ref())?;
        let state = self.lock();
        let vm = match &state.host {
            Host::On(on) => self.vm(&state, on, usage.as_ref()),
            _ => None,
        };
        Ok(Answer::Status(Box::new(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            vm,
            notes: state.notes.iter().cloned().chain(self.little_space()).collect(),
            distributions,
        })))
    }

    /// That the host's file system is full: in a distribution nothing shows it but errors of writes.
    fn little_space(&self) -> Option<String> {
        let about = rustix::fs::statvfs(&self.paths.data).ok()?;
        let free = about.f_bavail.saturating_mul(about.f_frsize) >> 20;
        (free < LITTLE_MIB).then(|| {
            format!(
                "no space is left for distributions in {} ({free} MiB): what they write fails, until there is room again; \
                 one whose files have become read-only by it is to be started anew",
                self.paths.data.display()
            )
        })
    }

    /// What is listened for inside, and where it is reached.
    pub(super) fn ports(&self) -> Answer {
        let state = self.lock();
        let Host::On(on) = &state.host else { return Answer::Ports(Vec::new()) };
        let name = |id: u32| {
            let mut live = state.distributions.values();
            let is_it = |entry: &&Entry| entry.live.as_ref().is_some_and(|live| live.distribution.id() == id);
            live.find(is_it).map(|entry| entry.name.clone())
        };
        let ports = on.machine.ports().into_iter().map(|port| Listening {
            inside: port.inside.to_string(),
            outside: port.outside.map(|at| at.to_string()),
            distribution: port.distribution.and_then(name),
            program: port.program,
            trouble: port.trouble,
        });
        Answer::Ports(ports.collect())
    }

    fn vm(&self, state: &State, on: &On, usage: Option<&Usage>) -> Option<Vm> {
        let pid = on.machine.vmm_pid()?;
        Some(Vm {
            pid,
            kernel: on.machine.hello().kernel.clone(),
            cpus: on.settings.cpus(),
            memory: on.settings.memory_mib() << 20,
            guest: usage.map(|usage| GuestMemory {
                total: usage.memory,
                available: usage.available,
                swap: usage.swap,
                swap_used: usage.swap.saturating_sub(usage.swap_free),
            }),
            cpu_us: cpu_us(pid),
            resident: resident(pid),
            up: on.since.elapsed().as_secs(),
            network: {
                let network = on.machine.network();
                network
                    .trouble
                    .map_or(network.mode.to_owned(), |trouble| format!("{}: {trouble}", network.mode))
            },
            folders: on.machine.folders().iter().map(ToString::to_string).collect(),
            why: self.why_machine(state),
            timeline: on.machine.timeline().to_string(),
        })
    }
}

/// Bytes of memory that a process holds (proc(5), /proc/PID/status, VmRSS); 0 if it is gone.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Microseconds of CPU time that a process has used (proc(5), /proc/PID/stat, utime and stime, of which guest time is a part); 0 if
/// it is gone.
fn cpu_us(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&text).saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1)
}

/// The 14th and 15th fields; the second one is a name in parentheses, with anything in it.
fn ticks(stat: &str) -> u64 {
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0 };
    rest.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_time_is_read_past_its_name() {
        assert_eq!(ticks("7 (a) b) S 1 7 7 0 -1 0 5 0 0 0 120 34 9 9 20 0 1"), 154);
        assert_eq!((ticks(""), ticks("7 (a")), (0, 0));
        assert!(cpu_us(std::process::id()) < 3_600_000_000 && resident(std::process::id()) > 0);
    }
}
