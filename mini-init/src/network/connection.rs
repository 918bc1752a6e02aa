//! One connection of the relay's: two sockets, and what is on its way between them.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollEvent, EpollFlags},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, getsockopt, setsockopt,
            shutdown, socket, sockopt,
        },
    },
};
use undercroft_protocol::{
    datagrams::Datagrams,
    network::{Destination, Transport},
};

use super::{
    own,
    splice::{Scratch, Splice},
};

/// Datagrams of one flow after which others have a turn.
const TURN: usize = 64;
/// Milliseconds that a listener may take to take a connection, as long as the host waits for it. One that takes none keeps its
/// place no longer.
const PATIENCE_MS: u32 = 10_000;
/// UDP's longest.
const LONGEST: usize = u16::MAX as usize;

/// What becomes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Waits,
    Again,
    Over,
}

/// What may wait at the relay's epoll, by the side: 0 is the listener's, 1 the host's.
pub(super) struct Place<'a> {
    pub(super) epoll: &'a Epoll,
    pub(super) token: u64,
}

/// A socket that has nothing to say yet, and there is always room for what is said to one that has just come.
const READS: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);
const BOTH: EpollFlags = READS.union(EpollFlags::EPOLLOUT);

impl Place<'_> {
    fn add(&self, fd: impl AsFd, side: u64, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, self.token + side))?)
    }

    /// The host's socket has been full: room for more is told from now on.
    fn await_room(&self, host: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.modify(host, &mut EpollEvent::new(BOTH, self.token + 1))?)
    }
}

/// From the host to a listener.
pub(super) enum Connection {
    /// Which listener is not said yet. It is taken when that is said.
    New(Option<File>),
    Stream(Stream),
    Flow(Flow),
}

impl Connection {
    /// Begins one that the host has opened, which does not block.
    pub(super) fn new(host: OwnedFd, place: &Place<'_>) -> io::Result<Self> {
        place.add(&host, 1, READS)?;
        Ok(Self::New(Some(host.into())))
    }

    /// A side is gone for both directions.
    pub(super) fn lose(&mut self, is_host: bool) {
        match self {
            Self::Stream(stream) if is_host => stream.is_host_gone = true,
            Self::Stream(stream) => stream.is_local_gone = true,
            // The host's end is found when it is read; a listener that is gone may come back.
            Self::New(_) | Self::Flow(_) => {}
        }
    }

    /// Goes on with it. An error: nobody takes this connection, or one side has broken it off.
    pub(super) fn advance(&mut self, place: &Place<'_>, scratch: &mut Scratch) -> io::Result<Fate> {
        if let Self::New(host) = self {
            let Some(Destination { network, to }) = host.as_ref().map_or(Ok(None), destination)? else {
                return Ok(Fate::Waits);
            };
            let Some(host) = host.take() else { return Ok(Fate::Over) };
            *self = own::within(network, || match to.transport {
                Transport::Tcp => Stream::begin(host, to.address, place).map(Self::Stream),
                Transport::Udp => Flow::begin(host, to.address, place).map(Self::Flow),
            })?;
        }
        match self {
            Self::New(_) => Ok(Fate::Waits),
            Self::Flow(flow) => flow.advance(),
            Self::Stream(stream) => stream.advance(place, scratch),
        }
    }
}

