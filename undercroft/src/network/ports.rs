//! What is listened for in the VM, on the host's own loopback.
//!
//! The relay in the VM tells what there is; this listens for the same on 127.0.0.1 or ::1, and takes each listener away again
//! with the one inside. A port that the host has already, or does not give to its users, is replaced by one that is free, and
//! said so. Elsewhere than on loopback only is listened what a person has published, for everybody then.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_protocol::{
    command::Command,
    network::{Endpoint, Listener, RelayEvent, Transport},
    read_frame,
};

use super::{
    flows::Flows,
    helper::Helper,
    relay::{Carrier, Goal, Relay},
    wanted::{Published, Want, Whose, wanted},
};
use crate::{
    console::printable,
    error::Result,
    guest::{Guest, spawn},
};

/// Listeners of the host's at a time, at most.
const LISTENERS_MAX: usize = 512;
/// How long is waited until sockets that are not wanted any more are closed. Nobody holds them for longer than a moment; but a
/// moment of a busy host's may be long, and a port that is then still taken is replaced by another one for good.
const CLOSING: Duration = Duration::from_secs(5);
/// Characters of a program's name; Linux has 15.
const NAME_MAX: usize = 32;

/// A port of the VM's that is reached on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Where it is listened for in the VM.
    pub inside: Endpoint,
    /// The number of the distribution that it belongs to ([`Distribution::id`](crate::Distribution::id)), if it does.
    pub distribution: Option<u32>,
    /// The program's name, as far as it is known.
    pub program: String,
    /// Where it is reached on the host; nowhere if there is no way.
    pub outside: Option<SocketAddr>,
    /// Why it is not the same port, or none.
    pub trouble: Option<String>,
}

/// The ports of a running machine. Nothing is listened for any more once this is dropped.
pub(crate) struct Ports {
    shared: Arc<Shared>,
    /// The relay in the VM.
    helper: Arc<Helper>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").field("now", &self.list()).finish_non_exhaustive()
    }
}

struct Shared {
    relay: Arc<Relay>,
    flows: Arc<Flows>,
    ignored: Vec<u16>,
    published: Mutex<Vec<(u64, Published)>>,
    next: AtomicU64,
    /// What was told last.
    told: Mutex<Vec<Listener>>,
    open: Mutex<BTreeMap<Want, Open>>,
    /// Wakes who accepts: there are other listeners, or it is over, when this is closed.
    wake: Mutex<Option<UnixStream>>,
}

/// What is listened with.
enum Socket {
    Stream(TcpListener),
    Datagrams(Arc<UdpSocket>),
}

impl Socket {
    fn open(at: Endpoint) -> io::Result<Self> {
        match at.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(at.address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Stream(listener))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(at.address)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Datagrams(Arc::new(socket)))
            }
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Stream(listener) => listener.local_addr(),
            Self::Datagrams(socket) => socket.local_addr(),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(listener) => listener.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
        }
    }
}

/// A socket that is to be closed, and is when nobody holds it any more.
enum Closing {
    Any(Weak<Socket>),
    /// With its address: a flow may begin at it until who accepts has let go of it, too.
    Datagrams(Weak<UdpSocket>, SocketAddr),
}

impl Closing {
    fn is_held(&self, flows: &Flows) -> bool {
        0 < match self {
            Self::Any(socket) => socket.strong_count(),
            Self::Datagrams(socket, address) => {
                flows.end(*address);
                socket.strong_count()
            }
        }
    }
}

struct Open {
    socket: Option<Arc<Socket>>,
    inside: Listener,
    trouble: Option<String>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<Want, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> MutexGuard<'_, Vec<(u64, Published)>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, published: Published) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.published().push((number, published));
        number
    }

    fn wake(&self) {
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            // One that is not read has woken already.
            let _ = io::Write::write(&mut &*wake, &[0]);
        }
    }
}

impl Ports {
    /// Has the guest start its relay, and listens for what it tells.
    pub(super) fn start(
        guest: &Arc<Guest>,
        carrier: Carrier,
        ignored: Vec<u16>,
        published: Vec<Endpoint>,
    ) -> Result<Self> {
        let failed = |source| crate::Error::System { what: "make a pair of sockets", source };
        const WHAT: &str = "the relay of the host's loopback";
        let (helper, mut events) = Helper::start(guest, WHAT, |token| Command::Relay { token })?;
        let relay = Arc::new(Relay::new(guest.board.clone(), carrier, guest.limit(10)));
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        for end in [&wake, &woken] {
            end.set_nonblocking(true).map_err(failed)?;
        }
        let flows = Arc::new(Flows::new(relay.clone()));
        let (open, wake) = (Mutex::default(), Mutex::new(Some(wake)));
        let shared = Arc::new(Shared {
            relay,
            flows,
            ignored,
            published: Mutex::default(),
            next: AtomicU64::new(0),
            told: Mutex::default(),
            open,
            wake,
        });
        for at in published {
            shared.publish(Published { at, whose: Whose::Anybodys });
        }
        let (accepting, hearing, board) = (shared.clone(), shared.clone(), guest.board.clone());
        let accepter = spawn("localhost", move || accept(&accepting, &woken))?;
        let heard = helper.clone();
        let listener = spawn("relay events", move || {
            loop {
                while let Ok(event) = read_frame::<RelayEvent>(&mut events) {
                    match event {
                        RelayEvent::Listening(listeners) => {
                            for trouble in hearing.take(listeners) {
                                board.warn(trouble);
                            }
                        }
                        RelayEvent::Warning(text) => board.warn(text),
                    }
                }
                // The relay is gone: nothing is there that could be reached.
                hearing.take(Vec::new());
                match heard.again() {
                    Some(another) => events = another,
                    None => return,
                }
            }
        })?;
        Ok(Self { shared, helper, threads: vec![accepter, listener] })
    }

