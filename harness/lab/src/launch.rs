//! What the broker is told when it is started, and the agent on its kernel's command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The kernel command line's parameter with the number that the agent repeats in its hello.
pub const NONCE: &str = "undercroft.nonce=";

/// The file in L1's initramfs that holds the agent's [`Mounts`] in postcard.
pub const MOUNTS: &str = "mounts";

/// The folder in L1's initramfs whose modules are loaded, in the order of their names.
pub const MODULES: &str = "modules";

/// The file name of the broker's socket in the lab's folder.
pub const SOCKET: &str = "broker";

/// The file name of the L1 console's log in the lab's folder.
pub const CONSOLE: &str = "console.log";

/// The file name of QEMU's own words in the lab's folder.
pub const QEMU_LOG: &str = "qemu.log";

/// A lab to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The lab's folder: socket, logs.
    pub folder: PathBuf,
    /// What tells this lab from one with another kernel, agent or set of mounts.
    pub identity: String,
    /// The uncompressed kernel of L1.
    pub kernel: PathBuf,
    /// Its initramfs: the agent and the modules.
    pub initramfs: PathBuf,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// What serves files.
    pub virtiofsd: Virtiofsd,
    /// Folders that can be written to in L1, at the same paths; none below another.
    pub writable: Vec<PathBuf>,
    /// Memory of L1 in MiB.
    pub memory_mib: u64,
    /// CPUs of L1.
    pub cpus: u32,
    /// Whether L1 reaches the network through QEMU.
    pub network: bool,
    /// Seconds without a command after which the lab ends.
    pub idle_seconds: u64,
}

/// A virtiofsd and its manner of speaking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Virtiofsd {
    /// The C program of Debian 12's qemu-system-common, which runs as root only.
    Qemu(PathBuf),
    /// The Rust program.
    Rust(PathBuf),
}

/// What the agent mounts beside the host's root, whose tag is [`Mounts::ROOT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// Folders to mount; the tag of the first is `rw0`, of the second `rw1`, ….
    pub writable: Vec<PathBuf>,
}

impl Mounts {
    /// The tag of the host's root.
    pub const ROOT: &str = "host";

    /// The tag of the nth writable folder.
    pub fn tag(n: usize) -> String {
        format!("rw{n}")
    }
}
