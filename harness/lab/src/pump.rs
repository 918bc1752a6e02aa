//! A connection of frames over a descriptor that does not block: what broker, agent and client each have of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::wire::{Decoder, Frame, Message, WireError};

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The descriptor failed.
    #[error("the lab's connection failed")]
    Io(#[from] io::Error),
    /// The peer speaks something else.
    #[error("the lab's connection carries something else")]
    Wire(#[from] WireError),
}

/// A descriptor with frames half read and bytes not yet written.
#[derive(Debug)]
pub struct Pump {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
}

/// Makes a descriptor not block.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Pump {
    /// Takes the descriptor over and makes it not block.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Pump { fd, decoder: Decoder::default(), out: Vec::new(), written: 0 })
    }

    /// Queues a frame; [`flush`](Self::flush) writes it.
    pub fn queue(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Queues a message.
    pub fn say(&mut self, channel: u32, message: Message) {
        self.queue(&Frame::message(channel, message));
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes what the descriptor takes now.
    pub fn flush(&mut self) -> Result<(), PumpError> {
        while self.pending() > 0 {
            match nix::unistd::write(&self.fd, &self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        } else if self.written > 1 << 20 {
            self.out.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what is there, at most `most` bytes of it. `false` if the peer has closed the connection.
    pub fn fill(&mut self, most: usize) -> Result<bool, PumpError> {
        let mut buffer = [0; 64 << 10];
        let mut got = 0;
        while got < most {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    got += n;
                    self.decoder.extend(&buffer[..n]);
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(false),
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
        Ok(true)
    }

    /// The next whole frame among what was read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, PumpError> {
        Ok(self.decoder.next()?)
    }
}

impl AsFd for Pump {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Pump {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}
