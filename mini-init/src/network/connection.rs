//! One connection of the relay's: two sockets, and what is on its way between them.

use std::{
    fs::File,
    io::{self, ErrorKind},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        epoll::{Epoll, EpollEvent, EpollFlags},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, getsockopt, setsockopt,
            shutdown, socket, sockopt,
        },
    },
};
use undercroft_protocol::{
    Token,
    datagrams::Datagrams,
    network::{Endpoint, Transport},
    splice::{Scratch, Splice},
};

use super::relay::Dial;

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

impl Place<'_> {
    fn add(&self, fd: impl AsFd, side: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, self.token + side))?)
    }
}

/// From the host to a listener.
pub(super) enum Connection {
    Stream(Stream),
    Flow(Flow),
}

impl Connection {
    /// Begins one.
    pub(super) fn begin(token: Token, to: Endpoint, dial: &Dial, place: &Place<'_>) -> io::Result<Self> {
        match to.transport {
            Transport::Tcp => Stream::begin(token, to.address, place).map(Self::Stream),
            Transport::Udp => Flow::begin(token, to.address, dial, place).map(Self::Flow),
        }
    }

    /// A side is gone for both directions.
    pub(super) fn lose(&mut self, is_host: bool) {
        match self {
            Self::Stream(stream) if is_host => stream.is_host_gone = true,
            Self::Stream(stream) => stream.is_local_gone = true,
            // The host's end is found when it is read; a listener that is gone may come back.
            Self::Flow(_) => {}
        }
    }

    /// Goes on with it. `Err` with a token: nobody takes this connection.
    pub(super) fn advance(
        &mut self,
        dial: &Dial,
        place: &Place<'_>,
        scratch: &mut Scratch,
    ) -> Result<Fate, Option<Token>> {
        let fate = match self {
            Self::Flow(flow) => flow.advance(),
            Self::Stream(stream) if stream.host.is_some() => stream.advance(scratch),
            Self::Stream(stream) => match stream.answer(dial, place) {
                Ok(true) => stream.advance(scratch),
                Ok(false) => Ok(Fate::Waits),
                Err(_) => return Err(Some(stream.token)),
            },
        };
        fate.map_err(|_| None)
    }
}

/// One by TCP.
pub(super) struct Stream {
    token: Token,
    local: TcpStream,
    /// Once there is a local one.
    host: Option<File>,
    inwards: Splice,
    outwards: Splice,
    is_closed_inwards: bool,
    is_closed_outwards: bool,
    /// Which sides take nothing any more.
    is_host_gone: bool,
    is_local_gone: bool,
}

impl Stream {
    fn begin(token: Token, to: SocketAddr, place: &Place<'_>) -> io::Result<Self> {
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
        place.add(&local, 0)?;
        Ok(Self {
            token,
            local: local.into(),
            host: None,
            inwards: Splice::default(),
            outwards: Splice::default(),
            is_closed_inwards: false,
            is_closed_outwards: false,
            is_host_gone: false,
            is_local_gone: false,
        })
    }

    /// Comes back to the host, if the listener has taken the connection; whether it has.
    fn answer(&mut self, dial: &Dial, place: &Place<'_>) -> io::Result<bool> {
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
        self.host = Some(come_back(dial, self.token, place)?);
        Ok(true)
    }

    /// Moves what can be moved, and passes on that a side has ended.
    fn advance(&mut self, scratch: &mut Scratch) -> io::Result<Fate> {
        let Some(host) = &self.host else { return Ok(Fate::Waits) };
        let again = self.inwards.advance(host, &self.local, scratch)?
            | self.outwards.advance(&self.local, host, scratch)?;
        if self.inwards.is_done() && !self.is_closed_inwards {
            self.is_closed_inwards = true;
            self.local.shutdown(Shutdown::Write)?;
        }
        if self.outwards.is_done() && !self.is_closed_outwards {
            self.is_closed_outwards = true;
            shutdown(host.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Write)?;
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
    fn begin(token: Token, to: SocketAddr, dial: &Dial, place: &Place<'_>) -> io::Result<Self> {
        let any: SocketAddr =
            if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().map_err(io::Error::other)?;
        let local = UdpSocket::bind(any)?;
        local.connect(to)?;
        local.set_nonblocking(true)?;
        place.add(&local, 0)?;
        let host = come_back(dial, token, place)?;
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

fn come_back(dial: &Dial, token: Token, place: &Place<'_>) -> io::Result<File> {
    let host: OwnedFd = dial(token)?;
    let flags = OFlag::from_bits_retain(fcntl(&host, FcntlArg::F_GETFL)?);
    fcntl(&host, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    place.add(&host, 1)?;
    Ok(host.into())
}
