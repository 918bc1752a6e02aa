//! A folder for a distribution that runs already: FUSE's messages come by a stream, and go to a virtiofsd as a guest's would.
//!
//! The VMM's devices are counted when it starts, and its memory may be its own. So the server is given memory of this
//! process's, with a queue in it ([`Driver`]), and a thread here carries each message from the stream into that memory and each
//! answer back. What a message is, only its sender and the server know; its length is looked at.

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use undercroft_protocol::command::{FUSE_MESSAGE_MAX, FUSE_PAYLOAD_MAX};
use undercroft_vmm::vhost_user::{Driver, DriverError};
use vm_memory::{
    Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile, bitmap::BitmapSlice,
};

/// Bytes of a request's header (linux/fuse.h, struct fuse_in_header), which begins with the request's length.
const REQUEST: usize = 40;
/// Bytes of an answer's (struct fuse_out_header), which begins with the answer's.
const ANSWER: usize = 16;

/// Reading a file (FUSE_READ), and where such a request has its size. virtiofsd takes the room that it is given for the answer for
/// what was asked for.
const READ: usize = 15;
const READ_SIZE: usize = REQUEST + 16;
/// The first request (FUSE_INIT), and where its answer has the most bytes of a write and the most pages of any.
const INIT: usize = 26;
const MAX_WRITE: usize = ANSWER + 20;
const MAX_PAGES: usize = ANSWER + 28;

/// Why there are no more messages.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The stream has ended: the folder was unmounted, most likely with its distribution.
    #[error("it was unmounted")]
    Stream,
    /// The server has ended.
    #[error("its server has ended")]
    Server,
    /// A request has a length that none can have.
    #[error("a request of {0} bytes came, where {REQUEST} to {FUSE_MESSAGE_MAX} can be")]
    Request(usize),
    /// An answer does not say its own length.
    #[error("its server's answer of {is} bytes says that it has {says}")]
    Answer {
        /// What was written.
        is: usize,
        /// What it says.
        says: usize,
    },
    /// The server breaks the rules of queues.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The kernel refused something.
    #[error("its messages cannot be waited for: {0}")]
    System(#[from] Errno),
}

impl From<io::Error> for End {
    /// Whatever a stream's error is, it has no more.
    fn from(_: io::Error) -> Self {
        Self::Stream
    }
}

impl From<VolatileMemoryError> for End {
    fn from(_: VolatileMemoryError) -> Self {
        Self::Stream
    }
}

/// Carries messages until one side has no more.
pub(super) fn carry(driver: Driver, stream: &UnixStream) -> End {
    let mut carrier = Carrier { driver, stream, beginning: None };
    loop {
        if let Err(end) = carrier.turn() {
            return end;
        }
    }
}

struct Carrier<'a> {
    driver: Driver,
    stream: &'a UnixStream,
    /// The number of the request by which kernel and server agree on what they can (FUSE_INIT).
    beginning: Option<u64>,
}

impl Carrier<'_> {
    /// Waits for something, and does it.
    fn turn(&mut self) -> Result<(), End> {
        let has_room = self.driver.has_room();
        let [answered, gone, asked] = {
            let wanted = if has_room { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(self.driver.answers(), PollFlags::POLLIN),
                // Nothing but its end (POLLHUP).
                PollFd::new(self.driver.socket(), PollFlags::empty()),
                PollFd::new(self.stream.as_fd(), wanted),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => return Ok(()),
                polled => polled?,
            };
            fds.map(|fd| fd.any().unwrap_or(true))
        };
        if answered {
            self.answer_all()?;
        }
        if gone {
            return Err(End::Server);
        }
        match asked {
            true if has_room => self.ask(),
            // Without room nothing but its end is asked for.
            true => Err(End::Stream),
            false => Ok(()),
        }
    }

    /// One request, from the stream to the server.
    fn ask(&mut self) -> Result<(), End> {
        let Some(slot) = self.driver.slot() else { return Ok(()) };
        let mut header = [0; REQUEST];
        self.stream.read_exact(&mut header)?;
        let (length, opcode) = (word(&header), word(&header[4..]));
        if !(REQUEST..=FUSE_MESSAGE_MAX).contains(&length) {
            return Err(End::Request(length));
        }
        let room = self.driver.request(&slot, length)?;
        let (first, mut rest) = room.split_at(REQUEST).map_err(|_| End::Request(length))?;
        first.copy_from(&header[..]);
        self.stream.read_exact_volatile(&mut rest)?;
        let answer = if opcode == READ { read_answer(&room) } else { FUSE_MESSAGE_MAX };
        if opcode == INIT {
            self.beginning = Some(unique(&header));
        }
        Ok(self.driver.submit(slot, length, answer)?)
    }

    /// What the server has answered, to the stream. Some requests have no answer (FUSE_FORGET), and are only given back.
    fn answer_all(&mut self) -> Result<(), End> {
        while let Some(answer) = self.driver.answered()? {
            let bytes = self.driver.answer(&answer);
            if answer.length > 0 {
                let mut header = [0; ANSWER];
                let said = bytes.copy_to(&mut header[..]);
                let says = word(&header);
                if said < ANSWER || says != answer.length {
                    return Err(End::Answer { is: answer.length, says });
                }
                if self.beginning == Some(unique(&header)) {
                    self.beginning = None;
                    limit(&bytes);
                }
                self.stream.write_all_volatile(&bytes)?;
            }
            self.driver.done(answer);
        }
        Ok(())
    }
}

