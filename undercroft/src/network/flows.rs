//! Datagrams from the host's loopback into the VM. UDP knows no connections: what one program says to one socket, and what
//! it is answered, is a *flow*, which is a thread, a queue and a stream of the VM's ([`Datagrams`]) until nothing was said for
//! a while. What has no room anywhere is dropped.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};
use undercroft_protocol::{datagrams::Datagrams, network::Transport};

use super::{
    peer,
    relay::{Goal, Relay},
};

/// Flows at a time; the one that was longest silent makes room for another.
const FLOWS_MAX: usize = 128;
/// Threads at a time: those of the flows, and of flows that are ending.
const THREADS_MAX: usize = 2 * FLOWS_MAX;
/// How long nothing is said until a flow is over. RFC 4787 (4.3) wants two minutes at least of who translates addresses.
const IDLE: Duration = Duration::from_secs(120);
/// A flow's thread has no more than this.
const STACK: usize = 128 << 10;
/// Datagrams of one socket after which others have a turn.
const TURN: usize = 64;
/// The longest datagram, and in a queue one byte more: an empty message is a queue's end.
const LONGEST: usize = u16::MAX as usize;

/// A socket that is listened with, and who speaks to it.
type Pair = (SocketAddr, SocketAddr);

/// The flows of a machine.
pub(super) struct Flows {
    relay: Arc<Relay>,
    idle: Duration,
    all: Mutex<HashMap<Pair, Flow>>,
    next: AtomicU64,
    threads: AtomicUsize,
}

struct Flow {
    /// What its thread reads from. Closed, it ends.
    queue: OwnedFd,
    number: u64,
    said: Instant,
}

