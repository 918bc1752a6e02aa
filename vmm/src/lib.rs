//! A minimal virtual machine monitor on KVM.

pub mod bus;
pub mod config;
#[cfg(any())]
pub mod probe;
pub mod virtio;

pub use config::MachineConfig;
