//! A distribution's cgroup: limits that are the VM's, and a subtree that is the distribution's
//! (Documentation/admin-guide/cgroup-v2.rst, "Delegation").

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};
use undercroft_protocol::command::{Launch, Limits, Users};

use crate::early;

/// Microseconds over which `cpu.max` is counted: the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// What a distribution may do in its own cgroup, besides making others below it.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// A distribution's cgroup.
pub(crate) fn path(id: u32) -> PathBuf {
    Path::new(early::DISTRIBUTIONS).join(id.to_string())
}

/// Makes it, and opens it for [`undercroft_guest::process::clone_beside`].
pub(super) fn make(what: &Launch, own_disk: &Path) -> io::Result<OwnedFd> {
    let path = path(what.id);
    fs::create_dir(&path)?;
    for (file, value) in settings(&what.limits, || fs::metadata(own_disk).map(|about| about.rdev()))? {
        let write = fs::write(path.join(file), &value);
        write.map_err(|e| io::Error::new(e.kind(), format!("writing {value:?} to {file}: {e}")))?;
    }
    if let Users::Own { first, .. } = what.users {
        chown(&path, Some(first), Some(first))?;
        for file in DELEGATED {
            chown(path.join(file), Some(first), Some(first))?;
        }
    }
    Ok(fs::File::open(path)?.into())
}

/// Files and what is written to them.
fn settings(
    limits: &Limits,
    device: impl Fn() -> io::Result<u64>,
) -> io::Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    if let Some(bytes) = limits.memory {
        all.push(("memory.max", bytes.to_string()));
    }
    if let Some(milli) = limits.cpu_milli {
        all.push(("cpu.max", format!("{} {PERIOD_US}", u64::from(milli) * PERIOD_US / 1000)));
    }
    if let Some(pids) = limits.pids {
        all.push(("pids.max", pids.to_string()));
    }
    if let Some(bytes) = limits.io_bytes {
        let device = device()?;
        let (major, minor) = (major(device), minor(device));
        all.push(("io.max", format!("{major}:{minor} rbps={bytes} wbps={bytes}")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_kernels_words() {
        let limits =
            Limits { memory: Some(1 << 28), cpu_milli: Some(1500), pids: Some(300), io_bytes: Some(4096) };
        let expected = [
            ("memory.max", "268435456"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "300"),
            ("io.max", "8:16 rbps=4096 wbps=4096"),
        ];
        let got = settings(&limits, || Ok(rustix::fs::makedev(8, 16))).unwrap();
        assert_eq!(got, expected.map(|(file, value)| (file, value.to_owned())));
        let none = settings(&Limits::default(), || Err(io::ErrorKind::NotFound.into())).unwrap();
        assert!(none.is_empty());
    }
}
