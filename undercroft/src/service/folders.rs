//! A folder of the host's that somebody wants in a distribution, for as long as the machine runs.
//!
//! A machine is started with devices for the folders that are wanted then. For another one, a machine that nothing runs in is
//! started anew; one that is used gets it by a slower way ([`Machine::bring_folder`]), as does a distribution that starts in it.

use std::{fs, io};

use undercroft_config::Mount;

use super::{
    ServiceError,
    lifecycle::Use,
    state::{Host, Service},
};
use crate::{
    Distribution, Machine,
    error::{Result, chain},
    folders::{Asked, of, status},
};

impl Service {
    /// Takes note of what a distribution is to have of the host's folders; sees to it that a machine that nobody uses yet has
    /// devices for them.
    pub(super) fn share(&self, name: &str, mounts: &[Mount]) -> Result<()> {
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts {
            let is_folder = fs::metadata(&mount.host).map(|about| about.is_dir());
            let why = |source| ServiceError::NoFolder { host: mount.host.clone(), source };
            if !is_folder.map_err(why)? {
                return Err(why(io::ErrorKind::NotADirectory.into()).into());
            }
        }
        let asked = asked(name, mounts);
        let mut state = self.lock();
        loop {
            match &state.host {
                Host::Off => {
                    state.ask(asked);
                    return Ok(());
                }
                Host::Starting | Host::Stopping => state = self.wait(state, None),
                Host::On(on) => {
                    let missing = mounts.iter().find(|mount| status(&on.machine, name, mount).is_none());
                    let is_used = !state.distributions.is_empty();
                    let Some(missing) = missing.filter(|_| !is_used) else {
                        state.ask(asked);
                        return Ok(());
                    };
                    // Under the lock that it was found unused by, as when it is idle.
                    let Some(machine) = state.begin_to_stop() else { continue };
                    drop(state);
                    eprintln!(
                        "stopping the virtual machine: the next one shares {} with {name}",
                        missing.host
                    );
                    for complaint in self.power_off(&machine, false) {
                        self.note(complaint);
                    }
                    state = self.lock();
                }
            }
        }
    }

    /// Gives a distribution that has just started what it is to have and the machine has no devices for.
    pub(super) fn bring_folders(&self, machine: &Machine, distribution: &Distribution) {
        let (name, known) = (distribution.name(), machine.folders());
        let asked = self.lock().asked.clone();
        for folder in of(name, &self.settings(), &self.store, &asked) {
            if known.iter().any(|status| !status.later && status.folder.is_same(&folder)) {
                continue;
            }
            let place = folder.guest.clone();
            if let Err(error) = machine.bring_folder(distribution, folder) {
                self.note(format!("{name} has no {place}: {}", chain(&error)));
            }
        }
    }

    /// Sees to it that a distribution that runs has these folders.
    pub(super) fn bring(&self, place: &Use, mounts: &[Mount]) -> Result<()> {
        if mounts.is_empty() {
            return Ok(());
        }
        let live = place.live();
        // Not those that are noted: with a machine that has stopped meanwhile they are forgotten.
        for folder in of(place.name(), &self.settings(), &self.store, &asked(place.name(), mounts)) {
            if mounts.iter().any(|mount| folder.is(place.name(), mount)) {
                live.machine.bring_folder(&live.distribution, folder)?;
            }
        }
        Ok(())
    }
}

fn asked(name: &str, mounts: &[Mount]) -> Vec<Asked> {
    mounts.iter().map(|mount| Asked { distribution: name.into(), mount: mount.clone() }).collect()
}
