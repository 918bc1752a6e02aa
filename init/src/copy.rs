//! Bytes from one descriptor to another, without blocking, with half close and back pressure.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags},
    sys::socket::{Shutdown, shutdown},
};

/// Bytes under way in one direction: a pipe's usual size.
const BUFFER: usize = 64 << 10;

/// One direction. It reads only when all that it read before has been written: a reader that does not read stops the
/// writer, and nothing gathers here.
#[derive(Debug)]
pub(crate) struct Copy {
    from: Option<File>,
    to: Option<File>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Nothing more is there to be read at this moment.
    dry: bool,
    /// What is read has no reader any more, and is thrown away, so that its writer can go on.
    discard: bool,
    /// The reader went before the writer.
    lost: bool,
}

impl Copy {
    /// Between two descriptors, which are made non-blocking.
    pub(crate) fn new(from: File, to: File) -> io::Result<Self> {
        for file in [&from, &to] {
            let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
            fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Ok(Self {
            from: Some(from),
            to: Some(to),
            buffer,
            start: 0,
            end: 0,
            dry: false,
            discard: false,
            lost: false,
        })
    }

    /// What to poll for.
    pub(crate) fn poll_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) {
        let empty = self.start == self.end;
        if let Some(from) = self.from.as_ref().filter(|_| empty) {
            descriptors.push(PollFd::new(from.as_fd(), PollFlags::POLLIN));
        }
        if let Some(to) = &self.to {
            // Without a request the end of the reader is told all the same.
            descriptors
                .push(PollFd::new(to.as_fd(), if empty { PollFlags::empty() } else { PollFlags::POLLOUT }));
        }
    }

    /// Copies what can be copied now.
    pub(crate) fn step(&mut self) {
        if self.reader_is_gone() {
            self.lose_reader();
        }
        loop {
            if self.start == self.end && !self.fill() {
                break;
            }
            if !self.drain() {
                break;
            }
        }
        if self.from.is_none() && self.start == self.end {
            self.close_to();
        }
    }

    /// Reads into the empty buffer; whether it holds something now.
    fn fill(&mut self) -> bool {
        let Some(from) = &mut self.from else { return false };
        match from.read(&mut self.buffer) {
            Ok(length) if length > 0 => {
                (self.start, self.end, self.dry) = (0, length, false);
                true
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => self.fill(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.dry = true;
                false
            }
            // The end; for a terminal's master it is EIO, for a connection that the peer has cut ECONNRESET.
            Ok(_) | Err(_) => {
                self.dry = true;
                self.from = None;
                false
            }
        }
    }

    /// Writes what the buffer holds; whether all of it could be written.
    fn drain(&mut self) -> bool {
        while self.start < self.end {
            let Some(to) = &mut self.to else {
                self.start = self.end;
                return self.discard;
            };
            match to.write(&self.buffer[self.start..self.end]) {
                Ok(length) => self.start += length,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => self.lose_reader(),
            }
        }
        true
    }

    fn reader_is_gone(&self) -> bool {
        let Some(to) = &self.to else { return false };
        let mut descriptor = [PollFd::new(to.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        matches!(nix::poll::poll(&mut descriptor, 0u8), Ok(1))
            && descriptor[0].revents().is_some_and(|r| r.intersects(gone))
    }

    /// Whoever read is gone: the writer is to notice it as with a pipe of its own, unless it is only to be emptied.
    fn lose_reader(&mut self) {
        self.to = None;
        self.lost = true;
        self.start = self.end;
        if !self.discard {
            self.from = None;
            self.dry = true;
        }
    }

    /// Says end of file to the reader.
    fn close_to(&mut self) {
        if let Some(to) = self.to.take() {
            // A pipe says it by being closed; a socket may be open elsewhere, for the other direction.
            let _ = shutdown(to.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Whether everything that had been written so far has been passed on.
    pub(crate) fn is_dry(&self) -> bool {
        self.start == self.end && (self.dry || self.from.is_none())
    }

    /// Whether there is nothing left to do for good.
    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        self.from.is_none() && self.start == self.end
    }

    /// Whether whoever read has gone before the end.
    pub(crate) fn has_lost_reader(&self) -> bool {
        self.lost
    }

    /// From now on what is read is thrown away: the reader is told the end.
    pub(crate) fn discard_rest(&mut self) {
        self.discard = true;
        self.start = self.end;
        self.close_to();
    }

    /// Ends it, as it is.
    pub(crate) fn close(&mut self) {
        self.from = None;
        self.start = self.end;
        self.close_to();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;

    fn pair() -> (File, File) {
        let (read, write) = pipe().unwrap();
        (read.into(), write.into())
    }

    #[test]
    fn bytes_arrive_and_the_end_too() {
        let ((from, mut write), (mut read, to)) = (pair(), pair());
        let mut copy = Copy::new(from, to).unwrap();
        write.write_all(b"hello").unwrap();
        copy.step();
        assert!(copy.is_dry() && !copy.is_over());
        drop(write);
        copy.step();
        assert!(copy.is_over());
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_reader_that_does_not_read_stops_the_writer() {
        let ((from, mut write), (_read, to)) = (pair(), pair());
        let mut copy = Copy::new(from, to).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&write, FcntlArg::F_GETFL).unwrap());
        fcntl(&write, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
        let mut accepted = 0;
        for _ in 0..100 {
            accepted += write.write(&[0; 65536]).unwrap_or(0);
            copy.step();
        }
        assert!(accepted <= 4 * 65536, "{accepted}");
        assert!(!copy.is_dry());
    }

    #[test]
    fn a_reader_that_goes_takes_the_writer_s_pipe_along() {
        let ((from, mut write), (read, to)) = (pair(), pair());
        let mut copy = Copy::new(from, to).unwrap();
        drop(read);
        copy.step();
        assert!(copy.has_lost_reader() && copy.is_over());
        assert_eq!(write.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_discarded_keeps_its_writer_going() {
        let ((from, mut write), (mut read, to)) = (pair(), pair());
        let mut copy = Copy::new(from, to).unwrap();
        copy.discard_rest();
        write.write_all(b"into the void").unwrap();
        copy.step();
        assert!(copy.is_dry() && !copy.is_over());
        assert_eq!(read.read(&mut [0; 10]).unwrap(), 0);
    }
}
