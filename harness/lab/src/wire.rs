//! Frames between client, broker and agent: a header of twelve bytes, then the payload.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..4 | length of the payload, little endian, at most [`MAX_PAYLOAD`] |
//! | 4..8 | the command's number on this connection, little endian; 0 is the connection itself |
//! | 8 | kind: 0 a [`Message`] in postcard, 1 to 3 bytes of stdin, stdout, stderr as they are |
//! | 9..12 | `"lab"` |

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Any change to a frame's bytes changes this.
pub const VERSION: u32 = 3;

/// Bytes that a sender may have under way on one stream of one command before it hears that they were consumed.
pub const WINDOW: u32 = 256 << 10;

/// The longest payload, in bytes: an argument list and environment at Linux's usual limits.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// The most that is put into one frame of stream data, in bytes.
pub const CHUNK: usize = 32 << 10;

const HEADER: usize = 12;
const MAGIC: [u8; 3] = *b"lab";

/// One of a command's three streams. With a terminal, [`Stdin`](Self::Stdin) is what is typed and
/// [`Stdout`](Self::Stdout) what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// To the command.
    Stdin,
    /// From the command.
    Stdout,
    /// From the command.
    Stderr,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Something to act on.
    Message(Message),
    /// Bytes of a stream.
    Data(Stream, Vec<u8>),
}

/// A frame: which command, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The command's number; each connection has its own numbers, the broker translates.
    pub channel: u32,
    /// What it carries.
    pub payload: Payload,
}

/// Everything that is said beside the streams' bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First on every connection, both ways. Client and broker name the lab's identity; the agent repeats the number
    /// that the broker gave it on the kernel command line. Never changes its place or form between versions.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The lab's identity, or the agent's number.
        name: String,
    },
    /// Client → agent: start a command.
    Start(Start),
    /// Agent → client: it runs, and this is its process id in L1.
    Started(i32),
    /// Agent → client: it could not be started, and why.
    Refused(String),
    /// The stream ends here: no more bytes come (from its writer), or none are wanted any more (stdin, from the agent).
    End(Stream),
    /// The receiver of a stream got rid of that many bytes.
    Credit(Stream, u32),
    /// Client → agent: send this signal to the command's process group.
    Signal(i32),
    /// Client → agent: the terminal's new size.
    Resize(Size),
    /// Broker → agent: the client is gone; kill what it started.
    Abandon,
    /// Agent → client: how it ended; after the last byte of its output.
    Ended(Ended),
    /// Client → broker: how is the lab?
    Status,
    /// Broker → client.
    Report(Report),
    /// Client → broker: end the lab now.
    Down,
    /// Client → broker: a newer lab replaces this one; end as soon as no command runs.
    Retire,
    /// Broker → agent: are you there?
    Ping,
    /// Agent → broker: yes.
    Pong,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The program and its arguments, as bytes: not every name is UTF-8.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it runs.
    pub directory: PathBuf,
    /// User, group and further groups.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// See `uid`.
    pub groups: Vec<u32>,
    /// A terminal of this size in place of three pipes.
    pub terminal: Option<Size>,
    /// `/dev/null` as stdin, in place of a stream.
    pub no_stdin: bool,
    /// The host's time, in nanoseconds since 1970: L1's clock starts with the whole second and runs as it can.
    pub now: u64,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
}

