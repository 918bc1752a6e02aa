//! virtio-console with one port: `hvc0` (virtio 1.2, section 5.3).
//!
//! Output is written only when its file descriptor says that it has room, in pieces that fit, because it may be a pipe
//! or terminal that is shared with others and so cannot be made non-blocking; what does not fit stays in the guest's
//! buffers and the guest waits. Input is read only when the guest has buffers for it. So nothing is kept here.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::event_loop::{EventLoop, Handler, Registration};
use super::guest_io;
use super::queue::{Chain, VirtQueue, cannot};

/// Device type.
const ID: u32 = 3;
/// The most that is written at once: what a pipe that has room takes without waiting (PIPE_BUF).
const PIECE: usize = 4096;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;

/// Sees the console's output as it is written.
pub type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// A virtio-console device.
pub struct Console {
    host: Arc<Mutex<Host>>,
    events: EventLoop,
    active: Option<(Registration, [EventFd; 2])>,
}

/// The host's side, which outlives a reset.
struct Host {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// Knows whether the output has room; a regular file always has, and nothing here knows it.
    room: Option<Epoll>,
    tap: Option<Tap>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console that reads from `input` and writes to `output`, where there are any, and shows `tap` what it writes.
    pub fn new(input: Option<OwnedFd>, output: Option<OwnedFd>, tap: Option<Tap>, events: EventLoop) -> Self {
        let room = output.as_ref().and_then(|output| {
            let epoll = Epoll::new().ok()?;
            let event = EpollEvent::new(EventSet::OUT, 0);
            epoll.ctl(ControlOperation::Add, output.as_raw_fd(), event).ok()?;
            Some(epoll)
        });
        Self { host: Arc::new(Mutex::new(Host { input, output, room, tap })), events, active: None }
    }
}

impl Host {
    /// Whether a piece can be written without waiting. (Or fails at once, which is as good.)
    fn has_room(&self) -> bool {
        let full = |epoll: &Epoll| matches!(epoll.wait(0, &mut [EpollEvent::default()]), Ok(0));
        !self.room.as_ref().is_some_and(full)
    }
}

struct Port {
    host: Arc<Mutex<Host>>,
    registration: Registration,
    receive: VirtQueue,
    transmit: VirtQueue,
    /// A chain that is written in part.
    current: Option<Chain>,
    is_input_watched: bool,
    is_output_watched: bool,
}

impl Handler for Port {
    fn ready(&mut self, token: u32, _: EventSet) {
        match token {
            RECEIVE => {
                self.receive.heard();
            }
            TRANSMIT => {
                self.transmit.heard();
            }
            OUTPUT => self.is_output_watched = false,
            _ => {}
        }
        let host = self.host.clone();
        let mut host = super::lock(&host);
        if token == INPUT || token == RECEIVE {
            self.read(&mut host, token == INPUT);
            self.receive.signal();
        } else {
            self.write(&mut host);
            self.transmit.signal();
        }
    }
}

impl Port {
    /// Hands input to the guest, or waits for it.
    fn read(&mut self, host: &mut Host, is_ready: bool) {
        let Some(input) = &host.input else { return };
        let memory = self.receive.memory().clone();
        if is_ready {
            // Once: another read might wait.
            if let Some(chain) = self.next_receive() {
                match guest_io::read_some(input.as_fd(), &memory, &chain.writable) {
                    Ok(count) if count > 0 => self.receive.push(chain.head, count as u32),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive.unpop(),
                    // The end, or an input that is gone.
                    _ => {
                        self.receive.unpop();
                        self.watch_input(input.as_fd(), false);
                        host.input = None;
                        return;
                    }
                }
            }
        }
        let has_room = match self.next_receive() {
            Some(_) => {
                self.receive.unpop();
                true
            }
            None => false,
        };
        self.watch_input(input.as_fd(), has_room);
    }

    /// The next chain with room in it; those without are given back.
    fn next_receive(&mut self) -> Option<Chain> {
        for _ in 0..self.receive.size() {
            match self.receive.pop() {
                Some(chain) if chain.writable.is_empty() => self.receive.push(chain.head, 0),
                Some(chain) => return Some(chain),
                None if self.receive.enable_notifications() => {}
                None => return None,
            }
        }
        self.receive.ring();
        None
    }

