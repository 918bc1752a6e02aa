//! A thread that works off queues whose requests may wait: disks.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[cfg(any(test, feature = "fuzzing"))]
use super::hostile::turns;
use super::queue::VirtQueue;
use crate::confine::{self, ThreadKind};

/// What is done whenever a doorbell has rung, with all queues and a function that says whether the worker is stopped.
type Work = Box<dyn FnMut(&mut [VirtQueue], &dyn Fn() -> bool) + Send>;

/// A running worker. Stopping it, or dropping it, waits until the request that it is at has ended: nothing of it
/// touches guest memory afterwards.
pub(super) struct Worker {
    stop: EventFd,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Without a thread: a hostile program works it off between its own steps, so that each step can be judged.
    #[cfg(any(test, feature = "fuzzing"))]
    _turns: Option<turns::Hold>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// The token of the stop event; queues have their index.
const STOP: u64 = u64::MAX;

impl Worker {
    /// Starts a thread called `name`, on which `work` is called with all queues whenever a doorbell has rung, and once
    /// at the beginning. It should end soon when the function that it is given says that the worker is stopped.
    ///
    /// # Errors
    /// There is no thread or file descriptor to be had.
    pub(super) fn start(
        name: &str,
        queues: Vec<VirtQueue>,
        work: impl FnMut(&mut [VirtQueue], &dyn Fn() -> bool) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let mut rounds = Rounds::new(&stop, queues, Box::new(work), is_stopped.clone())?;
        #[cfg(any(test, feature = "fuzzing"))]
        if turns::are_wanted() {
            let hold = turns::keep(rounds);
            return Ok(Self { stop, is_stopped, thread: None, _turns: Some(hold) });
        }
        let thread = confine::spawn(ThreadKind::Disk, name, move || {
            rounds.work();
            while !rounds.is_stopped() {
                if let Err(error) = rounds.round(-1) {
                    eprintln!("undercroft-vmm: a disk's thread cannot wait for requests: {error}");
                    return;
                }
            }
        })?;
        Ok(Self {
            stop,
            is_stopped,
            thread: Some(thread),
            #[cfg(any(test, feature = "fuzzing"))]
            _turns: None,
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself.
            let _ = thread.join();
        }
    }
}

/// What a worker's thread goes round in.
pub(super) struct Rounds {
    epoll: Epoll,
    queues: Vec<VirtQueue>,
    work: Work,
    is_stopped: Arc<AtomicBool>,
}

impl Rounds {
    fn new(
        stop: &EventFd,
        queues: Vec<VirtQueue>,
        work: Work,
        is_stopped: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |event: &EventFd, token| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(event);
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
        };
        watch(stop, STOP)?;
        for (index, queue) in queues.iter().enumerate() {
            watch(queue.doorbell(), index as u64)?;
        }
        Ok(Self { epoll, queues, work, is_stopped })
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Works off what is there.
    pub(super) fn work(&mut self) {
        let Self { queues, work, is_stopped, .. } = self;
        work(queues, &|| is_stopped.load(Ordering::Acquire));
    }

    /// Waits at most `milliseconds` (-1: for ever) for a doorbell and works off what is there; returns how many rang.
    pub(super) fn round(&mut self, milliseconds: i32) -> io::Result<usize> {
        let mut events = [EpollEvent::default(); 8];
        let count = match self.epoll.wait(milliseconds, &mut events) {
            Ok(0) => return Ok(0),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            if let Some(queue) = usize::try_from(event.data()).ok().and_then(|i| self.queues.get(i)) {
                queue.heard();
            }
        }
        self.work();
        Ok(count)
    }
}
