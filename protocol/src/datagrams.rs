//! Datagrams on a stream: each with its length before it, as two bytes, little endian. What the relay makes of UDP.
//!
//! Like [`frame`](crate::frame), this reads and writes any `std::io` stream that does not wait, and opens none. What has no
//! room is dropped, as UDP drops it.

use std::io::{self, ErrorKind, Read, Write};

/// The longest datagram, with its length before it.
const LONGEST: usize = 2 + u16::MAX as usize;
/// Bytes that may wait for a reader.
const WAITING: usize = 128 << 10;
/// After so many bytes others have a turn.
const TURN: usize = 256 << 10;

/// Both directions of one flow.
#[derive(Debug, Default)]
pub struct Datagrams {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Datagrams {
    /// Queues a datagram for the stream and writes what can be written; false if it was dropped, because what was sent before
    /// has not been read or because it is longer than any datagram.
    ///
    /// # Errors
    /// The stream's, but `WouldBlock`.
    pub fn send(&mut self, to: impl Write, datagram: &[u8]) -> io::Result<bool> {
        let Ok(length) = u16::try_from(datagram.len()) else { return Ok(false) };
        let has_room = self.outgoing.len() + 2 + datagram.len() <= WAITING;
        if has_room {
            self.outgoing.extend(length.to_le_bytes());
            self.outgoing.extend(datagram);
        }
        self.flush(to)?;
        Ok(has_room)
    }

    /// Writes what can be written.
    ///
    /// # Errors
    /// The stream's, but `WouldBlock`.
    pub fn flush(&mut self, mut to: impl Write) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match to.write(&self.outgoing) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.outgoing = Vec::new();
        Ok(())
    }

    /// Whether something waits to be written.
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what has come, and gives each whole datagram to `each`. True if there was more than its turn: then it is to be
    /// called again, though nobody says that it could.
    ///
    /// # Errors
    /// The stream's, but `WouldBlock`; its end is `UnexpectedEof`.
    pub fn receive(&mut self, mut from: impl Read, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        for _ in 0..TURN / bytes.len() {
            let count = match from.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.incoming.extend_from_slice(&bytes[..count]);
            let mut rest = &self.incoming[..];
            while let Some((&length, after)) = rest.split_first_chunk::<2>() {
                let Some((datagram, after)) = after.split_at_checked(u16::from_le_bytes(length).into())
                else {
                    break;
                };
                each(datagram);
                rest = after;
            }
            let left = rest.len();
            debug_assert!(left < LONGEST);
            let used = self.incoming.len() - left;
            self.incoming.drain(..used);
            if left == 0 {
                self.incoming = Vec::new();
            }
        }
        Ok(true)
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
    fn each_arrives_whole_whatever_the_stream_does_to_it() {
        let (one, other) = pair();
        let (mut sender, mut receiver) = (Datagrams::default(), Datagrams::default());
        let sent: Vec<Vec<u8>> = [0, 1, 1400, 65_535, 0, 30_000, 7]
            .iter()
            .map(|&length| vec![(length % 251) as u8; length])
            .collect();
        let mut received = Vec::new();
        for datagram in &sent {
            while !sender.send(&one, datagram).unwrap() {
                receiver.receive(&other, |datagram| received.push(datagram.to_vec())).unwrap();
            }
        }
        while received.len() < sent.len() {
            sender.flush(&one).unwrap();
            receiver.receive(&other, |datagram| received.push(datagram.to_vec())).unwrap();
        }
        assert!(received == sent);
        assert!(!sender.wants_to_write());
        assert!(!sender.send(&one, &vec![0; 65_536]).unwrap(), "no datagram is as long");
        drop(one);
        let end = receiver.receive(&other, |_| panic!("nothing was sent")).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_reader_that_does_not_read_loses_datagrams() {
        let (one, _other) = pair();
        let mut sender = Datagrams::default();
        let mut sent = 0;
        while sender.send(&one, &[0; 1000]).unwrap() {
            sent += 1;
            assert!(sent < 10_000);
        }
        assert!(sender.outgoing.len() <= WAITING);
        assert!(sender.wants_to_write());
    }
}
