//! What is listened for in the VM, on the host's own loopback.
//!
//! The relay in the VM tells what there is; this listens for the same on 127.0.0.1 or ::1 and nowhere else, and takes each
//! listener away again with the one inside. A port that the host has already, or does not give to its users, is replaced by
//! one that is free, and said so.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_protocol::{
    command::Command,
    network::{Listener, RelayEvent},
    read_frame,
};

use super::relay::{Relay, Wire};
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
    pub inside: SocketAddr,
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
    ignored: Vec<u16>,
    open: Mutex<BTreeMap<Want, Open>>,
    /// Wakes who accepts: there are other listeners, or it is over, when this is closed.
    wake: Mutex<Option<UnixStream>>,
}

/// What is to be listened for on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Want {
    /// On the host.
    outside: SocketAddr,
    /// Where it goes to in the VM.
    to: SocketAddr,
}

struct Open {
    listener: Option<Arc<TcpListener>>,
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
    pub(super) fn start(guest: &Arc<Guest>, ignored: Vec<u16>) -> Result<Self> {
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
        let shared =
            Arc::new(Shared { relay, ignored, open: Mutex::default(), wake: Mutex::new(Some(wake)) });
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
            inside: open.inside.address,
            distribution: open.inside.distribution,
            program: open.inside.program.clone(),
            outside: open.listener.as_ref().and_then(|listener| listener.local_addr().ok()),
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
        let wanted = wanted(listeners, &self.ignored);
        let mut open = self.open();
        // Closed before others are opened, which may be at the same port.
        open.retain(|want, _| wanted.contains_key(want));
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
            let (listener, trouble) = listen(want.outside);
            news.extend(trouble.as_ref().map(|trouble| {
                let program = if inside.program.is_empty() { "a program" } else { &inside.program };
                format!("{program} listens on {} in the VM: {trouble}", inside.address)
            }));
            let listener = listener.map(Arc::new);
            open.insert(want, Open { listener, inside, trouble });
        }
        drop(open);
        self.wake();
        news
    }
}

/// What to listen for on the host: IPv4 on 127.0.0.1, IPv6 on ::1, and what is open to everybody by IPv6 on both, unless
/// IPv4 has one of its own.
fn wanted(listeners: Vec<Listener>, ignored: &[u16]) -> BTreeMap<Want, Listener> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let mut wanted: BTreeMap<SocketAddr, (SocketAddr, Listener)> = BTreeMap::new();
    let (four, six): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.address.is_ipv4());
    for listener in four.into_iter().chain(six) {
        let (ip, port) = (listener.address.ip(), listener.address.port());
        if ignored.contains(&port) || port == 0 || !(ip.is_loopback() || ip.is_unspecified()) {
            continue;
        }
        let own = if ip.is_ipv4() { v4 } else { v6 };
        let others = if ip.is_ipv6() && ip.is_unspecified() { vec![v6, v4] } else { vec![own] };
        for outside in others {
            wanted
                .entry(SocketAddr::new(outside, port))
                .or_insert_with(|| (SocketAddr::new(own, port), listener.clone()));
        }
    }
    wanted.into_iter().map(|(outside, (to, listener))| (Want { outside, to }, listener)).collect()
}

/// Listens there, or on a port that is free, and says why then.
fn listen(at: SocketAddr) -> (Option<TcpListener>, Option<String>) {
    let open = |at: SocketAddr| {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let error: io::Error = match open(at) {
        Ok(listener) => return (Some(listener), None),
        Err(error) => error,
    };
    let why = match error.kind() {
        ErrorKind::AddrInUse => "something on the host has that port already".to_owned(),
        ErrorKind::PermissionDenied => "the host keeps that port for its administrator".to_owned(),
        _ => error.to_string(),
    };
    match open(SocketAddr::new(at.ip(), 0)) {
        Ok(listener) => {
            let address =
                listener.local_addr().map_or_else(|_| at.to_string(), |address| address.to_string());
            (Some(listener), Some(format!("{why}, so it is reached at {address}")))
        }
        Err(_) => (None, Some(format!("it is not reached from the host ({}): {why}", at.ip()))),
    }
}

/// Takes connections until `woken` is closed at its other side.
fn accept(shared: &Shared, woken: &UnixStream) {
    loop {
        let listeners: Vec<(SocketAddr, Arc<TcpListener>)> =
            shared.open().iter().filter_map(|(want, open)| Some((want.to, open.listener.clone()?))).collect();
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(listeners.iter().map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
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
        for ((to, listener), fd) in listeners.iter().zip(&fds[1..count.max(1)]) {
            if fd.any() == Some(true) {
                match listener.accept() {
                    Ok((stream, _)) => shared.relay.connect(stream, *to),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // Out of descriptors or memory: a little later there may be some.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str) -> Listener {
        let address = address.parse().unwrap();
        Listener { address, distribution: Some(1), program: "p".into(), pid: Some(9) }
    }

    fn pairs(listeners: &[&str], ignored: &[u16]) -> Vec<(String, String)> {
        let listeners = listeners.iter().map(|address| listener(address)).collect();
        wanted(listeners, ignored)
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
    fn a_port_that_is_taken_is_replaced() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let (other, trouble) = listen(at);
        let (other, trouble) = (other.unwrap().local_addr().unwrap(), trouble.unwrap());
        assert!(other.ip().is_loopback() && other.port() != at.port());
        assert!(
            trouble.contains("has that port already") && trouble.contains(&other.to_string()),
            "{trouble}"
        );
        drop(taken);
        assert!(matches!(listen(at), (Some(_), None)));
    }
}
