//! Where the host connects to the VM.
#![allow(unsafe_code)]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};

use crate::host::HOST_CID;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;

/// A listener of vsock's that takes connections of the host's only: any process in any distribution may connect to it.
#[derive(Debug)]
pub struct Door {
    listener: OwnedFd,
    is_vsock: bool,
}

impl Door {
    /// At a port of the VM's.
    ///
    /// # Errors
    /// The system calls'; `EADDRINUSE` if somebody else listens there.
    pub fn at(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(Self { listener, is_vsock: true })
    }

    /// One that takes everybody's, for tests. It must not block.
    pub fn of(listener: impl Into<OwnedFd>) -> Self {
        Self { listener: listener.into(), is_vsock: false }
    }

    /// The next connection, which does not block; nothing if there is none. Those of others than the host end here.
    ///
    /// # Errors
    /// The system call's.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let mut peer = libc::sockaddr_vm {
                svm_family: 0,
                svm_reserved1: 0,
                svm_port: 0,
                svm_cid: 0,
                svm_zero: [0; 4],
            };
            let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: `peer` has room for `length` bytes, of which the kernel writes as many as there are of the address.
            let fd = unsafe {
                libc::accept4(self.listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut length, flags)
            };
            if fd < 0 {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            }
            // SAFETY: accept4(2) has just made the descriptor, and nobody else knows it.
            let connection = unsafe { OwnedFd::from_raw_fd(fd) };
            if !self.is_vsock || peer.svm_cid == HOST_CID {
                return Ok(Some(connection));
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    };

    #[test]
    fn who_has_connected_is_taken_and_nobody_is_waited_for() {
        let name = format!("undercroft-door-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let door = Door::of(listener);
        assert!(door.accept().unwrap().is_none());
        let _client = UnixStream::connect_addr(&address).unwrap();
        assert!(door.accept().unwrap().is_some());
        assert!(door.accept().unwrap().is_none());
    }
}
