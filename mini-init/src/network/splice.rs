//! Bytes on their way from one stream to another, neither of which waits.

use std::io::{self, ErrorKind, Read, Write};

/// What is read at once, in bytes, which is the most that one direction holds: what was read and not yet written. A reader that
/// does not read makes the writer wait. It is vsock's longest packet, too (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE, linux/virtio_vsock.h).
const ROOM: usize = 64 << 10;
/// After so many bytes others have a turn.
const TURN: usize = 256 << 10;

/// Room to read into: one for all that a thread passes on, because only what cannot be written at once has to be kept.
#[derive(Debug)]
pub(super) struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; ROOM].into())
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Splice {
    /// What was read and could not be written.
    rest: Vec<u8>,
    written: usize,
    has_ended: bool,
}

impl Splice {
    /// Moves what can be moved without waiting. True if there was more than its turn: then it is to be called again, though
    /// nobody says that it could.
    /// An error is either stream's, but never `WouldBlock`; what was read is lost then.
    pub(super) fn advance(
        &mut self,
        mut from: impl Read,
        mut to: impl Write,
        scratch: &mut Scratch,
    ) -> io::Result<bool> {
        let mut moved = 0;
        loop {
            while self.wants_to_write() {
                let Some(count) = write(&mut to, &self.rest[self.written..])? else { return Ok(false) };
                self.written += count;
            }
            (self.rest, self.written) = (Vec::new(), 0);
            if self.has_ended {
                return Ok(false);
            }
            if moved >= TURN {
                return Ok(true);
            }
            let count = match from.read(&mut scratch.0) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.has_ended = count == 0;
            moved += count;
            let mut read = &scratch.0[..count];
            while !read.is_empty() {
                let Some(count) = write(&mut to, read)? else {
                    self.rest = read.to_vec();
                    return Ok(false);
                };
                read = &read[count..];
            }
        }
    }

    /// Whether there is something to write, as soon as the other side takes it.
    pub(super) fn wants_to_write(&self) -> bool {
        self.written < self.rest.len()
    }

    /// Whether everything has come and was written: the other side's end can be told.
    pub(super) fn is_done(&self) -> bool {
        self.has_ended && !self.wants_to_write()
    }
}

/// How much was taken, of something; nothing if the other side has no room.
fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (one, other)
    }

    #[test]
    fn bytes_arrive_in_order_and_then_the_end() {
        let ((mut source, from), (to, mut sink)) = (pair(), pair());
        let mut splice = Splice::default();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 13) as u8).collect();
        let (mut rest, mut read) = (&sent[..], Vec::new());
        let mut source_is_open = true;
        for round in 0_u32.. {
            if let Ok(count) = source.write(rest) {
                rest = &rest[count..];
            }
            if rest.is_empty() && source_is_open {
                source.shutdown(std::net::Shutdown::Write).unwrap();
                source_is_open = false;
            }
            splice.advance(&from, &to, &mut Scratch::default()).unwrap();
            assert!(splice.rest.capacity() <= ROOM);
            if splice.is_done() {
                break;
            }
            assert!(round < 10_000);
            // A reader that reads now and then.
            if round % 3 == 0 {
                let _ = sink.read_to_end(&mut read);
            }
        }
        let _ = sink.read_to_end(&mut read);
        assert!(read == sent);
    }

    #[test]
    fn a_reader_that_does_not_read_makes_the_writer_wait() {
        let ((mut source, from), (to, _sink)) = (pair(), pair());
        let mut splice = Splice::default();
        let mut sent = 0;
        while let Ok(count) = source.write(&[1; 8192]) {
            sent += count;
            splice.advance(&from, &to, &mut Scratch::default()).unwrap();
            assert!(sent < 8 << 20);
        }
        assert!(splice.wants_to_write());
        drop(_sink);
        assert!(splice.advance(&from, &to, &mut Scratch::default()).is_err());
    }
}
