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

/// One connection, of frames in both directions.
#[derive(Debug)]
pub struct Channel {
    stream: File,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
}

impl Channel {
    /// Takes a connected socket or pipe, and makes it one that does not block. An error if the kernel refuses that.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { stream: socket.into(), incoming: FrameBuffer::default(), outgoing: Vec::new() })
    }

    /// Queues a message, and sends what can be sent at once.
    ///
    /// An error if it is too long for a frame, if more than 64 MiB wait for the peer, or if the connection is broken.
    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.outgoing.extend(encode(message).map_err(io::Error::other)?);
        if self.outgoing.len() > MOST_WAITING {
            return Err(io::Error::new(ErrorKind::TimedOut, "the host does not read what it is told"));
        }
        self.flush()
    }

    /// Sends what can be sent without blocking. An error if the connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
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
    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Takes the messages that have arrived; `None` in the second place as long as more may come, else how it ended.
    pub fn receive<T: DeserializeOwned>(&mut self) -> (Vec<T>, Option<io::Result<()>>) {
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
    pub fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().expect("socketpair");
        (Channel::new(one.into()).expect("a channel"), Channel::new(other.into()).expect("a channel"))
    }

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (mut one, mut other) = pair();
        assert!(matches!(other.receive::<u32>(), (none, None) if none.is_empty()));
        for number in 0..3_u32 {
            one.send(&number).expect("sending");
        }
        let (numbers, end) = other.receive::<u32>();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(end.is_none());
        drop(one);
        assert!(matches!(other.receive::<u32>(), (none, Some(Ok(()))) if none.is_empty()));
    }

    #[test]
    fn a_peer_that_does_not_read_is_waited_for_in_memory() {
        let (mut one, mut other) = pair();
        let message = vec![7_u8; 60_000];
        let mut sent = 0;
        while one.is_flushed() {
            one.send(&message).expect("sending");
            sent += 1;
        }
        assert_eq!(one.interest(), PollFlags::POLLIN | PollFlags::POLLOUT);
        let mut received = 0;
        while received < sent {
            let (messages, end) = other.receive::<Vec<u8>>();
            assert!(end.is_none());
            assert!(messages.iter().all(|m| *m == message));
            received += messages.len();
            one.flush().expect("flushing");
        }
        assert!(one.is_flushed());
        assert_eq!(one.interest(), PollFlags::POLLIN);
    }

    #[test]
    fn what_is_no_frame_ends_the_connection() {
        let (one, other) = UnixStream::pair().expect("socketpair");
        let mut channel = Channel::new(one.into()).expect("a channel");
        (&other).write_all(&[0xff; 64]).expect("writing");
        assert!(matches!(channel.receive::<u32>(), (none, Some(Err(_))) if none.is_empty()));
    }
}
