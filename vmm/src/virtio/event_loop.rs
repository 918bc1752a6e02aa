//! The loop on which all devices work that never wait: vsock, network, rng, balloon, memory, console.
//!
//! One thread, one epoll. A [`Handler`] is a device's half that runs there; it is called with the token under which it
//! registered the file descriptor that is ready. [`EventLoop::remove`] returns only when the handler is not running and
//! never will again, which is what a device's reset needs.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{heap, lock};

/// What runs on the loop for one device.
pub trait Handler: Send {
    /// The file descriptor registered as `token` is ready for `events`.
    fn ready(&mut self, token: u32, events: EventSet);
}

/// How many events are taken from the kernel at a time.
const BATCH: usize = 64;

struct Shared {
    epoll: Epoll,
    handlers: Mutex<HashMap<u32, Arc<Mutex<dyn Handler>>>>,
    next: AtomicU32,
}

/// A handle on the loop; clones are handles on the same one.
#[derive(Clone)]
pub struct EventLoop {
    shared: Arc<Shared>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop").field("handlers", &lock(&self.shared.handlers).len()).finish()
    }
}

/// A handler's right to watch file descriptors.
#[derive(Clone)]
pub struct Registration {
    shared: Arc<Shared>,
    id: u32,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration").field(&self.id).finish()
    }
}

impl EventLoop {
    /// A loop that does not run yet. It is best made before the process has threads: those that are started later share
    /// one heap, so that confined ones need not open files to shrink theirs.
    ///
    /// # Errors
    /// epoll_create1(2)'s.
    pub fn new() -> io::Result<Self> {
        heap::share();
        let shared = Shared { epoll: Epoll::new()?, handlers: Mutex::default(), next: AtomicU32::new(1) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs the loop on the calling thread; the machine's thread `devices` does nothing else.
    ///
    /// # Errors
    /// epoll_wait(2)'s. It does not return otherwise.
    pub fn run(&self) -> io::Result<std::convert::Infallible> {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            self.turn(-1, &mut events)?;
        }
    }

    /// Waits at most `milliseconds` (-1: for ever) and deals with what is ready; returns how much that was.
    fn turn(&self, milliseconds: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        let count = match self.shared.epoll.wait(milliseconds, events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            let (id, token) = ((event.data() >> 32) as u32, event.data() as u32);
            // One that was removed since has no entry any more.
            let handler = lock(&self.shared.handlers).get(&id).cloned();
            if let Some(handler) = handler {
                lock(&handler).ready(token, event.event_set());
            }
        }
        Ok(count)
    }

    /// Deals with what is ready now, for hostile programs; returns how much that was.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn turn_now(&self) -> io::Result<usize> {
        self.turn(0, &mut [EpollEvent::default(); BATCH])
    }

    /// Runs the loop until nothing is ready, for tests that have no thread.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        let mut events = [EpollEvent::default(); BATCH];
        for _ in 0..100_000 {
            if self.turn(0, &mut events).unwrap() == 0 {
                return;
            }
        }
        panic!("the event loop spins");
    }

    /// A right to watch file descriptors, whose handler is still to be [installed](Self::install).
    pub fn register(&self) -> Registration {
        Registration { shared: self.shared.clone(), id: self.shared.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Has `handler` called for what `registration` watches.
    pub fn install(&self, registration: &Registration, handler: Arc<Mutex<dyn Handler>>) {
        lock(&self.shared.handlers).insert(registration.id, handler);
    }

    /// Takes a handler off the loop, and returns when it has ended what it was doing. Must not be called by itself.
    pub fn remove(&self, registration: &Registration) {
        let handler = lock(&self.shared.handlers).remove(&registration.id);
        if let Some(handler) = handler {
            drop(lock(&handler));
        }
    }
}

impl Registration {
    /// Watches `fd` for `events`, level-triggered unless they say otherwise.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub fn watch(&self, fd: &impl AsRawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token, events)
    }

    /// Watches `fd`, which is watched already, for other events.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub fn change(&self, fd: &impl AsRawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), token, events)
    }

    /// Watches `fd` no longer. To be called before it is closed: a duplicate would stay watched otherwise.
    pub fn forget(&self, fd: &impl AsRawFd) {
        let _ = self.control(ControlOperation::Delete, fd.as_raw_fd(), 0, EventSet::empty());
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        token: u32,
        events: EventSet,
    ) -> io::Result<()> {
        let data = u64::from(self.id) << 32 | u64::from(token);
        self.shared.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Counter(EventFd, Vec<u32>);

    impl Handler for Counter {
        fn ready(&mut self, token: u32, _: EventSet) {
            self.0.read().unwrap();
            self.1.push(token);
        }
    }

    #[test]
    fn handlers_are_called_by_token_until_they_are_removed() {
        let events = EventLoop::new().unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let registration = events.register();
        let counter = Arc::new(Mutex::new(Counter(event.try_clone().unwrap(), Vec::new())));
        events.install(&registration, counter.clone());
        registration.watch(&event, 42, EventSet::IN).unwrap();
        event.write(1).unwrap();
        events.settle();
        assert_eq!(counter.lock().unwrap().1, [42]);
        registration.forget(&event);
        events.remove(&registration);
        event.write(1).unwrap();
        events.settle();
        assert_eq!(counter.lock().unwrap().1, [42]);
    }
}
