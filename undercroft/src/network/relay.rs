//! Connections from the host's loopback into the VM: the VMM carries them there, as they are ([`Carrier`]).

use std::{
    io::{self, IoSlice},
    net::TcpStream,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
};
use undercroft_protocol::{
    network::{Destination, Endpoint, Transport},
    port,
};

use super::peer;
use crate::board::Board;

/// How often a stream is tried to be handed over, while there is no room.
const RETRY: Duration = Duration::from_millis(20);

/// A way to hand sockets over to the VMM, each with where in the VM it goes on.
#[derive(Debug)]
pub(crate) struct Carrier(OwnedFd);

impl Carrier {
    /// One, and the end that is the VMM's.
    ///
    /// # Errors
    /// The system call's.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(ours), theirs))
    }

    /// Hands over a connected socket; false if the VMM does not take another now.
    fn carry(&self, socket: impl AsFd, to: &Goal) -> io::Result<bool> {
        let Goal { network, at, .. } = *to;
        let (port, destination) = (port::RELAY.to_le_bytes(), Destination { network, to: at }.encode());
        let fds = [socket.as_fd().as_raw_fd()];
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&port), IoSlice::new(&destination)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        );
        match sent {
            Ok(_) => Ok(true),
            // The last: more descriptors on their way than a user may have (unix(7)).
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
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

/// The way of a machine's connections.
#[derive(Debug)]
pub(super) struct Relay {
    board: Arc<Board>,
    carrier: Carrier,
    patience: Duration,
}

impl Relay {
    /// `patience` is how long a stream of the service's own waits for room.
    pub(super) fn new(board: Arc<Board>, carrier: Carrier, patience: Duration) -> Self {
        Self { board, carrier, patience }
    }

    /// Tells people.
    pub(super) fn warn(&self, text: String) {
        self.board.warn(text);
    }

    /// Takes a connection that has come in. Gives it back if there are as many as there can be; whatever else goes wrong, its
    /// other side sees it end.
    pub(super) fn connect(&self, outside: TcpStream, to: Goal) -> Option<TcpStream> {
        let is_welcome = || -> io::Result<bool> {
            Ok(peer::is_welcome(Transport::Tcp, outside.peer_addr()?, outside.local_addr()?))
        };
        if !to.is_for_all && !is_welcome().unwrap_or(false) {
            return None;
        }
        let _ = outside.set_nodelay(true);
        let has_to_wait = matches!(self.carrier.carry(&outside, &to), Ok(false));
        has_to_wait.then_some(outside)
    }

    /// A stream that the relay in the VM passes on to there; it is waited for if there are as many as there can be.
    pub(super) fn reach(&self, to: Goal) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let end = Instant::now() + self.patience;
        while !self.carrier.carry(&theirs, &to)? {
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(RETRY);
        }
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSliceMut, Read, Write},
        net::TcpListener,
        os::fd::RawFd,
    };

    use nix::sys::socket::{ControlMessageOwned, recv, recvmsg};

    use super::*;

    #[test]
    fn a_connection_is_handed_over_with_where_it_goes() {
        let (carrier, vmm) = Carrier::pair().unwrap();
        let relay = Relay::new(Arc::new(Board::new(None)), carrier, Duration::from_secs(10));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let at = Endpoint::tcp("127.0.0.1:80".parse().unwrap());
        let goal = Goal { network: Some(3), at, is_for_all: false };
        assert!(relay.connect(listener.accept().unwrap().0, goal).is_none());

        let mut bytes = [0; 100];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<()>(vmm.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
        let fd = match message.cmsgs().unwrap().next() {
            Some(ControlMessageOwned::ScmRights(fds)) => fds[0],
            other => panic!("{other:?}"),
        };
        let length = message.bytes;
        let (port, destination) = bytes[..length].split_first_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*port), port::RELAY);
        let destination = Destination::decode(destination.try_into().unwrap());
        assert_eq!(destination, Some(Destination { network: Some(3), to: at }));
        client.write_all(b"question").unwrap();
        let mut question = [0; 8];
        assert_eq!(recv(fd, &mut question, MsgFlags::empty()), Ok(8));
        assert_eq!(&question, b"question");
        nix::unistd::close(fd).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_vmm_that_takes_none_makes_them_wait_and_one_that_is_gone_ends_them() {
        let (carrier, vmm) = Carrier::pair().unwrap();
        let relay = Relay::new(Arc::new(Board::new(None)), carrier, Duration::from_secs(10));
        let goal = Goal { network: None, at: Endpoint::tcp(([127, 0, 0, 1], 80).into()), is_for_all: true };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut clients = Vec::new();
        let waits = loop {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            if let Some(waits) = relay.connect(listener.accept().unwrap().0, goal) {
                break waits;
            }
        };
        assert!(clients.len() > 1);
        drop(vmm);
        assert_eq!(clients[0].read_to_end(&mut Vec::new()).unwrap(), 0);
        assert!(relay.connect(waits, goal).is_none());
        assert!(relay.reach(goal).is_err());
    }
}
