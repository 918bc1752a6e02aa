//! The carrier: sockets that the program beside the VMM has connected already, each to be carried to a port of the guest.
//!
//! It is an inherited socket of sequenced packets. A message is a port, 32 bits little endian; an opening of 1 to
//! [`OPENING_MAX`] bytes, which the guest reads before all else; and one descriptor beside them (SCM_RIGHTS), a connected stream
//! socket of any family. So nothing has to stand between that socket and the guest: no second socket, no thread, no copy.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, sockopt};

use super::connection::{Connection, Fate, Stage};
use super::multiplexer::{MAX_CONNECTIONS, Multiplexer};
use super::sockets::Stream;
use crate::descriptor::{adopt, borrow, inherit};

/// The longest opening, in bytes.
pub(super) const OPENING_MAX: usize = 64;
/// Bytes of a port.
const PORT: usize = 4;
/// The most connections of this kind at a time; others wait in the socket, and then the sender does.
pub(super) const MAX_CARRIED: usize = MAX_CONNECTIONS / 2;

/// The socket.
pub(super) struct Carrier(OwnedFd);

impl AsRawFd for Carrier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a message has brought.
struct Carried {
    stream: Stream,
    port: u32,
    opening: Vec<u8>,
}

impl Carrier {
    /// Takes over the inherited descriptor `fd`; nothing if it is no socket of sequenced packets.
    pub(super) fn inherit(fd: RawFd) -> Option<Self> {
        let kind = getsockopt(&borrow(fd)?, sockopt::SockType).ok();
        (kind == Some(SockType::SeqPacket)).then(|| inherit(fd)).flatten().map(Self)
    }

    /// The next message: nothing in it if it was none of these. `ENOTCONN` is the end.
    fn take(&self) -> nix::Result<Option<Carried>> {
        let mut bytes = [0; PORT + OPENING_MAX];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let is_cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                descriptors.extend(fds.into_iter().map(adopt));
            }
        }
        let length = message.bytes;
        if length == 0 && descriptors.is_empty() {
            return Err(Errno::ENOTCONN);
        }
        let Some((port, opening)) = bytes[..length].split_first_chunk::<PORT>() else { return Ok(None) };
        // Others, if there were any, are closed.
        let Some(stream) = descriptors.into_iter().next() else { return Ok(None) };
        if is_cut || opening.is_empty() {
            return Ok(None);
        }
        let (port, opening) = (u32::from_le_bytes(*port), opening.to_vec());
        Ok(Some(Carried { stream: stream.into(), port, opening }))
    }
}

impl Multiplexer {
    /// Takes what the carrier has brought, as far as there is room.
    pub(super) fn carry(&mut self) {
        let Some(carrier) = self.carrier.clone() else { return };
        loop {
            // There will be no other event for those that wait.
            self.is_carrier_due = self.carried >= MAX_CARRIED || self.connections.len() >= MAX_CONNECTIONS;
            if self.is_carrier_due {
                return;
            }
            let Carried { stream, port, opening } = match carrier.take() {
                Ok(Some(carried)) => carried,
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return,
                // The other end is closed; or there are no file descriptors, and those that came were lost.
                Err(Errno::ENOTCONN) => return self.registration.forget(&*carrier),
                Err(_) => return,
            };
            let host_port = self.free_port(port);
            let mut connection = Connection::new(stream, Stage::Requested, port, host_port);
            connection.is_carried = true;
            connection.opening = opening;
            connection.due.request = true;
            self.carried += 1;
            let token = self.insert(connection);
            self.by_ports.insert((port, host_port), token);
            self.settle(token, Fate::Live);
        }
    }
}