/// What the host says first. It is short, comes at once, and is nobody else's: it is there as a whole, or it is none.
fn destination(mut host: &File) -> io::Result<Option<Destination>> {
    let mut bytes = [0; Destination::LENGTH];
    match host.read(&mut bytes) {
        Ok(Destination::LENGTH) => {
            Destination::decode(&bytes).map(Some).ok_or_else(|| ErrorKind::InvalidData.into())
        }
        Ok(_) => Err(ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// One by TCP.
pub(super) struct Stream {
    local: TcpStream,
    /// Whether the listener has taken it.
    is_taken: bool,
    host: File,
    awaits_room: bool,
    inwards: Splice,
    outwards: Splice,
    is_closed_inwards: bool,
    is_closed_outwards: bool,
    /// Which sides take nothing any more.
    is_host_gone: bool,
    is_local_gone: bool,
}

impl Stream {
    fn begin(host: File, to: SocketAddr, place: &Place<'_>) -> io::Result<Self> {
        let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let local = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&local, sockopt::TcpUserTimeout, &PATIENCE_MS)?;
        let begun = match to {
            SocketAddr::V4(to) => connect(local.as_raw_fd(), &SockaddrIn::from(to)),
            SocketAddr::V6(to) => connect(local.as_raw_fd(), &SockaddrIn6::from(to)),
        };
        match begun {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        place.add(&local, 0, BOTH)?;
        Ok(Self {
            local: local.into(),
            is_taken: false,
            host,
            awaits_room: false,
            inwards: Splice::default(),
            outwards: Splice::default(),
            is_closed_inwards: false,
            is_closed_outwards: false,
            is_host_gone: false,
            is_local_gone: false,
        })
    }

    /// Whether the listener has taken the connection.
    fn is_taken(&mut self) -> io::Result<bool> {
        if self.is_taken {
            return Ok(true);
        }
        match getsockopt(&self.local, sockopt::SocketError)? {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        if self.local.peer_addr().is_err() {
            return Ok(false);
        }
        let _ = self.local.set_nodelay(true);
        // From here on who does not read is waited for.
        setsockopt(&self.local, sockopt::TcpUserTimeout, &0)?;
        self.is_taken = true;
        Ok(true)
    }

    /// Moves what can be moved, and passes on that a side has ended.
    fn advance(&mut self, place: &Place<'_>, scratch: &mut Scratch) -> io::Result<Fate> {
        if !self.is_taken()? {
            return Ok(Fate::Waits);
        }
        let host = &self.host;
        let again = self.inwards.advance(host, &self.local, scratch)?
            | self.outwards.advance(&self.local, host, scratch)?;
        if self.outwards.wants_to_write() && !self.awaits_room {
            self.awaits_room = true;
            place.await_room(host)?;
        }
        if self.inwards.is_done() && !self.is_closed_inwards {
            self.is_closed_inwards = true;
            self.local.shutdown(Shutdown::Write)?;
        }
        if self.outwards.is_done() && !self.is_closed_outwards {
            self.is_closed_outwards = true;
            shutdown(host.as_raw_fd(), nix::sys::socket::Shutdown::Write)?;
        }
        // Also when all that one side had was passed on, and it takes nothing more.
        let is_over = self.is_closed_inwards && (self.is_closed_outwards || self.is_host_gone)
            || self.is_closed_outwards && self.is_local_gone;
        Ok(match (is_over, again) {
            (true, _) => Fate::Over,
            (false, true) => Fate::Again,
            (false, false) => Fate::Waits,
        })
    }
}

/// One by UDP: what one program on the host says to a socket here, and what it is answered. The host ends it when nothing
/// has been said for a while.
pub(super) struct Flow {
    local: UdpSocket,
    host: File,
    datagrams: Datagrams,
}

impl Flow {
    fn begin(host: File, to: SocketAddr, place: &Place<'_>) -> io::Result<Self> {
        let any: SocketAddr =
            if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().map_err(io::Error::other)?;
        let local = UdpSocket::bind(any)?;
        local.connect(to)?;
        local.set_nonblocking(true)?;
        place.add(&local, 0, BOTH)?;
        place.await_room(&host)?;
        Ok(Self { local, host, datagrams: Datagrams::default() })
    }

    fn advance(&mut self) -> io::Result<Fate> {
        self.datagrams.flush(&self.host)?;
        let local = &self.local;
        // What the listener has no room for, and what it is not there for, is lost.
        let mut again = self.datagrams.receive(&self.host, |datagram| drop(local.send(datagram)))?;
        let mut bytes = [0; LONGEST];
        let mut count = 0;
        loop {
            match self.local.recv(&mut bytes) {
                Ok(length) => drop(self.datagrams.send(&self.host, &bytes[..length])?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody listens there (now): told once for each datagram.
                Err(_) => {}
            }
            count += 1;
            if count >= TURN {
                again = true;
                break;
            }
        }
        Ok(if again { Fate::Again } else { Fate::Waits })
    }
}
