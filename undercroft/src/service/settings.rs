//! What the host's configuration means for the service: `.wslconfig`, read anew when it has changed.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use undercroft_config::{self as config, DistributionSettings, HostConfig, HostFacts, Restart, keys::HOST};

use super::paths::Paths;

/// How many times longer than on hardware things may take: for machines made in software.
pub const PATIENCE: &str = "UNDERCROFT_PATIENCE";

/// One reading of the file.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it says, defaults filled in.
    pub host: HostConfig,
    /// Line by line.
    pub file: config::Settings,
    /// What the defaults depend on.
    pub facts: HostFacts,
    /// How many times longer than on hardware things may take.
    pub patience: u32,
}

impl Settings {
    /// This user's, as they are now.
    pub fn read(paths: &Paths) -> Self {
        let facts = HostFacts::of_this_host();
        let file = config::Settings::read(&HOST, paths.configuration());
        let patience = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        Self { host: HostConfig::new(&file, &facts), file, facts, patience }
    }

    /// What holds for one distribution.
    pub fn of(&self, name: &str) -> DistributionSettings {
        DistributionSettings::new(&self.file, &self.facts, name)
    }

    /// MiB of memory that the machine may grow to.
    pub fn memory_mib(&self) -> u64 {
        (self.host.memory >> 20).max(256)
    }

    /// Virtual CPUs: as many as the VMM can give.
    pub fn cpus(&self) -> u8 {
        self.host.processors.clamp(1, 64) as u8
    }
}

/// The settings, and when their file was last changed.
#[derive(Debug)]
pub(super) struct Current(Mutex<(State, Arc<Settings>)>);

/// Which file it was, and when it was changed.
type State = (PathBuf, Option<SystemTime>);

impl Current {
    pub(super) fn new(settings: Settings, paths: &Paths) -> Self {
        Self(Mutex::new((changed(paths), Arc::new(settings))))
    }

    pub(super) fn get(&self) -> Arc<Settings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Looks whether the file has changed; if so, tells what that means, a line each.
    pub(super) fn refresh(&self, paths: &Paths) -> Option<Vec<String>> {
        let now = changed(paths);
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 == now {
            return None;
        }
        let new = Settings::read(paths);
        let mut lines: Vec<_> = new.file.warnings.iter().map(ToString::to_string).collect();
        for change in config::changed(&current.1.file, &new.file, &new.facts) {
            let name = change.key.full_name();
            match change.restart(None) {
                Restart::Nothing => {}
                Restart::Distribution(of) => {
                    lines.push(format!("{name} of {of} has changed: it acts when {of} is started next"));
                }
                Restart::Machine => lines.push(format!(
                    "{name} has changed: it acts when the virtual machine is started next (`undercroft shutdown` stops it)"
                )),
            }
        }
        *current = (now, Arc::new(new));
        Some(lines)
    }
}

fn changed(paths: &Paths) -> State {
    let path = paths.configuration();
    (path.to_owned(), path.metadata().and_then(|about| about.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        let current = Current::new(Settings::read(&paths), &paths);
        assert_eq!(current.refresh(&paths), None);
        // Where users of the reference system have it; then where this system would have it first.
        for (name, processors) in [("home.wslconfig", 3), (".wslconfig", 2)] {
            std::fs::write(folder.path().join(name), format!("[wsl2]\nprocessors={processors}\n")).unwrap();
            let lines = current.refresh(&paths).expect("it has changed");
            assert!(lines.iter().any(|line| line.contains("processors has changed")), "{lines:?}");
            assert_eq!(current.get().cpus(), processors);
            assert_eq!(current.refresh(&paths), None);
        }
    }
}