impl Ended {
    /// What a shell would show: the status, or 128 and the signal's number.
    pub fn code(self) -> u8 {
        match self {
            Ended::Exited(status) => status,
            Ended::Signalled(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// What the broker knows of its lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// QEMU's process id on the host.
    pub qemu: i32,
    /// The broker's.
    pub broker: i32,
    /// Milliseconds from the broker's start to the agent's hello.
    pub ready_ms: u64,
    /// Seconds since the broker's start.
    pub up_seconds: u64,
    /// Commands that run now.
    pub commands: u32,
    /// Commands that were started in all.
    pub started: u64,
    /// Where L1's console is logged.
    pub console: PathBuf,
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Not ours.
    #[error("a frame of the lab carries \"lab\" in its header, and this one {0:02x?}")]
    NotOurs([u8; 3]),
    /// Too long.
    #[error("a frame of {0} bytes was announced, and {MAX_PAYLOAD} is the most")]
    TooLong(usize),
    /// A kind that this version does not know, or a message that does not decode.
    #[error("a frame of kind {kind} and {length} bytes could not be decoded")]
    Malformed {
        /// The header's kind.
        kind: u8,
        /// The payload's length.
        length: usize,
    },
}

impl Frame {
    /// A message's frame.
    pub fn message(channel: u32, message: Message) -> Self {
        Frame { channel, payload: Payload::Message(message) }
    }

    /// A frame of stream data.
    pub fn data(channel: u32, stream: Stream, bytes: Vec<u8>) -> Self {
        Frame { channel, payload: Payload::Data(stream, bytes) }
    }

    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        let kind = match &self.payload {
            Payload::Message(message) => {
                let encoded =
                    postcard::to_allocvec(message).expect("messages hold nothing that postcard refuses");
                out.extend_from_slice(&encoded);
                0
            }
            Payload::Data(stream, bytes) => {
                out.extend_from_slice(bytes);
                1 + *stream as u8
            }
        };
        let length = (out.len() - start - HEADER) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4..start + 8].copy_from_slice(&self.channel.to_le_bytes());
        out[start + 8] = kind;
        out[start + 9..start + 12].copy_from_slice(&MAGIC);
    }
}

/// Takes frames out of bytes as they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` if more bytes are needed. After an error the connection is of no more use.
    ///
    /// Not an iterator: `None` is no end here.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        let rest = &self.bytes[self.taken..];
        let Some(&[l0, l1, l2, l3, c0, c1, c2, c3, kind, m0, m1, m2]) = rest.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if [m0, m1, m2] != MAGIC {
            return Err(WireError::NotOurs([m0, m1, m2]));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(WireError::TooLong(length));
        }
        let Some(bytes) = rest.get(HEADER..HEADER + length) else { return Ok(None) };
        let payload = match kind {
            0 => match postcard::take_from_bytes(bytes) {
                Ok((message, [])) => Payload::Message(message),
                _ => return Err(WireError::Malformed { kind, length }),
            },
            1 => Payload::Data(Stream::Stdin, bytes.to_vec()),
            2 => Payload::Data(Stream::Stdout, bytes.to_vec()),
            3 => Payload::Data(Stream::Stderr, bytes.to_vec()),
            _ => return Err(WireError::Malformed { kind, length }),
        };
        self.taken += HEADER + length;
        Ok(Some(Frame { channel: u32::from_le_bytes([c0, c1, c2, c3]), payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(parts: &[&[u8]]) -> Result<Vec<Frame>, WireError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for part in parts {
            decoder.extend(part);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn a_length_is_checked_before_anything_is_allocated_by_it() {
        let mut bytes = vec![0xff; 4];
        bytes.extend_from_slice(&[0, 0, 0, 0, 1]);
        bytes.extend_from_slice(b"lab");
        assert_eq!(decode_all(&[&bytes]), Err(WireError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn a_stranger_is_told_by_the_header() {
        assert_eq!(decode_all(&[b"GET / HTTP/1.1\r\n"]), Err(WireError::NotOurs(*b"P/1")));
    }

    #[test]
    fn codes_are_a_shells() {
        assert_eq!(Ended::Exited(255).code(), 255);
        assert_eq!(Ended::Signalled(9).code(), 137);
        assert_eq!(Ended::Signalled(6).code(), 134);
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            data in proptest::collection::vec((any::<u32>(), any::<Vec<u8>>(), 0u8..4), 0..8),
            cut in 1usize..50,
        ) {
            let frames: Vec<Frame> = data.into_iter().map(|(channel, bytes, kind)| match kind {
                0 => Frame::data(channel, Stream::Stdin, bytes),
                1 => Frame::data(channel, Stream::Stdout, bytes),
                2 => Frame::data(channel, Stream::Stderr, bytes),
                _ => Frame::message(channel, Message::Refused(format!("{bytes:?}"))),
            }).collect();
            let mut encoded = Vec::new();
            frames.iter().for_each(|f| f.encode(&mut encoded));
            let parts: Vec<&[u8]> = encoded.chunks(cut).collect();
            prop_assert_eq!(decode_all(&parts), Ok(frames));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode_all(&[&bytes]);
        }
    }
}
