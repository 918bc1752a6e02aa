//! The root file system: mounted, looked at, entered.

use std::path::Path;

use nix::mount::MsFlags;
use undercroft_protocol::command::{Failure, FailureKind};

use super::kernel::Kernel;
use crate::{
    jobs::{failure, system},
    root_check,
};

/// Where the root is mounted until it is the root. Only the distribution's own mount namespace sees it.
pub(super) const PLACE: &str = "/run/distribution";

/// `discard` gives deleted files' space back to the host; an error must not be followed by writes that make it worse.
const OPTIONS: &str = "discard,errors=remount-ro";

/// Mounts a flat root: one ext4 disk. Nothing of it is seen in the VM's own namespace.
pub(super) fn mount<K: Kernel>(kernel: &mut K, device: &Path) -> Result<(), Failure> {
    kernel
        .mount("none", "/", None, MsFlags::MS_PRIVATE | MsFlags::MS_REC, "")
        .map_err(system("making the mounts private"))?;
    kernel.directory(PLACE, 0o700).map_err(system(&format!("making {PLACE}")))?;
    let device = device.display().to_string();
    kernel
        .mount(&device, PLACE, Some("ext4"), MsFlags::empty(), OPTIONS)
        .map_err(failure(FailureKind::Disk, &format!("mounting the distribution's disk {device} as ext4")))
}

/// Refuses what is not a root file system for this machine, before anything of it is executed.
pub(super) fn check(root: &Path) -> Result<(), Failure> {
    root_check::check(root)
        .map_err(|reason| Failure { kind: FailureKind::NotARoot, message: reason.to_string() })
}

/// Makes it the root.
pub(super) fn pivot<K: Kernel>(kernel: &mut K) -> Result<(), Failure> {
    kernel.pivot(PLACE).map_err(system("making the distribution's disk the root"))
}