    fn watch_input(&mut self, input: BorrowedFd<'_>, wanted: bool) {
        if wanted && !self.is_input_watched {
            // A regular file cannot be watched; it is no terminal either.
            self.is_input_watched = self.registration.watch(&input, INPUT, EventSet::IN).is_ok();
        } else if !wanted && self.is_input_watched {
            self.registration.forget(&input);
            self.is_input_watched = false;
        }
    }

    /// Writes what the guest has, a queue's length of pieces at a go, until the output has no room.
    fn write(&mut self, host: &mut Host) {
        let memory = self.transmit.memory().clone();
        for _ in 0..self.transmit.size() {
            let chain = match self.current.take().or_else(|| self.transmit.pop()) {
                Some(chain) => chain,
                None if self.transmit.enable_notifications() => continue,
                None => return,
            };
            self.piece(host, &memory, chain);
            if self.current.is_some() && self.is_output_watched {
                return;
            }
        }
        self.transmit.ring();
    }

    fn piece(&mut self, host: &mut Host, memory: &GuestMemoryMmap, mut chain: Chain) {
        if let Some(output) = host.output.as_ref().filter(|_| !chain.readable.is_empty()) {
            if !host.has_room() {
                self.wait_for_output(output.as_fd());
                self.current = Some(chain);
                return;
            }
            let mut bytes = [0; PIECE];
            let mut piece: Buffers = chain.readable.clone();
            let count = piece.read(memory, &mut bytes);
            // Of an output that is gone, the guest is not told: its console is not what it lives for.
            let written = nix::unistd::write(output, &bytes[..count]).unwrap_or(count);
            if let Some(tap) = &mut host.tap {
                tap(&bytes[..written]);
            }
            chain.readable.skip(written as u64);
        } else {
            self.show(host, memory, &mut chain.readable);
        }
        if chain.readable.is_empty() {
            self.transmit.push(chain.head, 0);
        } else {
            self.current = Some(chain);
        }
    }

    /// Without an output: only the tap sees a piece.
    fn show(&self, host: &mut Host, memory: &GuestMemoryMmap, readable: &mut Buffers) {
        match &mut host.tap {
            Some(tap) => {
                let mut bytes = [0; PIECE];
                let count = readable.read(memory, &mut bytes);
                tap(&bytes[..count]);
            }
            None => *readable = Buffers::new(),
        }
    }

    fn wait_for_output(&mut self, output: BorrowedFd<'_>) {
        if self.is_output_watched {
            return;
        }
        let events = EventSet::OUT | EventSet::ONE_SHOT;
        let watched = self
            .registration
            .change(&output, OUTPUT, events)
            .or_else(|_| self.registration.watch(&output, OUTPUT, events));
        self.is_output_watched = watched.is_ok();
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = VirtQueue::take(&mut activation, 0)?;
        let transmit = VirtQueue::take(&mut activation, 1)?;
        let clone =
            |queue: &VirtQueue| queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"));
        let doorbells = [clone(&receive)?, clone(&transmit)?];
        let registration = self.events.register();
        let port = Port {
            host: self.host.clone(),
            registration: registration.clone(),
            receive,
            transmit,
            current: None,
            is_input_watched: false,
            is_output_watched: false,
        };
        self.events.install(&registration, Arc::new(Mutex::new(port)));
        let watched = registration
            .watch(&doorbells[0], RECEIVE, EventSet::IN)
            .and_then(|()| registration.watch(&doorbells[1], TRANSMIT, EventSet::IN));
        self.active = Some((registration, doorbells));
        watched.map_err(cannot("watch the console's queues"))
    }

    fn reset(&mut self) {
        if let Some((registration, doorbells)) = self.active.take() {
            self.events.remove(&registration);
            for doorbell in &doorbells {
                registration.forget(doorbell);
            }
            let host = super::lock(&self.host);
            for fd in [&host.input, &host.output].into_iter().flatten() {
                registration.forget(fd);
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reset();
    }
}
