//! A connection of frames that is polled: it never blocks, in neither direction.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::PollFlags,
};
use serde::{Serialize, de::DeserializeOwned};
use undercroft_protocol::frame::{FrameBuffer, encode};

/// Bytes that wait for a reader who does not read. A host that lets more gather is as good as gone.
const MOST_WAITING: usize = 64 << 20;

/// One connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: File,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
}

impl Channel {
    /// Takes a connected socket or pipe.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { stream: socket.into(), incoming: FrameBuffer::default(), outgoing: Vec::new() })
    }

    /// Queues a message, and sends what can be sent at once.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.outgoing.extend(encode(message).map_err(io::Error::other)?);
        if self.outgoing.len() > MOST_WAITING {
            return Err(io::Error::new(ErrorKind::TimedOut, "the host does not read what it is told"));
        }
        self.flush()
    }

    /// Sends what can be sent without blocking.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether everything queued has been given to the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Takes the messages that have arrived; `None` in the second place as long as more may come, else how it ended.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> (Vec<T>, Option<io::Result<()>>) {
        let mut messages = Vec::new();
        let mut bytes = [0; 16 << 10];
        loop {
            let end = match self.stream.read(&mut bytes) {
                Ok(0) => Some(Ok(())),
                Ok(length) => {
                    self.incoming.extend(&bytes[..length]);
                    None
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return (messages, None),
                Err(e) => Some(Err(e)),
            };
            loop {
                match self.incoming.message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(e) => return (messages, Some(Err(io::Error::other(e)))),
                }
            }
            if end.is_some() {
                return (messages, end);
            }
        }
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