    /// Has everybody reach a port of this distribution's there, where that can be at all, as long as what this gives.
    pub(crate) fn publish(&self, at: Endpoint, distribution: u32) -> Result<Publication> {
        use ErrorKind::{AddrNotAvailable, PermissionDenied};
        match Socket::open(at) {
            Err(source) if matches!(source.kind(), AddrNotAvailable | PermissionDenied) => {
                return Err(crate::Error::NotPublished { at, source });
            }
            // That it is taken may be by what it takes the place of.
            _ => {}
        }
        let number = self.shared.publish(Published { at, whose: Whose::Distributions(distribution) });
        let publication = Publication { shared: self.shared.clone(), number };
        for trouble in self.shared.refresh() {
            publication.shared.relay.warn(trouble);
        }
        Ok(publication)
    }

    /// What is listened for now.
    pub(crate) fn list(&self) -> Vec<Port> {
        let describe = |open: &Open| Port {
            inside: open.inside.at,
            distribution: open.inside.distribution,
            program: open.inside.program.clone(),
            outside: open.socket.as_ref().and_then(|socket| socket.address().ok()),
            trouble: open.trouble.clone(),
        };
        self.shared.open().values().map(describe).collect()
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.helper.end();
        drop(self.shared.wake.lock().unwrap_or_else(PoisonError::into_inner).take());
        for thread in self.threads.drain(..) {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Something that everybody reaches, as long as this is there.
#[must_use]
pub struct Publication {
    shared: Arc<Shared>,
    number: u64,
}

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.shared.published().retain(|(number, _)| *number != self.number);
        let _ = self.shared.refresh();
    }
}

impl Shared {
    /// Takes what is listened for inside now; what is new about it that a person should know.
    fn take(&self, listeners: Vec<Listener>) -> Vec<String> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = listeners;
        self.refresh()
    }

