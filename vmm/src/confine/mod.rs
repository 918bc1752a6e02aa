//! Threads that can do no more than their work needs. (Filters follow.)

use std::io;
use std::thread::{self, JoinHandle};

use crate::config::Seccomp;

/// Why a thread could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter.
    #[error("cannot put a seccomp filter on")]
    Filter(#[from] seccompiler::Error),
}

/// What a thread does, and so which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ThreadKind {
    /// The first thread: control socket, signals, console input.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// The loop of vsock, rng, balloon and console.
    Devices,
    /// A disk's queue.
    Disk,
}

/// Begins.
///
/// # Errors
/// None yet.
pub fn start(_: Seccomp) -> Result<(), Error> {
    Ok(())
}

/// Starts a thread under the filter of its kind.
///
/// # Errors
/// No thread can be made.
pub fn spawn<F, T>(kind: ThreadKind, name: &str, work: F) -> io::Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let _ = kind;
    thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(work)
}

/// Confines the calling thread.
///
/// # Errors
/// The kernel does not take the filter.
pub fn enter(_: ThreadKind, _: Seccomp) -> Result<(), Error> {
    Ok(())
}
