//! What is listened for in the VM, on the host's own loopback.
//!
//! The relay in the VM tells what there is; this listens for the same on 127.0.0.1 or ::1, and takes each listener away again
//! with the one inside. A port that the host has already, or does not give to its users, is replaced by one that is free, and
//! said so. Elsewhere than on loopback only is listened what a person has published, for everybody then.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_protocol::{
    command::Command,
    network::{Endpoint, Listener, RelayEvent, Transport},
    read_frame,
};

use super::{
    flows::Flows,
    relay::{Goal, Relay, Wire},
};
use crate::{
    console::printable,
    door::Expected,
    error::Result,
    guest::{Guest, spawn},
};

/// Listeners of the host's at a time, at most.
const LISTENERS_MAX: usize = 512;
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
    published: Vec<Endpoint>,
    open: Mutex<BTreeMap<Want, Open>>,
    /// Wakes who accepts: there are other listeners, or it is over, when this is closed.
    wake: Mutex<Option<UnixStream>>,
}

/// What is to be listened for on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Want {
    /// On the host.
    outside: Endpoint,
    /// Where it goes to in the VM: in whose network, and where there.
    network: Option<u32>,
    to: SocketAddr,
    /// Whether somebody has asked for it to be there, for everybody.
    is_published: bool,
}

impl Want {
    fn goal(&self) -> Goal {
        let at = Endpoint { address: self.to, ..self.outside };
        Goal { network: self.network, at, is_for_all: self.is_published }
    }
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

struct Open {
    socket: Option<Arc<Socket>>,
    inside: Listener,
    trouble: Option<String>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<Want, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) fn start(guest: &Arc<Guest>, ignored: Vec<u16>, published: Vec<Endpoint>) -> Result<Self> {
        let failed = |source| crate::Error::System { what: "make a pair of sockets", source };
        let expected = Expected::new(&guest.board)?;
        let limit = guest.limit(10);
        guest.ask_nothing("relay the host's loopback", Command::Relay { token: expected.token() }, limit)?;
        let mut events = expected.wait("the relay's connection", limit)?;
        let relay =
            Arc::new(Relay::new(guest.board.clone(), Wire::new(events.try_clone().map_err(failed)?), limit));
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        for end in [&wake, &woken] {
            end.set_nonblocking(true).map_err(failed)?;
        }
        let flows = Arc::new(Flows::new(relay.clone()));
        let (open, wake) = (Mutex::default(), Mutex::new(Some(wake)));
        let shared = Arc::new(Shared { relay, flows, ignored, published, open, wake });
        let (accepting, hearing, board) = (shared.clone(), shared.clone(), guest.board.clone());
        let accepter = spawn("localhost", move || accept(&accepting, &woken))?;
        let listener = spawn("relay events", move || {
            while let Ok(event) = read_frame::<RelayEvent>(&mut events) {
                match event {
                    RelayEvent::Listening(listeners) => {
                        for trouble in hearing.take(listeners) {
                            board.warn(trouble);
                        }
                    }
                    RelayEvent::Refused(token) => hearing.relay.refuse(token),
                    RelayEvent::Warning(text) => board.warn(text),
                }
            }
            // The relay is gone: nothing is there that could be reached.
            hearing.take(Vec::new());
        })?;
        Ok(Self { shared, threads: vec![accepter, listener] })
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
        self.shared.relay.hang_up();
        drop(self.shared.wake.lock().unwrap_or_else(PoisonError::into_inner).take());
        for thread in self.threads.drain(..) {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Takes what is listened for inside now; what is new about it that a person should know.
    fn take(&self, listeners: Vec<Listener>) -> Vec<String> {
        let wanted = wanted(listeners, &self.ignored, &self.published);
        let mut open = self.open();
        // Closed before others are opened, which may be at the same port.
        open.retain(|want, open| {
            let stays = wanted.contains_key(want);
            if !stays
                && let Some(Socket::Datagrams(socket)) = open.socket.as_deref()
                && let Ok(address) = socket.local_addr()
            {
                self.flows.end(address);
            }
            stays
        });
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

/// What to listen for on the host: IPv4 on 127.0.0.1, IPv6 on ::1, and what is open to everybody by IPv6 on both, unless
/// IPv4 has one of its own. What is published at an address that includes one of those takes its place.
fn wanted(listeners: Vec<Listener>, ignored: &[u16], published: &[Endpoint]) -> BTreeMap<Want, Listener> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let mut wanted: BTreeMap<(Endpoint, Option<u32>), (Want, Listener)> = BTreeMap::new();
    let (four, six): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.at.address.is_ipv4());
    for listener in four.into_iter().chain(six) {
        let Endpoint { transport, address } = listener.at;
        let (ip, port) = (address.ip(), address.port());
        if ignored.contains(&port) || port == 0 || !(ip.is_loopback() || ip.is_unspecified()) {
            continue;
        }
        let own = if ip.is_ipv4() { v4 } else { v6 };
        let to = SocketAddr::new(own, port);
        let mut put = |outside: Endpoint, is_published: bool| {
            let network = listener.network;
            wanted
                .entry((outside, network))
                .or_insert_with(|| (Want { outside, network, to, is_published }, listener.clone()));
        };
        let here = |one: &&Endpoint| one.transport == transport && one.address.port() == port;
        for &one in published.iter().filter(here) {
            put(one, true);
        }
        // The wildcard of IPv6 takes IPv4's, too.
        let is_taken = |ip: IpAddr| {
            let mut wildcards = published.iter().filter(here).map(|one| one.address.ip());
            wildcards.any(|all| all == ip || all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4()))
        };
        let others = if ip.is_ipv6() && ip.is_unspecified() { vec![v6, v4] } else { vec![own] };
        for outside in others.into_iter().filter(|ip| !is_taken(*ip)) {
            put(Endpoint { transport, address: SocketAddr::new(outside, port) }, false);
        }
    }
    wanted.into_values().collect()
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
    loop {
        let sockets: Vec<(Want, Arc<Socket>)> =
            shared.open().iter().filter_map(|(want, open)| Some((*want, open.socket.clone()?))).collect();
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        // Who has as many connections as there can be takes no more: they wait in the kernel, which bounds them, too.
        let is_full = shared.relay.is_full();
        let (count, timeout) =
            if is_full { (1, PollTimeout::from(20_u16)) } else { (fds.len(), PollTimeout::NONE) };
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
                    Ok((stream, _)) => shared.relay.connect(stream, want.goal()),
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

    fn listener(address: &str) -> Listener {
        let at = Endpoint::tcp(address.parse().unwrap());
        Listener { at, network: None, distribution: Some(1), program: "p".into(), pid: Some(9) }
    }

    fn pairs(listeners: &[&str], ignored: &[u16]) -> Vec<(String, String)> {
        let listeners = listeners.iter().map(|address| listener(address)).collect();
        wanted(listeners, ignored, &[])
            .into_keys()
            .map(|want| (want.outside.to_string(), want.to.to_string()))
            .collect()
    }

    #[test]
    fn loopback_is_answered_by_loopback() {
        let expected = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(outside, to)| ((*outside).into(), (*to).into()))
                .collect::<Vec<(String, String)>>()
        };
        assert_eq!(
            pairs(&["0.0.0.0:80", "127.0.0.1:81"], &[]),
            expected(&[("127.0.0.1:80", "127.0.0.1:80"), ("127.0.0.1:81", "127.0.0.1:81")])
        );
        assert_eq!(
            pairs(&["[::]:80", "[::1]:81"], &[]),
            expected(&[("127.0.0.1:80", "[::1]:80"), ("[::1]:80", "[::1]:80"), ("[::1]:81", "[::1]:81")])
        );
        // Both: each has its own.
        assert_eq!(
            pairs(&["[::]:80", "0.0.0.0:80"], &[]),
            expected(&[("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80")])
        );
        assert_eq!(pairs(&["0.0.0.0:80", "10.0.0.2:81", "0.0.0.0:0"], &[80]), []);
    }

