//! Connections from the host's loopback into the VM: a thread for each, two sockets, and what is on its way between them. A thread
//! that has done with one waits a while for another.

use std::{
    collections::{HashSet, VecDeque},
    io,
    net::{Shutdown, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_protocol::{
    Token,
    network::{Endpoint, RelayRequest, Transport},
    splice::{Scratch, Splice},
    write_frame,
};

use super::peer;
use crate::{board::Board, door::Expected};

/// Connections at a time. The relay in the VM has the same limit.
const CONNECTIONS_MAX: usize = 1024;
/// A connection's thread has no more than this.
const STACK: usize = 128 << 10;
/// How long a thread waits for another connection, and how many do, because short ones often come one after the other.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_MAX: usize = 8;

/// What is said to the relay in the VM.
#[derive(Debug)]
pub(super) struct Wire(Mutex<UnixStream>);

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    fn say(&self, request: &RelayRequest) -> bool {
        write_frame(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), request).is_ok()
    }

    fn hang_up(&self) {
        // It may be gone already.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
    }
}

/// Where something goes to in the VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    /// The distribution in whose own network that is; the VM's otherwise.
    pub(super) network: Option<u32>,
    /// Where there.
    pub(super) at: Endpoint,
    /// Whether everybody may go there, and not only the user whose VM it is.
    pub(super) is_for_all: bool,
}

/// The connections of a machine.
#[derive(Debug)]
pub(super) struct Relay {
    board: Arc<Board>,
    wire: Wire,
    patience: Duration,
    count: AtomicUsize,
    /// Those that wait for the guest to come back, and those of them that it will not.
    refused: Mutex<HashSet<Token>>,
    waiting: Mutex<Waiting>,
    come: Condvar,
}

/// Connections that have come, and the threads that wait for them; never more of the first than of the second.
#[derive(Debug, Default)]
struct Waiting {
    connections: VecDeque<(TcpStream, Goal)>,
    threads: usize,
    has_ended: bool,
}

