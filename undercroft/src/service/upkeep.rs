//! What a machine needs while it runs: swap, memory that goes back, a clock that follows the host's.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use undercroft_config::AutoMemoryReclaim;

use super::{
    settings::Settings,
    state::{Host, Service},
};
use crate::{
    Machine, Reclaim, ReclaimMode,
    error::{Result, chain},
    guest::spawn,
    upkeep::{Clocks, swap_file},
};

/// How often one looks whether the host has slept, or its clock was set.
const LOOK: Duration = Duration::from_secs(10);
/// By how much the guest's clock may be off without being set.
const TOLERANCE: Duration = Duration::from_millis(250);

impl Service {
    /// Does what can wait until the first distribution starts, and then looks after the machine until its end. What does not
    /// work is noted: nothing is kept from starting by it.
    pub(super) fn look_after(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        settings: &Arc<Settings>,
    ) -> Result<()> {
        let (service, machine, settings) = (self.clone(), machine.clone(), settings.clone());
        let looking = move || {
            // Until somebody asks for it, nothing is given back.
            if settings.host.auto_memory_reclaim != AutoMemoryReclaim::Disabled {
                service.give_memory_back(&machine);
            }
            for (what, done) in [
                ("swap", swap(&machine, &settings, &service.paths.state)),
                ("compressed swap", zram(&machine, &settings)),
            ] {
                service.note_failure(&machine, what, done);
            }
            service.follow_the_clock(&machine);
        };
        spawn("upkeep", looking).map(drop)
    }

    /// Has the machine give memory back as the configuration wants it now.
    pub(super) fn give_memory_back(&self, machine: &Machine) {
        let mode = match self.settings().host.auto_memory_reclaim {
            AutoMemoryReclaim::Disabled => ReclaimMode::Disabled,
            AutoMemoryReclaim::DropCache => ReclaimMode::DropCache,
            AutoMemoryReclaim::Gradual => ReclaimMode::Gradual,
        };
        self.note_failure(machine, "giving memory back", machine.reclaim(Reclaim::new(mode)));
    }

    fn note_failure(&self, machine: &Machine, what: &str, done: Result<()>) {
        if let Err(error) = done
            && machine.end().is_none()
        {
            self.note(format!("{what}: {}", chain(&error)));
        }
    }

    fn follow_the_clock(&self, machine: &Arc<Machine>) {
        let mut clocks = Clocks::watch();
        let mut state = self.lock();
        while matches!(&state.host, Host::On(on) if Arc::ptr_eq(&on.machine, machine)) {
            state = self.wait(state, Some(LOOK));
            if let Some(off) = clocks.look() {
                drop(state);
                if let Err(error) = machine.set_clock(SystemTime::now(), TOLERANCE)
                    && machine.end().is_none()
                {
                    self.note(format!("the machine's clock could not be set {off}: {}", chain(&error)));
                }
                state = self.lock();
            }
        }
    }
}

fn swap(machine: &Machine, settings: &Settings, folder: &Path) -> Result<()> {
    if settings.host.swap == 0 {
        return Ok(());
    }
    let path = settings.host.swap_file.clone().unwrap_or_else(|| folder.join("swap"));
    machine.swap_on(&swap_file(&path, settings.host.swap)?).map(drop)
}

fn zram(machine: &Machine, settings: &Settings) -> Result<()> {
    if settings.host.zram == 0 { Ok(()) } else { machine.zram_on(settings.host.zram) }
}