impl Flows {
    pub(super) fn new(relay: Arc<Relay>) -> Self {
        Self {
            relay,
            idle: IDLE,
            all: Mutex::default(),
            next: AtomicU64::new(0),
            threads: AtomicUsize::new(0),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Pair, Flow>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has come to a socket that stands for `to` in the VM.
    pub(super) fn take(self: &Arc<Self>, socket: &Arc<UdpSocket>, to: Goal) {
        let Ok(local) = socket.local_addr() else { return };
        let mut bytes = vec![0; 1 + LONGEST];
        for _ in 0..TURN {
            let (length, from) = match socket.recv_from(&mut bytes[1..]) {
                Ok(come) => come,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // A program that was answered is not there any more.
                Err(_) => continue,
            };
            let message = &bytes[..1 + length];
            if !self.pass((local, from), message)
                && (to.is_for_all || peer::is_welcome(Transport::Udp, from, local))
            {
                self.begin(socket, (local, from), to);
                self.pass((local, from), message);
            }
        }
    }

    /// Gives it to its flow; false if there is none.
    fn pass(&self, pair: Pair, message: &[u8]) -> bool {
        let mut all = self.all();
        let Some(flow) = all.get_mut(&pair) else { return false };
        flow.said = Instant::now();
        match send(flow.queue.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            // Full: it is lost.
            Ok(_) | Err(Errno::EAGAIN) => true,
            // Its thread has just ended.
            Err(_) => {
                all.remove(&pair);
                false
            }
        }
    }

    fn begin(self: &Arc<Self>, socket: &Arc<UdpSocket>, pair: Pair, to: Goal) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let Ok((queue, end)) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags) else {
            return;
        };
        if self.threads.load(Ordering::Acquire) >= THREADS_MAX {
            return;
        }
        let mut all = self.all();
        if all.len() >= FLOWS_MAX {
            let silent = all.iter().min_by_key(|(_, flow)| flow.said).map(|(pair, _)| *pair);
            silent.and_then(|pair| all.remove(&pair));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (flows, socket) = (self.clone(), socket.clone());
        self.threads.fetch_add(1, Ordering::AcqRel);
        let started = thread::Builder::new().name("datagrams".into()).stack_size(STACK).spawn(move || {
            // Whatever went wrong: the next datagram begins another.
            let _ = flows.run(&socket, pair.1, to, &end);
            drop(socket);
            flows.threads.fetch_sub(1, Ordering::AcqRel);
            let mut all = flows.all();
            if all.get(&pair).is_some_and(|flow| flow.number == number) {
                all.remove(&pair);
            }
        });
        if started.is_err() {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        all.insert(pair, Flow { queue, number, said: Instant::now() });
    }

    fn run(&self, socket: &UdpSocket, peer: SocketAddr, to: Goal, queue: &OwnedFd) -> io::Result<()> {
        let stream = self.relay.reach(to)?;
        stream.set_nonblocking(true)?;
        carry(socket, peer, queue, &stream, self.idle)
    }

    /// Ends those of a socket, which can be closed then.
    pub(super) fn end(&self, local: SocketAddr) {
        self.all().retain(|pair, _| pair.0 != local);
    }
}

/// Carries datagrams both ways until the queue or the stream ends, or nothing is said for so long.
fn carry(
    socket: &UdpSocket,
    peer: SocketAddr,
    queue: &OwnedFd,
    stream: &UnixStream,
    idle: Duration,
) -> io::Result<()> {
    let mut datagrams = Datagrams::default();
    let mut bytes = vec![0; 1 + LONGEST];
    let idle = PollTimeout::try_from(idle).unwrap_or(PollTimeout::MAX);
    let mut again = false;
    loop {
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, datagrams.wants_to_write());
        let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN), PollFd::new(stream.as_fd(), interest)];
        match poll(&mut fds, if again { PollTimeout::ZERO } else { idle }) {
            Ok(0) if !again => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for _ in 0..TURN {
            match recv(queue.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Ok(()),
                Ok(length) => drop(datagrams.send(stream, &bytes[1..length])?),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => return Err(error.into()),
            }
        }
        datagrams.flush(stream)?;
        again = datagrams.receive(stream, |datagram| {
            // Who is not there any more, or has no room, does not get it.
            let _ = socket.send_to(datagram, peer);
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program, and the two ends of a flow that carries what it says.
    struct Carried {
        program: UdpSocket,
        queue: OwnedFd,
        inside: UnixStream,
        thread: thread::JoinHandle<io::Result<()>>,
    }

    fn carried(idle: Duration) -> Carried {
        let program = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        program.connect(socket.local_addr().unwrap()).unwrap();
        let (stream, inside) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        inside.set_nonblocking(true).unwrap();
        let (queue, end) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let peer = program.local_addr().unwrap();
        let thread = thread::spawn(move || carry(&socket, peer, &end, &stream, idle));
        Carried { program, queue, inside, thread }
    }

    #[test]
    fn datagrams_keep_their_bounds_and_end_with_their_queue() {
        let one = carried(IDLE);
        let mut datagrams = Datagrams::default();
        let mut come = Vec::new();
        for length in [0, 5, 60_000] {
            send(one.queue.as_raw_fd(), &vec![7; 1 + length], MsgFlags::empty()).unwrap();
            let count = come.len();
            while come.len() == count {
                datagrams.receive(&one.inside, |datagram| come.push(datagram.len())).unwrap();
            }
            assert!(datagrams.send(&one.inside, &vec![8; length]).unwrap());
            while datagrams.wants_to_write() {
                datagrams.flush(&one.inside).unwrap();
            }
            let mut bytes = vec![0; LONGEST];
            assert_eq!(one.program.recv(&mut bytes).unwrap(), length);
        }
        assert_eq!(come, [0, 5, 60_000]);
        drop(one.queue);
        one.thread.join().unwrap().unwrap();
    }

    #[test]
    fn silence_ends_a_flow_and_so_does_the_vm() {
        let silent = carried(Duration::from_millis(20));
        silent.thread.join().unwrap().unwrap();
        let gone = carried(IDLE);
        drop(gone.inside);
        assert!(gone.thread.join().unwrap().is_err());
    }
}
