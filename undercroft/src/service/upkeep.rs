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
    upkeep::{Sleep, swap_file},
};

/// How often one looks whether the host has slept.
const LOOK: Duration = Duration::from_secs(10);
/// By how much the guest's clock may be off without being set.
const TOLERANCE: Duration = Duration::from_secs(1);

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
            for (what, done) in [
                ("giving memory back", reclaim(&machine, &settings)),
                ("swap", swap(&machine, &settings, &service.paths.state)),
                ("compressed swap", zram(&machine, &settings)),
            ] {
                if let Err(error) = done
                    && machine.end().is_none()
                {
                    service.note(format!("{what}: {}", chain(&error)));
                }
            }
            service.follow_the_clock(&machine);
        };
        spawn("upkeep", looking).map(drop)
    }

    fn follow_the_clock(&self, machine: &Arc<Machine>) {
        let mut sleep = Sleep::watch();
        let mut state = self.lock();
        while matches!(&state.host, Host::On(on) if Arc::ptr_eq(&on.machine, machine)) {
            state = self.wait(state, Some(LOOK));
            if sleep.look() {
                drop(state);
                if let Err(error) = machine.set_clock(SystemTime::now(), TOLERANCE)
                    && machine.end().is_none()
                {
                    self.note(format!(
                        "the machine's clock could not be set after the host slept: {}",
                        chain(&error)
                    ));
                }
                state = self.lock();
            }
        }
    }
}

fn reclaim(machine: &Machine, settings: &Settings) -> Result<()> {
    let mode = match settings.host.auto_memory_reclaim {
        AutoMemoryReclaim::Disabled => return Ok(()),
        AutoMemoryReclaim::DropCache => ReclaimMode::DropCache,
        AutoMemoryReclaim::Gradual => ReclaimMode::Gradual,
    };
    machine.reclaim(Reclaim::new(mode))
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