    #[test]
    fn what_is_published_is_there_and_in_the_place_of_what_it_includes() {
        let published = ["0.0.0.0:80", "[::]:81", "192.0.2.1:82", "192.0.2.1:83"];
        let published = published.map(|address| Endpoint::tcp(address.parse().unwrap()));
        let outside = |listeners: &[&str]| -> Vec<(String, bool)> {
            let listeners = listeners.iter().map(|address| listener(address)).collect();
            let wanted = wanted(listeners, &[], &published);
            wanted.into_keys().map(|want| (want.outside.to_string(), want.is_published)).collect()
        };
        let own = |text: &str, is_published| (text.to_owned(), is_published);
        assert_eq!(outside(&["127.0.0.1:80"]), [own("0.0.0.0:80", true)]);
        assert_eq!(outside(&["[::]:81"]), [own("[::]:81", true)]);
        assert_eq!(outside(&["127.0.0.1:82"]), [own("127.0.0.1:82", false), own("192.0.2.1:82", true)]);
        assert_eq!(outside(&["127.0.0.1:84"]), [own("127.0.0.1:84", false)]);
        // By UDP that is another port.
        let mut datagrams = listener("127.0.0.1:80");
        datagrams.at.transport = Transport::Udp;
        let wanted: Vec<_> = wanted(vec![datagrams], &[], &published).into_keys().collect();
        assert_eq!(wanted[0].outside.to_string(), "127.0.0.1:80/udp");
        // An address that is not this host's: there or nowhere.
        let nowhere =
            Want { outside: published[3], network: None, to: published[3].address, is_published: true };
        assert!(
            matches!(listen(&nowhere, "somebody"), (None, Some(why)) if why.contains("not published at 192.0.2.1:83"))
        );
    }

    #[test]
    fn networks_of_their_own_have_the_same_ports() {
        let own = |network| Listener { network, ..listener("0.0.0.0:80") };
        let wanted: Vec<Want> =
            wanted(vec![own(None), own(Some(7)), own(Some(3))], &[], &[]).into_keys().collect();
        let networks: Vec<Option<u32>> = wanted.iter().map(|want| want.network).collect();
        assert_eq!(networks, [None, Some(3), Some(7)]);
        assert!(wanted.iter().all(|want| want.outside.to_string() == "127.0.0.1:80"));
        assert_eq!(wanted[1].goal().network, Some(3));
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
        drop(taken);
        assert!(matches!(listen(&want, "somebody"), (Some(_), None)));
    }
}