    /// Listens for what is to be listened for.
    fn refresh(&self) -> Vec<String> {
        let mut open = self.open();
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let published: Vec<Published> = self.published().iter().map(|(_, one)| *one).collect();
        let wanted = wanted(told, &self.ignored, &published);
        let mut closing = Vec::new();
        open.retain(|want, open| {
            let stays = wanted.contains_key(want);
            if !stays && let Some(socket) = &open.socket {
                if let (Socket::Datagrams(socket), Ok(address)) = (&**socket, socket.address()) {
                    closing.push(Closing::Datagrams(Arc::downgrade(socket), address));
                }
                closing.push(Closing::Any(Arc::downgrade(socket)));
            }
            stays
        });
        // Closed before others are opened, which may be at the same port: who accepts, and the flows, hold them still.
        if !closing.is_empty() {
            self.wake();
            let end = Instant::now() + CLOSING;
            while closing.iter().any(|one| one.is_held(&self.flows)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let mut news = Vec::new();
        for (want, mut inside) in wanted {
            // The guest's words, which people see.
            inside.program = printable(&inside.program).chars().take(NAME_MAX).collect();
            if let Some(known) = open.get_mut(&want) {
                known.inside = inside;
                continue;
            }
            if open.len() >= LISTENERS_MAX {
                break;
            }
            let is_ours = |known: &Want| known.outside == want.outside;
            let who = if open.keys().any(is_ours) { "another distribution" } else { "something on the host" };
            let (socket, trouble) = listen(&want, who);
            news.extend(trouble.as_ref().map(|trouble| {
                let program = if inside.program.is_empty() { "a program" } else { &inside.program };
                format!("{program} listens on {} in the VM: {trouble}", inside.at)
            }));
            let socket = socket.map(Arc::new);
            open.insert(want, Open { socket, inside, trouble });
        }
        drop(open);
        self.wake();
        news
    }
}

/// Listens there, or on a port that is free, and says why then. What is published is there or nowhere.
/// `who` has the port already, if somebody has.
fn listen(want: &Want, who: &str) -> (Option<Socket>, Option<String>) {
    let at = want.outside;
    let error: io::Error = match Socket::open(at) {
        Ok(socket) => return (Some(socket), None),
        Err(error) => error,
    };
    let why = match error.kind() {
        ErrorKind::AddrInUse => format!("{who} has that port already"),
        ErrorKind::PermissionDenied => "the host keeps that port for its administrator".to_owned(),
        _ => error.to_string(),
    };
    if want.is_published {
        return (None, Some(format!("it is not published at {at}: {why}")));
    }
    match Socket::open(Endpoint { address: SocketAddr::new(at.address.ip(), 0), ..at }) {
        Ok(socket) => {
            let address = socket.address().map_or_else(|_| at.to_string(), |address| address.to_string());
            (Some(socket), Some(format!("{why}, so it is reached at {address}")))
        }
        Err(_) => (None, Some(format!("it is not reached from the host ({}): {why}", at.address.ip()))),
    }
}

fn accept(shared: &Shared, woken: &UnixStream) {
    // What has come when there were as many connections as there can be.
    let mut held: Option<(TcpStream, Goal)> = None;
    loop {
        if let Some((stream, to)) = held.take() {
            held = shared.relay.connect(stream, to).map(|stream| (stream, to));
        }
        let sockets: Vec<(Want, Arc<Socket>)> =
            shared.open().iter().filter_map(|(want, open)| Some((*want, open.socket.clone()?))).collect();
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        // As long as one waits no more are taken: they wait in the kernel, which bounds them, too.
        let (count, timeout) = match held {
            Some(_) => (1, PollTimeout::from(20_u16)),
            None => (fds.len(), PollTimeout::NONE),
        };
        match poll(&mut fds[..count], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        if fds[0].any() == Some(true) {
            match io::Read::read(&mut &*woken, &mut [0; 64]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        for ((want, socket), fd) in sockets.iter().zip(&fds[1..count.max(1)]) {
            if fd.any() != Some(true) {
                continue;
            }
            match &**socket {
                Socket::Datagrams(socket) => shared.flows.take(socket, want.goal()),
                Socket::Stream(listener) => match listener.accept() {
                    Ok((stream, _)) => {
                        let to = want.goal();
                        held = shared.relay.connect(stream, to).map(|stream| (stream, to));
                        if held.is_some() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // Out of descriptors or memory: a little later there may be some.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;

    #[test]
    fn what_is_published_is_there_or_nowhere() {
        let at = Endpoint::tcp("192.0.2.1:83".parse().unwrap());
        let nowhere = Want { outside: at, network: None, to: at.address, is_published: true };
        assert!(matches!(
            listen(&nowhere, "somebody"),
            (None, Some(why)) if why.contains("not published at 192.0.2.1:83")
        ));
    }

    #[test]
    fn a_port_that_is_taken_is_replaced() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let want = Want { outside: Endpoint::tcp(at), network: None, to: at, is_published: false };
        let (other, trouble) = listen(&want, "somebody");
        let (other, trouble) = (other.unwrap().address().unwrap(), trouble.unwrap());
        assert!(other.ip().is_loopback() && other.port() != at.port());
        assert!(
            trouble.contains("has that port already") && trouble.contains(&other.to_string()),
            "{trouble}"
        );
    }

    /// What a test does at a port that was free a moment ago, and that another process may have taken since: a few times, each at
    /// another port, until it comes out well.
    fn at_a_free_port(attempt: impl Fn(SocketAddr) -> bool) {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!((0..10).any(|_| attempt(free())));
    }

    #[test]
    fn a_port_that_is_free_is_taken() {
        at_a_free_port(|at| {
            let want = Want { outside: Endpoint::tcp(at), network: None, to: at, is_published: false };
            matches!(listen(&want, "somebody"), (Some(_), None))
        });
    }

    /// Who accepts holds the old one until the machine gives him a turn.
    #[test]
    fn a_port_is_taken_again_however_slow_its_closing_is() {
        at_a_free_port(|at| {
            let (carrier, _vmm) = Carrier::pair().unwrap();
            let relay = Arc::new(Relay::new(Arc::new(Board::new(None)), carrier, Duration::ZERO));
            let shared = Shared {
                flows: Arc::new(Flows::new(relay.clone())),
                relay,
                ignored: Vec::new(),
                published: Mutex::default(),
                next: AtomicU64::new(0),
                told: Mutex::default(),
                open: Mutex::default(),
                wake: Mutex::default(),
            };
            let at = Endpoint::tcp(at);
            let of = |network| {
                vec![Listener { at, network, distribution: network, program: String::new(), pid: None }]
            };
            if !shared.take(of(Some(1))).is_empty() {
                return false;
            }
            let held = shared.open().values().next().and_then(|open| open.socket.clone());
            let holder = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(1));
                drop(held);
            });
            // Another one's port of the same number: the host's is the same.
            let news = shared.take(of(Some(2)));
            holder.join().unwrap();
            news.is_empty()
        });
    }
}
