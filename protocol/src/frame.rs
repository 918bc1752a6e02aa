//! Framing: eight bytes of header, then one postcard message.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..2 | `"uc"` |
//! | 2..4 | protocol version, little endian |
//! | 4..8 | length of the message in bytes, little endian, at most [`MAX_FRAME`] |
//!
//! The version is outside the message, so that it can be read whatever the message looks like in another version.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The version that this crate speaks. Any change to a message's bytes changes it; `tests/golden.rs` notices.
pub const VERSION: u16 = 8;

/// The longest message, in bytes. Long enough for an environment and argument list at Linux's usual limits, short
/// enough to allocate without thinking.
pub const MAX_FRAME: usize = 4 << 20;

const MAGIC: [u8; 2] = *b"uc";
const HEADER: usize = 8;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection between two frames: the orderly end.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream failed, or ended inside a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The first bytes are not ours.
    #[error(
        "expected an undercroft frame, which starts with \"uc\", and got {0:02x?}: something else speaks here"
    )]
    NotOurs([u8; 2]),
    /// The peer speaks another version.
    #[error(
        "the peer speaks protocol version {theirs}, this side version {VERSION}: use host and guest of one build"
    )]
    Version {
        /// The peer's version.
        theirs: u16,
    },
    /// A message longer than any message is.
    #[error("a frame of {length} bytes was announced, and {MAX_FRAME} is the most")]
    TooLong {
        /// The length in the header.
        length: u64,
    },
    /// The message cannot be decoded, or has bytes left over.
    #[error("a frame of {length} bytes does not hold the message that was expected")]
    Malformed {
        /// The frame's length.
        length: usize,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
}

/// One message as the bytes of a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    bytes =
        postcard::to_extend(message, bytes).map_err(|source| FrameError::Malformed { length: 0, source })?;
    let length = bytes.len() - HEADER;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong { length: length as u64 });
    }
    bytes[..2].copy_from_slice(&MAGIC);
    bytes[2..4].copy_from_slice(&VERSION.to_le_bytes());
    bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The length of the message that follows this header.
fn check(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let [m0, m1, v0, v1, l0, l1, l2, l3] = header;
    if [m0, m1] != MAGIC {
        return Err(FrameError::NotOurs([m0, m1]));
    }
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs != VERSION {
        return Err(FrameError::Version { theirs });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong { length: length as u64 });
    }
    Ok(length)
}

fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, FrameError> {
    let malformed = |source| FrameError::Malformed { length: message.len(), source };
    let (value, rest) = postcard::take_from_bytes(message).map_err(malformed)?;
    if rest.is_empty() { Ok(value) } else { Err(malformed(postcard::Error::DeserializeBadEncoding)) }
}

/// Writes one message, in one `write_all`: on a stream socket no frame is ever seen half by a reader that waits.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(stream.flush()?)
}

/// Reads one message; blocks until it is whole. [`FrameError::Closed`] if the stream ends before its first byte.
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = check(header)?;
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    decode(&message)
}

/// Takes frames out of bytes as they arrive, for a reader that polls and must not block.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Adds bytes that arrived. Never holds more than one longest frame and one read more, as long as
    /// [`message`](Self::message) is called until it gives `None` after each.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` if more bytes are needed. After an error the stream is of no more use.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + check(*header)?;
        let Some(message) = self.bytes.get(HEADER..end) else { return Ok(None) };
        let value = decode(message)?;
        self.bytes.drain(..end);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back() {
        let bytes = encode(&("hello", 7u32)).unwrap();
        let back: (String, u32) = read_frame(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, ("hello".into(), 7));
    }

    #[test]
    fn an_end_between_frames_is_not_an_error_of_the_stream() {
        assert!(matches!(read_frame::<u8>(&mut [].as_slice()), Err(FrameError::Closed)));
        assert!(matches!(read_frame::<u8>(&mut b"uc".as_slice()), Err(FrameError::Io(_))));
    }

    #[test]
    fn another_version_is_told_before_the_message_is_read() {
        let mut bytes = encode(&7u32).unwrap();
        bytes[2] = 9;
        assert!(matches!(read_frame::<u32>(&mut bytes.as_slice()), Err(FrameError::Version { theirs: 9 })));
    }

    #[test]
    fn an_absurd_length_is_refused_without_allocating_it() {
        let [low, high] = VERSION.to_le_bytes();
        let bytes = [b'u', b'c', low, high, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(read_frame::<u32>(&mut bytes.as_slice()), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn bytes_left_over_in_a_frame_are_an_error() {
        let mut bytes = encode(&7u8).unwrap();
        bytes.push(1);
        bytes[4] += 1;
        assert!(matches!(read_frame::<u8>(&mut bytes.as_slice()), Err(FrameError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
            let _ = read_frame::<crate::command::Request>(&mut bytes.as_slice());
            let _ = decode::<crate::session::InitRequest>(&bytes);
            let _ = decode::<crate::command::Reply>(&bytes);
        }

        #[test]
        fn a_buffer_gives_what_a_reader_gives(messages: Vec<(u32, String)>, cut in 1usize..40) {
            let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
            let mut buffer = FrameBuffer::default();
            let mut got = Vec::new();
            for part in bytes.chunks(cut) {
                buffer.extend(part);
                while let Some(m) = buffer.message::<(u32, String)>().unwrap() { got.push(m); }
            }
            prop_assert_eq!(got, messages);
        }
    }
}
