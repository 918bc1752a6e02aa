//! Benchmarks in instructions, exits and bytes.
//!
//! The ruler is a machine made in software (L1: QEMU's TCG with `-icount`, so that its time is executed instructions)
//! with a Linux and its KVM, in which the VMM under test boots its guest (L2). A plugin of QEMU's counts who executed
//! what. Nothing in it depends on the machine that it runs on: two runs agree to the last digit. What it says is never a
//! time: a VM exit costs a real processor other than what the model charges for it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`machine`] | L1: its QEMU, its kernel, what it answers |
//! | [`archive`] | its one initramfs, with all that is measured |
//! | [`counts`] | what the plugin counted |
//! | [`boot`] | the boots that are measured |
//! | [`tools`] | what has to be built first |
//! | [`budget`] | the numbers that must not grow |
//!
//! The plugin is a crate of its own (`plugin/`), as is L1's PID 1 (`runner/`).

pub mod archive;
pub mod boot;
pub mod budget;
pub mod counts;
mod error;
pub mod machine;
pub mod tools;

pub use error::Error;
