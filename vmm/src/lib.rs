//! A minimal virtual machine monitor on KVM.

pub mod arch;
pub mod arguments;
pub mod boot;
pub mod bus;
pub mod config;
pub mod confine;
pub mod control;
pub mod devices;
pub mod end;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod vcpu;
pub mod virtio;

mod slots;
mod supervise;

pub use config::MachineConfig;
pub use end::End;
pub use machine::{Error, Machine};
