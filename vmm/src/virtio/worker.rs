//! A thread that works off queues whose requests may wait: disks.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::VirtQueue;
use crate::confine::{self, ThreadKind};

/// A running worker. Stopping it, or dropping it, waits until the request that it is at has ended: nothing of it
/// touches guest memory afterwards.
pub(super) struct Worker {
    stop: EventFd,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
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
        mut queues: Vec<VirtQueue>,
        mut work: impl FnMut(&mut [VirtQueue], &dyn Fn() -> bool) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let watch = |event: &EventFd, token| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(event);
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
        };
        watch(&stop, STOP)?;
        for (index, queue) in queues.iter().enumerate() {
            watch(queue.doorbell(), index as u64)?;
        }
        let flag = Arc::new(AtomicBool::new(false));
        let stopped = flag.clone();
        let thread = confine::spawn(ThreadKind::Disk, name, move || {
            let is_stopped = || stopped.load(Ordering::Acquire);
            work(&mut queues, &is_stopped);
            let mut events = [EpollEvent::default(); 8];
            while !is_stopped() {
                let count = match epoll.wait(-1, &mut events) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                    Err(error) => {
                        eprintln!("undercroft-vmm: a disk's thread cannot wait for requests: {error}");
                        return;
                    }
                };
                for event in &events[..count] {
                    if let Some(queue) = usize::try_from(event.data()).ok().and_then(|i| queues.get(i)) {
                        queue.heard();
                    }
                }
                work(&mut queues, &is_stopped);
            }
        })?;
        Ok(Self { stop, is_stopped: flag, thread: Some(thread) })
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
