//! The virtual machine: started when it is needed, watched while it runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use undercroft_config::NetworkingMode;
use undercroft_vmm::probe::{Verdict, probe};

use super::{
    error::ServiceError,
    parts::Parts,
    paths::rotate,
    settings::Settings,
    state::{Host, On, Service},
    wire::endpoint,
};
use crate::{
    Cause, HELLO, Machine, MachineOptions, NameOptions, NameServers, NatOptions, NetworkMode, NetworkOptions,
    TapOptions,
    error::{Error, Result, chain},
    guest::spawn,
    machine_config,
};

impl Service {
    /// The machine; starts it if it does not run. Only one of several callers does, the others wait for it.
    pub(super) fn machine(self: &Arc<Self>) -> Result<Arc<Machine>> {
        let mut state = self.lock();
        loop {
            match &state.host {
                Host::On(on) if on.machine.end().is_none() => return Ok(on.machine.clone()),
                Host::Off => break,
                // Its end is being taken note of, or it starts, or stops.
                _ => state = self.wait(state, Some(Duration::from_millis(200))),
            }
        }
        if state.closing {
            return Err(ServiceError::ShuttingDown.into());
        }
        state.host = Host::Starting;
        drop(state);
        let started = self.start_machine();
        self.update(|state| {
            state.unused = Instant::now();
            state.host = match &started {
                Ok(on) => Host::On(on.clone()),
                Err(_) => {
                    state.asked.clear();
                    Host::Off
                }
            };
        });
        let On { machine, settings, .. } = started?;
        let (service, watched) = (self.clone(), machine.clone());
        let looked_after = self
            .look_after(&machine, &settings)
            .and_then(|()| spawn("machine", move || service.watch_machine(&watched)));
        if let Err(error) = looked_after {
            // Nobody would take note of its end.
            machine.power_off(Duration::ZERO);
            self.update(|state| state.host = Host::Off);
            return Err(error);
        }
        Ok(machine)
    }

    fn start_machine(&self) -> Result<On> {
        let parts = Parts::find(self.settings().host.kernel.as_deref())?;
        let settings = self.settings();
        match probe() {
            Verdict::Hardware => {}
            // Only slow, and somebody has said that it is: a machine made in software, on a busy host.
            Verdict::Interpreted { failures, .. } if failures.is_empty() && settings.patience > 1 => {}
            verdict => return Err(ServiceError::NoKvm(verdict.to_string()).into()),
        }
        let mut config = machine_config(&parts.kernel, settings.cpus(), settings.memory_mib());
        config.initramfs = Some(parts.initramfs(&self.paths)?);
        if settings.host.debug_console {
            // It is quiet otherwise: each line costs exits.
            config.command_line.push_str(" loglevel=7");
        }
        if let Some(more) = &settings.host.kernel_command_line {
            config.command_line = format!("{} {more}", config.command_line);
        }
        let console = settings.host.debug_console_log_file.clone().unwrap_or_else(|| self.paths.console());
        rotate(&console);
        // The lock is not held while the store is asked.
        let asked = self.lock().asked.clone();
        let options = MachineOptions {
            vmm: parts.vmm,
            config,
            modules_disk: settings.host.kernel_modules.clone().or(parts.kernel.modules_disk),
            console_log: Some(console),
            patience: settings.patience,
            network: self.network(&settings),
            folders: crate::folders::wanted(&settings, &self.store, &asked),
        };
        let limit = settings.host.kernel_boot_timeout * settings.patience;
        let machine = Machine::start_within(options, limit, |_| ()).map_err(|error| match error {
            Error::Timeout { what: HELLO, console, .. } => ServiceError::SlowBoot { limit, console }.into(),
            error => error,
        })?;
        Ok(On { machine: Arc::new(machine), settings, since: Instant::now() })
    }

    /// What of the network is wanted. A device that cannot be had is no reason for there to be no machine.
    fn network(&self, settings: &Settings) -> NetworkOptions {
        let host = &settings.host;
        let mode = match host.networking_mode {
            NetworkingMode::None => NetworkMode::None,
            NetworkingMode::Tap => {
                let opened = match &host.tap {
                    Some(tap) => TapOptions::open(tap).map_err(|error| chain(&error)),
                    None => Err("networkingMode=tap wants tap=DEVICE ADDRESS/BITS beside it".into()),
                };
                opened.map_or_else(
                    |why| {
                        self.note(format!("the virtual machine has no network: {why}"));
                        NetworkMode::None
                    },
                    NetworkMode::Tap,
                )
            }
            NetworkingMode::Nat => NetworkMode::Nat(NatOptions {
                host_loopback: host.host_address_loopback,
                ipv6: host.ipv6,
                ..Default::default()
            }),
        };
        let localhost = host.localhost_forwarding && host.networking_mode != NetworkingMode::None;
        let published = host.publish.iter().map(endpoint);
        let servers = match (host.dns_tunneling, host.dns_proxy) {
            (true, _) => NameServers::Host,
            (false, true) => NameServers::Forwarded,
            (false, false) => NameServers::Named,
        };
        NetworkOptions {
            mode,
            localhost,
            ignored_ports: host.ignored_ports.clone(),
            published: published.collect(),
            names: NameOptions { servers, ..NameOptions::default() },
            // It was looked at when it was read.
            mac: host.mac_address.as_deref().and_then(|mac| mac.parse().ok()),
        }
    }

    /// Takes note of the machine's end, whatever it was.
    fn watch_machine(&self, machine: &Machine) {
        let ending = machine.wait();
        let expected = matches!(self.lock().host, Host::Stopping);
        for warning in machine.warnings() {
            self.note(warning);
        }
        if !expected && !matches!(ending.cause, Cause::Stopped) {
            self.note(format!("the virtual machine ended, and every distribution in it: {ending}"));
        }
        self.update(|state| {
            state.host = Host::Off;
            state.unused = Instant::now();
            state.asked.clear();
        });
    }

    /// Stops the machine and everything in it. Gives what did not go in order, a line each.
    pub(super) fn stop_machine(&self, force: bool) -> Vec<String> {
        let machine = {
            let mut state = self.lock();
            loop {
                match &state.host {
                    Host::Off => return Vec::new(),
                    Host::On(_) => match state.begin_to_stop() {
                        Some(machine) => break machine,
                        None => return Vec::new(),
                    },
                    Host::Starting | Host::Stopping => state = self.wait(state, None),
                }
            }
        };
        self.power_off(&machine, force)
    }

    /// Powers a machine off that has begun to stop.
    pub(super) fn power_off(&self, machine: &Machine, force: bool) -> Vec<String> {
        let end = machine.power_off(self.grace(force));
        let mut complaints = end.complaints;
        if end.forced {
            let line =
                "the machine did not power off in time and was killed; its files are as after a power cut";
            complaints.push(line.into());
        }
        // Distributions are taken note of by those who watch them.
        let deadline = Instant::now() + self.limit(10);
        let mut state = self.lock();
        while (!matches!(state.host, Host::Off)
            || state.distributions.values().any(|entry| entry.live.is_some()))
            && Instant::now() < deadline
        {
            state = self.wait(state, Some(Duration::from_millis(100)));
        }
        complaints
    }
}

/// The network that the settings want.
/// An error that says how the machine ended, if it has.
pub(super) fn explained(machine: &Machine, error: Error) -> Error {
    match machine.end() {
        Some(ending) => Error::Ended(Box::new(ending)),
        None => error,
    }
}
