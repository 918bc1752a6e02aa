//! Threads that can do no more than their work needs.
//!
//! Each kind of thread has a seccomp filter (module `filters`), put on by the thread itself before it does anything else. A
//! thread inherits the filters of the one that makes it and can only lose by its own; so no confined thread makes threads. There
//! is one, `spawner`, that does nothing but that, from the first day of the first machine in the process; its own filter allows what
//! any kind may do, besides making threads. A device that wants a thread while the guest runs asks it through [`spawn`].
//!
//! `no_new_privs` is set and core dumps are off in a process that confines threads, for a dump would hold the guest's memory.

use std::any::Any;
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use crate::config::Seccomp;

mod filters;
mod tree;

/// Why a thread could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be made.
    #[error("cannot make a seccomp filter")]
    Make(#[from] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error(
        "cannot put a seccomp filter on (a kernel with CONFIG_SECCOMP_FILTER is needed, or seccomp = off)"
    )]
    Apply(#[from] seccompiler::Error),
    /// A process-wide setting.
    #[error("cannot {what}")]
    System {
        /// Which.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a thread does, and so which system calls it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ThreadKind {
    /// The first thread: control socket, signals, console input.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// The same in a machine with folders, each of which a process beside the VMM is told to serve when its driver starts.
    FolderVcpu,
    /// The loop of vsock, network, rng, balloon, memory and console.
    Devices,
    /// A disk's queue.
    Disk,
    /// Makes threads.
    Spawner,
}

/// Room for a thread's stack; none recurses or has large locals.
const STACK_SIZE: usize = 256 << 10;

type Answer = io::Result<Box<dyn Any + Send>>;

struct Job {
    make: Box<dyn FnOnce() -> Answer + Send>,
    answer: SyncSender<Answer>,
}

/// The process's spawner, once there is one, and how strict the filters of the threads it makes are.
static SPAWNER: OnceLock<(Mutex<Sender<Job>>, Seccomp)> = OnceLock::new();

/// From now on threads of this process that [`spawn`] makes are confined. Only the first call decides how strictly.
///
/// # Errors
/// The kernel has no seccomp filters, or no thread can be made.
pub fn start(seccomp: Seccomp) -> Result<(), Error> {
    if seccomp == Seccomp::Off || SPAWNER.get().is_some() {
        return Ok(());
    }
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| Error::System { what: "set no_new_privs", source: errno.into() })?;
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| Error::System { what: "turn core dumps off", source: errno.into() })?;
    let (jobs, queue) = channel::<Job>();
    let (ready, is_ready) = sync_channel(1);
    let spawner = thread::Builder::new().name("spawner".into()).stack_size(STACK_SIZE);
    let work = move || {
        let entered = enter(ThreadKind::Spawner, seccomp);
        let is_confined = entered.is_ok();
        if ready.send(entered).is_ok() && is_confined {
            serve(&queue);
        }
    };
    spawner.spawn(work).map_err(|source| Error::System { what: "start the spawner's thread", source })?;
    is_ready.recv().map_err(|_| Error::System {
        what: "start the spawner's thread",
        source: io::ErrorKind::BrokenPipe.into(),
    })??;
    // Another machine's first call may have been faster; then this spawner's queue ends, and so does it.
    let _ = SPAWNER.set((Mutex::new(jobs), seccomp));
    Ok(())
}

fn serve(queue: &Receiver<Job>) {
    while let Ok(Job { make, answer }) = queue.recv() {
        // Nobody waits any more if the asking thread has panicked.
        let _ = answer.send(make());
    }
}

/// Starts a thread under the filter of its kind; without one in a process that has not called [`start`].
///
/// # Errors
/// No thread can be made.
pub fn spawn<F, T>(kind: ThreadKind, name: &str, work: F) -> io::Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let builder = thread::Builder::new().name(name.into()).stack_size(STACK_SIZE);
    let Some((jobs, seccomp)) = SPAWNER.get() else { return builder.spawn(work) };
    let seccomp = *seccomp;
    let confined = move || {
        if let Err(error) = enter(kind, seccomp) {
            // The spawner's own filter was taken, so this one cannot be refused; and if it is, nothing may run without.
            eprintln!("undercroft-vmm: {error}");
            std::process::abort();
        }
        work()
    };
    let make =
        Box::new(move || builder.spawn(confined).map(|thread| Box::new(thread) as Box<dyn Any + Send>));
    let (answer, answered) = sync_channel(1);
    let gone = |_| io::Error::other("the spawner's thread is gone");
    let job = Job { make, answer };
    jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| gone(()))?;
    let thread = answered.recv().map_err(|_| gone(()))??;
    thread.downcast::<JoinHandle<T>>().map(|thread| *thread).map_err(|_| gone(()))
}

/// Confines the calling thread, for good.
///
/// # Errors
/// The kernel does not take the filter.
pub fn enter(kind: ThreadKind, seccomp: Seccomp) -> Result<(), Error> {
    if seccomp != Seccomp::Off {
        seccompiler::apply_filter(&filters::program(kind, seccomp)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_without_a_spawner_just_run() {
        assert_eq!(spawn(ThreadKind::Vcpu, "test", || 7).unwrap().join().unwrap(), 7);
    }
}
