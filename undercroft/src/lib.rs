//! Many Linux distributions on one kernel in one lightweight utility VM: the host's library.
//!
//! A [`Machine`] is the VMM's process and mini-init in the guest. Disks come and go: a [`Store`] keeps them. An archive is
//! unpacked onto one and becomes a base ([`Store::import_base`]); a distribution has a disk of its own besides; a
//! [`Distribution`] is launched from the two, and [`Session`]s run in that. Everything is
//! synchronous; one thread for each connection writes what it hears on one board, and who waits for something waits
//! there, so that the machine's end ends every wait with its reason.
//!
//! ```no_run
//! use undercroft::{KnownFile, LaunchOptions, Machine, MachineOptions, Pipes, Program, Store};
//! use undercroft_vmm::MachineConfig;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let machine = Machine::start(MachineOptions {
//!     vmm: "/usr/lib/undercroft/undercroft-vmm".into(),
//!     config: MachineConfig { kernel: "vmlinux".into(), initramfs: Some("initramfs.cpio".into()), ..Default::default() },
//!     modules_disk: None,
//!     console_log: None,
//!     network: Default::default(),
//!     folders: Default::default(),
//!     patience: 1,
//! })?;
//! let store = Store::open("store".as_ref())?;
//! let archive = KnownFile::read("debian.tar".as_ref(), Some(&store.digests()), |_, _| ())?;
//! let (base, _) = store.import_base(&archive, &mut machine.unpacker(|_| ()))?;
//! store.create("debian", &base, undercroft::disk::DEFAULT_SIZE)?;
//! let disks = machine.attach(store.hold("debian")?)?;
//! let debian = machine.launch(&LaunchOptions::new("debian", disks.root().clone()))?;
//! let output = debian.exec(&Program::new(["cat", "/etc/os-release"]), Pipes::ALL)?.output("")?;
//! println!("{}", String::from_utf8_lossy(&output.stdout));
//! machine.power_off(std::time::Duration::from_secs(2));
//! # Ok(())
//! # }
//! ```

mod board;
mod console;
mod copy;
pub mod digest;
pub mod disk;
mod distribution;
mod door;
mod e2fs;
pub mod error;
pub mod export;
pub mod folders;
mod guest;
pub mod import;
mod kernel;
mod machine;
pub mod network;
pub mod service;
mod session;
mod signals;
pub mod source;
mod spawn;
pub mod store;
mod tar_walk;
pub mod terminal;
pub mod timeline;
pub mod upkeep;
mod users;
mod vmm;
mod watched;

pub use digest::{Digest, KnownFile};
pub use disk::NewDisk;
pub use distribution::{Change, Distribution, LaunchOptions, Pipes};
pub use error::{Cause, Ending, Error, Result};
pub use export::{Compression, Exporting, NewFile, Target};
pub use folders::{FolderOptions, FolderStatus, SharedFolder};
pub use import::Archive;
pub use kernel::{BOOT_MEMORY_MIB, machine_config};
pub use machine::{HELLO, Machine, MachineOptions, PowerOff, Stopper};
pub use network::{
    NameOptions, NameServers, NatOptions, NetworkMode, NetworkOptions, NetworkStatus, TapOptions,
};
pub use session::{Control, Input, Output, Program, Relayed, Session, Steer, Steering, Streams};
pub use signals::Signals;
pub use store::Store;
pub use timeline::Timeline;
pub use undercroft_protocol::{
    command::{DiskAddress, Exported, Imported, Limits, Reclaim, ReclaimMode, Root, Usage},
    session::{ExitStatus, WindowSize},
};

#[cfg(test)]
mod tests;
