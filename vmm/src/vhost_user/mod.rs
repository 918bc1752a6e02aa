//! Devices that a process beside the VMM works for (vhost-user): virtiofsd, which serves a folder.
//!
//! [`backend`] is the conversation with such a process, whoever's queues it works on: a guest's (see
//! [`virtio::fs`](crate::virtio::fs)), or those of a [`driver`] in this very process, for who has requests of another source.

pub mod backend;
pub mod driver;
pub(crate) mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError};
pub use driver::{Answer, Driver, DriverError, Slot};
