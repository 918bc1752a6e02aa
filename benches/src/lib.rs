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
//! | [`scenario`] | a machine's life beyond its boot, by parts |
//! | [`product`] | the same through the product's command line |
//! | [`peers`] | what others take for the same |
//! | [`program`] | the program whose first instruction ends a span |
//! | [`tools`] | what has to be built first |
//! | [`budget`] | the numbers that must not grow |
//!
//! The plugin is a crate of its own (`plugin/`), as are L1's PID 1 (`runner/`) and the program that
//! plays a machine's life through (`scenario/`).

pub mod archive;
pub mod boot;
pub mod budget;
pub mod counts;
mod error;
pub mod machine;
pub mod peers;
pub mod product;
pub mod program;
pub mod scenario;
pub mod tools;

pub use error::Error;
