//! What a host's defaults depend on.

use std::{fs, path::PathBuf};

/// What a host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Bytes of memory.
    pub memory: u64,
    /// CPUs that this process may use.
    pub processors: u32,
    /// The home folder, which `~/` in a path stands for.
    pub home: Option<PathBuf>,
}

impl HostFacts {
    /// This host's: /proc/meminfo (proc_meminfo(5)), sched_getaffinity(2), `$HOME`. What cannot be found out is 0 or nothing.
    pub fn of_this_host() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: Option<u64> = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        Self { memory: kib.unwrap_or(0) * 1024, processors: u32::try_from(processors).unwrap_or(1), home }
    }

    /// A path of the configuration's, with the home folder put in.
    pub fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => text.into(),
        }
    }
}
