//! A minimal virtual machine monitor on KVM: one Linux kernel, virtio over MMIO, no firmware, no PCI.
//!
//! A [`MachineConfig`] says what the machine is. [`Machine::new`] makes it: guest memory, the kernel in it, the tables that
//! describe it, devices, vCPUs; [`Machine::run`] runs it to its [`End`]. The binary `undercroft-vmm` is that and its
//! [arguments], which are the configuration's fields.
//!
//! ```no_run
//! use undercroft_vmm::{Machine, MachineConfig};
//!
//! let config = MachineConfig { kernel: "/boot/vmlinuz".into(), cpus: 2, ..MachineConfig::default() };
//! let end = Machine::new(config)?.run()?;
//! println!("{end}");
//! # Ok::<(), undercroft_vmm::Error>(())
//! ```
//!
//! # Where what is
//!
//! | module | what |
//! | --- | --- |
//! | [`config`], [`arguments`] | what a machine is; how the binary is told |
//! | [`machine`], [`end`], [`control`] | making one, running it, how it ends, how it is controlled meanwhile |
//! | [`boot`] | kernel files: ELF, bzImage |
//! | [`arch`] | the processor's architecture: address map, tables, registers, CPUID |
//! | [`memory`], [`kvm`], [`vcpu`], [`bus`] | guest memory, KVM, the run loop, ports and registers |
//! | [`vhost_user`] | devices that a process beside the VMM works for |
//! | [`devices`], [`virtio`] | the few ports that a PC needs, and everything else |
//! | [`confine`] | threads and their seccomp filters |
//! | [`probe`] | whether KVM is any good here |
//!
//! # Threads
//!
//! The calling thread waits for the end, for signals and for requests. `vcpu N` runs a vCPU, `devices` is the event loop of the
//! virtio devices, `disk N` works off a disk's requests, `spawner` makes those threads; each is confined to its work.

pub mod arch;
pub mod arguments;
pub mod boot;
pub mod bus;
pub mod config;
pub mod confine;
pub mod control;
mod descriptor;
pub mod devices;
pub mod end;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod vcpu;
pub mod vhost_user;
pub mod virtio;

mod slots;
mod supervise;

pub use config::MachineConfig;
pub use end::End;
pub use machine::{Error, Machine};
