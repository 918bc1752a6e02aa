//! Unix sockets that never block.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, accept4, connect, send, socket,
};

/// Accepts a connection that does not block, without the further system call that the standard library's takes.
pub(super) fn accept_now(listener: &UnixListener) -> nix::Result<UnixStream> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4(2) has just made the descriptor, and nobody else knows it.
    Ok(unsafe { UnixStream::from_raw_fd(fd) })
}

/// Connects to a unix socket at once or not at all: a listener whose backlog is full must not hold up the loop.
pub(super) fn connect_now(path: &OsStr) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// Sends at once; a peer that is gone is an error and no signal.
pub(super) fn send_now(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(send(stream.as_raw_fd(), bytes, flags)?)
}
