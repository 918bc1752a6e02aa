//! The host's end of the wire: a descriptor that never waits, and the frames that are on their way through it.
//!
//! Frames are copied through two buffers that are made once, so that a read takes in many small ones and a write gives out
//! as many. That bounds what is held here, whatever either side does: what the descriptor does not take stays with the
//! guest, and what the guest does not take stays in the descriptor.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, send, sockopt};

use super::spec::{FRAME_MAX, HEADER_LENGTH, PREFIX_LENGTH};
use super::tap::{self, TapError};

/// After so many bytes of frames they are written.
const BATCH: usize = 64 << 10;
/// Bytes of a buffer: a batch, and the frame that made it full.
const BUFFER: usize = BATCH + PREFIX_LENGTH + HEADER_LENGTH + FRAME_MAX;

/// What a descriptor carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames with their length before them.
    Stream,
    /// A frame with virtio's header before it at each read and write.
    Tap,
}

/// Why there is no link, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The descriptor is no connected stream socket.
    #[error("the network's descriptor is not that of a stream socket")]
    NotAStream,
    /// The descriptor is no TAP device that could be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It cannot be kept from waiting.
    #[error("the network's descriptor cannot be used")]
    Unusable(#[source] io::Error),
    /// The peer has closed it.
    #[error("the process at its other end has closed it")]
    Closed,
    /// Reading or writing failed.
    #[error("it failed: {0}")]
    Broken(Errno),
    /// A length that no frame has. What follows in the stream cannot be told apart any more.
    #[error("a frame of {0} bytes was announced, of which there are none ({FRAME_MAX} at most)")]
    Length(u32),
}

/// A connected descriptor.
#[derive(Debug)]
pub(super) struct Link {
    kind: Kind,
    fd: OwnedFd,
    incoming: Box<[u8]>,
    /// What of `incoming` was read and not consumed.
    unread: Range<usize>,
    outgoing: Box<[u8]>,
    /// What of `outgoing` was put there and not written.
    unwritten: Range<usize>,
    /// What the last call found out. The descriptor is watched edge-triggered.
    is_readable: bool,
    is_writable: bool,
}

/// A frame that has come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'l> {
    /// Virtio's header, if it came with one.
    pub(super) header: Option<[u8; HEADER_LENGTH]>,
    /// From the Ethernet header on.
    pub(super) bytes: &'l [u8],
}

impl Link {
    /// Takes a descriptor over.
    pub(super) fn new(fd: OwnedFd, kind: Kind) -> Result<Self, LinkError> {
        match kind {
            Kind::Stream if getsockopt(&fd, sockopt::SockType) != Ok(SockType::Stream) => {
                return Err(LinkError::NotAStream);
            }
            Kind::Stream => {}
            Kind::Tap => tap::prepare(fd.as_fd())?,
        }
        Self::unchecked(fd, kind)
    }

