//! What the host's configuration means for the service.

use std::{path::PathBuf, time::Duration};

use super::paths::Paths;
use crate::disk;

/// How many times longer than on hardware things may take: for machines made in software.
pub const PATIENCE: &str = "UNDERCROFT_PATIENCE";

/// The settings that the service acts by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// MiB of memory that the machine may grow to.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u8,
    /// A kernel of the user's own.
    pub kernel: Option<PathBuf>,
    /// What is added to the kernel's command line.
    pub command_line: String,
    /// How long a distribution runs on after its last session; `None` for ever.
    pub instance_idle: Option<Duration>,
    /// How long the machine runs on after its last distribution; `None` for ever.
    pub vm_idle: Option<Duration>,
    /// Bytes of a new distribution's own disk.
    pub disk_size: u64,
    /// How many times longer than on hardware things may take.
    pub patience: u32,
}

impl Default for Settings {
    /// What holds on this host without any configuration.
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(64);
        Self {
            memory_mib: (host_memory_mib() / 2).max(256),
            cpus: cpus as u8,
            kernel: None,
            command_line: String::new(),
            instance_idle: Some(Duration::from_millis(15_000)),
            vm_idle: Some(Duration::from_millis(60_000)),
            disk_size: disk::DEFAULT_SIZE,
            patience: 1,
        }
    }
}

/// This user's settings.
pub fn settings(_paths: &Paths) -> Settings {
    let mut settings = Settings::default();
    if let Some(patience) = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok()) {
        settings.patience = patience;
    }
    settings
}

/// MiB of memory that this host has (proc(5), /proc/meminfo, MemTotal); 2048 where it does not say.
fn host_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(2048, |kib| kib / 1024)
}
