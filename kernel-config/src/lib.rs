//! Kernels for the utility VM.
//!
//! Three ways to one: [`stock`] (a distribution's own kernel, the host's or Debian's), [`tuned`] (built from a Linux
//! LTS source with the fragments in `fragments/`, one feature a file, each option with its reason), and [`given`] (any
//! vmlinux or bzImage). Each ends in a [`Kernel`]: an image, the modules that the initramfs must hold, and a disk with
//! the others. They live in the [`cache`], outside the clone.

mod apt;
pub mod cache;
mod compression;
mod error;
pub mod fragments;
pub mod initramfs;
mod kbuild;
mod kernel;
pub mod merge;
mod modinfo;
mod modules;
mod modules_disk;
mod payload;
mod program;
mod release;
pub mod requirements;
mod source;
mod stock;
mod tuned;

pub use error::Error;
pub use kernel::{Description, Kernel, Kind};
pub use source::{LICENCES, Source, licences};
pub use stock::{given, newest_stock, stock};
pub use tuned::{Options, Progress, config, configuration, merged, tuned, tuned_if_built};