    /// The same for tests, which have no TAP device.
    pub(super) fn unchecked(fd: OwnedFd, kind: Kind) -> Result<Self, LinkError> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(|errno| LinkError::Unusable(errno.into()))?;
        // Zeros that nobody has touched take no memory.
        let buffer = || vec![0; BUFFER].into_boxed_slice();
        Ok(Self {
            kind,
            fd,
            incoming: buffer(),
            unread: 0..0,
            outgoing: buffer(),
            unwritten: 0..0,
            // Not known; the first call tells.
            is_readable: true,
            is_writable: true,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The descriptor is ready again.
    pub(super) fn note(&mut self, readable: bool, writable: bool) {
        self.is_readable |= readable;
        self.is_writable |= writable;
    }

    /// The frame that is next, if one has come in whole. It stays until it is [consumed](Self::consume).
    pub(super) fn receive(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        let place = loop {
            match self.locate()? {
                Some(place) => break place,
                None if !self.is_readable => return Ok(None),
                None => self.read()?,
            }
        };
        let (header, bytes) = match self.kind {
            Kind::Stream => (None, &self.incoming[place]),
            Kind::Tap => {
                let (header, bytes) = self.incoming[place].split_at(HEADER_LENGTH);
                (header.try_into().ok(), bytes)
            }
        };
        Ok(Some(Frame { header, bytes }))
    }

    /// Drops the frame that is next.
    pub(super) fn consume(&mut self) {
        if let Ok(Some(place)) = self.locate() {
            self.unread.start = place.end;
        }
    }

    /// Where the next frame is in `incoming`, if all of it is there.
    fn locate(&self) -> Result<Option<Range<usize>>, LinkError> {
        let bytes = &self.incoming[self.unread.clone()];
        if self.kind == Kind::Tap {
            // One at a time; one without a header is none.
            return Ok((bytes.len() >= HEADER_LENGTH).then(|| self.unread.clone()));
        }
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LENGTH>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*prefix);
        let length = announced as usize;
        if length > FRAME_MAX {
            return Err(LinkError::Length(announced));
        }
        let start = self.unread.start + PREFIX_LENGTH;
        Ok((rest.len() >= length).then(|| start..start + length))
    }

    /// Reads once, after what is there.
    fn read(&mut self) -> Result<(), LinkError> {
        // What is there is less than a frame.
        self.incoming.copy_within(self.unread.clone(), 0);
        self.unread = match self.kind {
            Kind::Stream => 0..self.unread.len(),
            Kind::Tap => 0..0,
        };
        match nix::unistd::read(&self.fd, &mut self.incoming[self.unread.end..]) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => {
                self.unread.end += count;
                Ok(())
            }
            Err(Errno::EAGAIN) => {
                self.is_readable = false;
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(LinkError::Broken(errno)),
        }
    }

    /// Whether another frame can be [put](Self::put), if need be after what was put was written.
    pub(super) fn has_room(&mut self) -> Result<bool, LinkError> {
        let most = if self.kind == Kind::Tap { 0 } else { BATCH };
        if self.unwritten.end > most {
            self.flush()?;
        }
        Ok(self.unwritten.end <= most)
    }

    /// Takes a frame of `length` bytes, at most [`FRAME_MAX`], that `fill` writes; it may find that it is none. There must be
    /// [room](Self::has_room).
    pub(super) fn put<E>(
        &mut self,
        header: &[u8; HEADER_LENGTH],
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.unwritten.end;
        let start = match self.kind {
            Kind::Stream => {
                self.outgoing[at..at + PREFIX_LENGTH].copy_from_slice(&(length as u32).to_be_bytes());
                at + PREFIX_LENGTH
            }
            Kind::Tap => {
                self.outgoing[at..at + HEADER_LENGTH].copy_from_slice(header);
                at + HEADER_LENGTH
            }
        };
        fill(&mut self.outgoing[start..start + length])?;
        self.unwritten.end = start + length;
        Ok(())
    }

    /// Writes what was put, as far as the descriptor takes it.
    pub(super) fn flush(&mut self) -> Result<(), LinkError> {
        while self.is_writable && !self.unwritten.is_empty() {
            let bytes = &self.outgoing[self.unwritten.clone()];
            let written = match self.kind {
                // A peer that is gone is an error and no signal.
                Kind::Stream => {
                    send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
                }
                // A packet that the host does not want is lost, as on any wire.
                Kind::Tap => match nix::unistd::write(&self.fd, bytes) {
                    Err(Errno::EAGAIN) => Err(Errno::EAGAIN),
                    _ => Ok(bytes.len()),
                },
            };
            match written {
                Ok(count) => self.unwritten.start += count,
                Err(Errno::EAGAIN) => self.is_writable = false,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::Broken(errno)),
            }
        }
        if self.unwritten.is_empty() {
            self.unwritten = 0..0;
        }
        Ok(())
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn link() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (Link::new(ours.into(), Kind::Stream).unwrap(), theirs)
    }

    #[test]
    fn frames_are_told_apart_however_they_come() {
        let (mut link, mut peer) = link();
        let frames: Vec<Vec<u8>> = (1..40_usize).map(|n| vec![n as u8; n * n * 40 + n]).collect();
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat())
            .collect();
        let mut seen = Vec::new();
        let mut rest = &stream[..];
        while seen.len() < frames.len() {
            let part = rest.len().min(7001);
            if let Ok(count) = peer.write(&rest[..part]) {
                rest = &rest[count..];
            }
            link.note(true, false);
            while let Some(frame) = link.receive().unwrap() {
                seen.push(frame.bytes.to_vec());
                link.consume();
            }
        }
        assert!(seen == frames);
        peer.write_all(&(FRAME_MAX as u32 + 1).to_be_bytes()).unwrap();
        link.note(true, false);
        assert!(matches!(link.receive(), Err(LinkError::Length(_))));
        drop(peer);
    }

    #[test]
    fn what_is_not_read_waits_and_is_bounded() {
        let (mut link, mut peer) = link();
        let mut count = 0;
        while link.has_room().unwrap() {
            link.put::<()>(&[0; HEADER_LENGTH], 60_000, |bytes| {
                bytes.fill(count);
                Ok(())
            })
            .unwrap();
            count += 1;
        }
        assert!(count > 2 && !link.is_writable);
        let mut all = Vec::new();
        for _ in 0..1000 {
            let _ = peer.read_to_end(&mut all);
            link.note(false, true);
            link.flush().unwrap();
        }
        assert_eq!(all.len(), usize::from(count) * 60_004);
        assert!(
            all.chunks(60_004).zip(0..).all(|(frame, n)| frame[..4] == 60_000_u32.to_be_bytes()
                && frame[4..].iter().all(|&byte| byte == n))
        );
        drop(peer);
        link.put::<()>(&[0; HEADER_LENGTH], 1, |_| Ok(())).unwrap();
        assert!(matches!(link.flush(), Err(LinkError::Closed)));
        link.note(true, false);
        assert!(matches!(link.receive(), Err(LinkError::Closed)));
    }

    #[test]
    fn a_link_is_a_stream_or_a_tap() {
        let file = || tempfile::tempfile().unwrap().into();
        assert!(matches!(Link::new(file(), Kind::Stream), Err(LinkError::NotAStream)));
        assert!(matches!(Link::new(file(), Kind::Tap), Err(LinkError::Tap(_))));
    }
}
