//! A folder of the host's that somebody wants in a distribution, for as long as the machine runs.
//!
//! A machine has the folders that it was started with. One that nothing runs in is started anew for another folder; one that is
//! used is not, and whoever asks is told.

use std::{fs, io};

use undercroft_config::Mount;

use super::{
    ServiceError,
    lifecycle::Use,
    state::{Host, Service},
};
use crate::{
    error::Result,
    folders::{Asked, status},
};

impl Service {
    /// Sees to it that the machine has these folders for a distribution, or will have when it starts.
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
        let mut state = self.lock();
        loop {
            match &state.host {
                Host::Off => {
                    let asked =
                        mounts.iter().map(|mount| Asked { distribution: name.into(), mount: mount.clone() });
                    state.asked.extend(asked);
                    return Ok(());
                }
                Host::Starting | Host::Stopping => state = self.wait(state, None),
                Host::On(on) => {
                    let missing = mounts.iter().find(|mount| status(&on.machine, name, mount).is_none());
                    let Some(missing) = missing else { return Ok(()) };
                    let used: Vec<_> = state.distributions.values().map(|entry| entry.name.clone()).collect();
                    if !used.is_empty() {
                        let (host, users) = (missing.host.clone(), used.join(", "));
                        return Err(ServiceError::FolderLater { host, users }.into());
                    }
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
}

/// Whether a distribution that runs has these folders.
pub(super) fn shares(place: &Use, mounts: &[Mount]) -> Result<()> {
    for mount in mounts {
        let host = mount.host.clone();
        let why = match status(&place.live().machine, place.name(), mount) {
            // Another machine has started meanwhile.
            None => return Err(ServiceError::FolderLater { host, users: place.name().into() }.into()),
            Some(status) => status.trouble,
        };
        if let Some(why) = why {
            return Err(ServiceError::NotShared { host, why }.into());
        }
    }
    Ok(())
}
