//! Sockets of the host that are never waited for.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, connect, recv, send, shutdown,
    socket,
};

/// A connection's socket: a unix socket, or whatever stream socket the carrier has brought. Whether it was made not to block does
/// not matter.
#[derive(Debug)]
pub(super) struct Stream(OwnedFd);

impl From<OwnedFd> for Stream {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self(stream.into())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Stream {
    /// Reads at once; 0 is the end.
    pub(super) fn receive_now(&self, bytes: &mut [u8]) -> nix::Result<usize> {
        recv(self.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)
    }

    /// Sends at once; a peer that is gone is an error and no signal.
    pub(super) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(send(self.as_raw_fd(), bytes, flags)?)
    }

    /// Ends a direction; one that has ended already, or a peer that is gone, is no error here.
    pub(super) fn shut_down(&self, how: Shutdown) {
        let _ = shutdown(self.as_raw_fd(), how);
    }
}

/// Accepts a connection that does not block, without the further system call that the standard library's takes.
pub(super) fn accept_now(listener: &UnixListener) -> nix::Result<Stream> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4(2) has just made the descriptor, and nobody else knows it.
    Ok(Stream(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Connects to a unix socket at once or not at all: a listener whose backlog is full must not hold up the loop.
pub(super) fn connect_now(path: &OsStr) -> io::Result<Stream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(Stream(fd))
}