/// Makes what the server allows in one message no more than there is room for (struct fuse_init_out). What is too short to say
/// it is an error, or of a FUSE that has 32 pages at most.
fn limit<B: BitmapSlice>(answer: &VolatileSlice<'_, B>) {
    if let Ok(bytes) = answer.read_obj::<u32>(MAX_WRITE) {
        let _ = answer.write_obj(bytes.min(FUSE_PAYLOAD_MAX as u32), MAX_WRITE);
    }
    if let Ok(pages) = answer.read_obj::<u16>(MAX_PAGES) {
        let _ = answer.write_obj(pages.min((FUSE_PAYLOAD_MAX / 4096) as u16), MAX_PAGES);
    }
}

/// A request's number, which its answer has too, at the same place.
fn unique(header: &[u8]) -> u64 {
    header.get(8..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// How long the answer to a read can be (struct fuse_read_in: the size is its third field).
fn read_answer<B: BitmapSlice>(request: &VolatileSlice<'_, B>) -> usize {
    let size = request.read_obj::<u32>(READ_SIZE).unwrap_or_default();
    (ANSWER + size as usize).min(FUSE_MESSAGE_MAX)
}

/// The length that a message begins with; or another word of it.
fn word(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread::JoinHandle};

    use super::*;

    /// A driver whose back end agrees to everything and answers nothing; it ends with its socket, or when what this gives is told
    /// to.
    fn driver() -> (Driver, UnixStream, JoinHandle<io::Result<()>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let end = theirs.try_clone().unwrap();
        let agree = move || loop {
            let mut header = [0_u8; 12];
            theirs.read_exact(&mut header)?;
            let [request, flags, length] = [0, 4, 8].map(|at| word(&header[at..]));
            theirs.read_exact(&mut vec![0; length])?;
            // GET_FEATURES is answered by virtio 1.0's alone; an answer has version 1 and the bit of answers.
            if request == 1 || flags & 8 != 0 {
                let answer =
                    [&header[..4], &5_u32.to_le_bytes(), &8_u32.to_le_bytes(), &(1_u64 << 32).to_le_bytes()];
                theirs.write_all(&answer.concat())?;
            }
        };
        let thread = std::thread::spawn(agree);
        (Driver::connect(ours.into(), FUSE_MESSAGE_MAX).unwrap(), end, thread)
    }

    fn request(length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length.clamp(40, 4096) as usize];
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    #[test]
    fn what_comes_by_the_stream_is_looked_at() {
        for (bytes, end) in [
            (Vec::new(), "it was unmounted"),
            (request(40)[..39].to_vec(), "it was unmounted"),
            (request(5000), "it was unmounted"),
            (request(39), "a request of 39 bytes came, where 40 to 135168 can be"),
            (
                request(FUSE_MESSAGE_MAX as u32 + 1),
                "a request of 135169 bytes came, where 40 to 135168 can be",
            ),
            // One that is right before one that is not; and more than are taken at a time, which end with the stream.
            ([request(4096), request(0)].concat(), "a request of 0 bytes came, where 40 to 135168 can be"),
            (request(40).repeat(40), "it was unmounted"),
        ] {
            let (driver, _end, server) = driver();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            assert_eq!(carry(driver, &ours).to_string(), end);
            assert!(server.join().unwrap().is_err(), "it was hung up on");
        }
    }

    #[test]
    fn what_is_agreed_on_is_no_more_than_there_is_room_for() {
        let of = |write: u32, pages: u16, length: usize| {
            let mut bytes = [9; 80];
            bytes[MAX_WRITE..MAX_WRITE + 4].copy_from_slice(&write.to_le_bytes());
            bytes[MAX_PAGES..MAX_PAGES + 2].copy_from_slice(&pages.to_le_bytes());
            limit(&VolatileSlice::from(&mut bytes[..length]));
            (word(&bytes[MAX_WRITE..]), u16::from_le_bytes([bytes[MAX_PAGES], bytes[MAX_PAGES + 1]]))
        };
        assert_eq!(of(1 << 20, 256, 80), (128 << 10, 32));
        assert_eq!(of(4096, 1, 80), (4096, 1));
        // An error.
        assert_eq!(of(1 << 20, 256, ANSWER), (1 << 20, 256));
    }

    #[test]
    fn the_servers_end_is_the_folders() {
        let (driver, end, server) = driver();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        end.shutdown(std::net::Shutdown::Both).unwrap();
        drop(end);
        let _ = server.join();
        assert!(matches!(carry(driver, &ours), End::Server));
    }
}