impl Relay {
    /// `patience` is how long the guest may take to come back.
    pub(super) fn new(board: Arc<Board>, wire: Wire, patience: Duration) -> Self {
        Self {
            board,
            wire,
            patience,
            count: AtomicUsize::new(0),
            refused: Mutex::default(),
            waiting: Mutex::default(),
            come: Condvar::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.count.load(Ordering::Acquire) >= CONNECTIONS_MAX
    }

    pub(super) fn hang_up(&self) {
        self.wire.hang_up();
        self.waiting().has_ended = true;
        self.come.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells people.
    pub(super) fn warn(&self, text: String) {
        self.board.warn(text);
    }

    /// Nobody takes the connection of this token.
    pub(super) fn refuse(&self, token: Token) {
        // Only one that is waited for is noted, so that there are never more than connections.
        self.board.update(|state| {
            if state.tokens.contains_key(&token) {
                self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(token);
            }
        });
    }

    /// Takes a connection that has come in, and connects it with its goal in the VM.
    pub(super) fn connect(self: &Arc<Self>, outside: TcpStream, to: Goal) {
        self.count.fetch_add(1, Ordering::AcqRel);
        let mut waiting = self.waiting();
        if waiting.threads > waiting.connections.len() {
            waiting.connections.push_back((outside, to));
            drop(waiting);
            self.come.notify_one();
            return;
        }
        drop(waiting);
        let relay = self.clone();
        let work = move || {
            let mut scratch = Scratch::default();
            let mut next = Some((outside, to));
            while let Some((outside, to)) = next {
                // Whatever went wrong, both sides see their connection end.
                let _ = relay.run(&outside, to, &mut scratch);
                drop(outside);
                relay.count.fetch_sub(1, Ordering::AcqRel);
                next = relay.next();
            }
        };
        if thread::Builder::new().name("localhost".into()).stack_size(STACK).spawn(work).is_err() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The next connection for a thread that has done with one; nothing if there is none for a while.
    fn next(&self) -> Option<(TcpStream, Goal)> {
        let mut waiting = self.waiting();
        if waiting.threads >= IDLE_MAX {
            return None;
        }
        waiting.threads += 1;
        let is_idle = |waiting: &mut Waiting| waiting.connections.is_empty() && !waiting.has_ended;
        let waited = self.come.wait_timeout_while(waiting, IDLE, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.threads -= 1;
        waiting.connections.pop_front()
    }

    fn run(&self, outside: &TcpStream, to: Goal, scratch: &mut Scratch) -> io::Result<()> {
        if !to.is_for_all && !peer::is_welcome(Transport::Tcp, outside.peer_addr()?, outside.local_addr()?) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let inside = self.reach(to)?;
        outside.set_nonblocking(true)?;
        inside.set_nonblocking(true)?;
        let _ = outside.set_nodelay(true);
        pass(outside, &inside, scratch)
    }

    /// A stream that the relay in the VM passes on to there.
    pub(super) fn reach(&self, to: Goal) -> io::Result<UnixStream> {
        let expected = Expected::new(&self.board).map_err(io::Error::other)?;
        let token = expected.token();
        if !self.wire.say(&RelayRequest::Connect { token, network: to.network, to: to.at }) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let inside = self.board.wait("the relay's answer", Some(self.patience), |state| {
            if let Some(stream) = expected.take(state) {
                return Some(Ok(Some(stream)));
            }
            let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
            refused.then_some(Ok(None))
        });
        inside.ok().flatten().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// Passes bytes both ways until both have ended.
fn pass(outside: &TcpStream, inside: &UnixStream, scratch: &mut Scratch) -> io::Result<()> {
    let (mut inwards, mut outwards) = (Splice::default(), Splice::default());
    let (mut is_closed_inwards, mut is_closed_outwards) = (false, false);
    let (mut is_gone_outside, mut is_gone_inside) = (false, false);
    loop {
        let again =
            inwards.advance(outside, inside, scratch)? | outwards.advance(inside, outside, scratch)?;
        if inwards.is_done() && !is_closed_inwards {
            is_closed_inwards = true;
            inside.shutdown(Shutdown::Write)?;
        }
        if outwards.is_done() && !is_closed_outwards {
            is_closed_outwards = true;
            outside.shutdown(Shutdown::Write)?;
        }
        if is_closed_inwards && is_closed_outwards {
            return Ok(());
        }
        if again {
            continue;
        }
        let interest = |reads: &Splice, writes: &Splice| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, reads.wants_to_read());
            flags.set(PollFlags::POLLOUT, writes.wants_to_write());
            flags
        };
        // A side that is gone says so again and again: it is asked only for what there may be to read.
        let mut fds = Vec::with_capacity(2);
        if !is_gone_outside || inwards.wants_to_read() {
            fds.push((true, PollFd::new(outside.as_fd(), interest(&inwards, &outwards))));
        }
        if !is_gone_inside || outwards.wants_to_read() {
            fds.push((false, PollFd::new(inside.as_fd(), interest(&outwards, &inwards))));
        }
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd)| fd.clone()).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for ((is_outside, _), fd) in fds.iter().zip(&polled) {
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
            let is_gone = fd.revents().is_some_and(|events| events.intersects(gone));
            *(if *is_outside { &mut is_gone_outside } else { &mut is_gone_inside }) |= is_gone;
        }
        // All that one side had was passed on, and it takes nothing more.
        if is_gone_outside && is_closed_inwards || is_gone_inside && is_closed_outwards {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    /// A connection with a program at its other end, passed on to a stream with another.
    fn passed() -> (TcpStream, UnixStream, thread::JoinHandle<io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let outside = listener.accept().unwrap().0;
        let (inside, server) = UnixStream::pair().unwrap();
        outside.set_nonblocking(true).unwrap();
        inside.set_nonblocking(true).unwrap();
        (client, server, thread::spawn(move || pass(&outside, &inside, &mut Scratch::default())))
    }

    #[test]
    fn each_direction_ends_by_itself() {
        let (mut client, mut server, thread) = passed();
        let question: Vec<u8> = (0..300_000_u32).map(|n| (n / 11) as u8).collect();
        let sent = question.clone();
        let mut writer = client.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut read = Vec::new();
        server.read_to_end(&mut read).unwrap();
        assert!(read == question);
        writing.join().unwrap();
        server.write_all(b"answer").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_goes_away_takes_the_connection_along() {
        let (client, mut server, thread) = passed();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop(server);
        let _ = thread.join().unwrap();
    }
}
