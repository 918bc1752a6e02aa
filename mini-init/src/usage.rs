//! What the machine and its distributions use: numbers of the kernel's, read when somebody asks.

use std::{fs, path::Path};

use undercroft_protocol::command::{DistributionUsage, Usage};

use crate::launch;

/// As it is now. What the kernel does not count is nothing.
pub(crate) fn take(running: impl Iterator<Item = u32>) -> Usage {
    machine(&read("/proc/meminfo"), running.map(distribution).collect())
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn machine(meminfo: &str, distributions: Vec<DistributionUsage>) -> Usage {
    let bytes = |name| number(meminfo, name).saturating_mul(1024);
    Usage {
        memory: bytes("MemTotal:"),
        available: bytes("MemAvailable:"),
        swap: bytes("SwapTotal:"),
        swap_free: bytes("SwapFree:"),
        distributions,
    }
}

fn distribution(id: u32) -> DistributionUsage {
    let cgroup = launch::cgroup_path(id);
    let file = |name| read(cgroup.join(name));
    of_cgroup(id, &file("memory.current"), &file("memory.stat"), &file("cpu.stat"))
}

fn of_cgroup(id: u32, current: &str, memory: &str, cpu: &str) -> DistributionUsage {
    let cache = number(memory, "file").saturating_sub(number(memory, "shmem"));
    let current = current.trim().parse::<u64>().unwrap_or(0);
    DistributionUsage {
        distribution: id,
        memory: current.saturating_sub(cache),
        cache,
        cpu_us: number(cpu, "usage_usec"),
    }
}

/// The number behind a name at a line's beginning.
fn number(text: &str, name: &str) -> u64 {
    let mut words = text.lines().map(str::split_ascii_whitespace);
    let value = words.find_map(|mut line| if line.next() == Some(name) { line.next() } else { None });
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_found() {
        let meminfo = "MemTotal:         498700 kB\nMemFree:          1 kB\nMemAvailable:     400000 kB\n\
                       SwapTotal:        1024 kB\nSwapFree:         512 kB\n";
        let usage = machine(meminfo, Vec::new());
        let expected = [498_700, 400_000, 1024, 512].map(|kib| kib * 1024);
        assert_eq!([usage.memory, usage.available, usage.swap, usage.swap_free], expected);

        let stat = "anon 100\nfile 5000\nfile_mapped 7\nshmem 1000\n";
        let one = of_cgroup(3, "9000\n", stat, "usage_usec 12345\nuser_usec 1\n");
        let expected = DistributionUsage { distribution: 3, memory: 5000, cache: 4000, cpu_us: 12345 };
        assert_eq!(one, expected);
    }

    #[test]
    fn what_is_not_counted_is_nothing() {
        assert_eq!(machine("MemTotal: many kB\n", Vec::new()), Usage::default());
        let nothing = DistributionUsage { distribution: 1, ..DistributionUsage::default() };
        assert_eq!(of_cgroup(1, "", "file", "usage_usec -1"), nothing);
    }
}
