//! The back end, as this end of its socket sees it: vhost-user's messages, as few of them as virtiofsd needs.
//!
//! Each has a limit of time: a process that does not answer costs a moment, and is given up. (The crate `vhost` goes round
//! without waiting when a socket's time is up.) Answers are read without room for descriptors, so that none can be smuggled in.
//!
//! The back end finds rings by addresses of "the front end's": guest physical ones, so that it does not learn where the VMM's
//! memory lies.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, sockopt};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::spec;
use crate::virtio::queue::Rings;

/// How long it may take to start: it makes its sandbox first.
const START: Duration = Duration::from_secs(30);
/// How long a message may take afterwards. It has a request to end before it lets go of a queue.
const ANSWER: Duration = Duration::from_secs(5);

/// Why a back end is of no use, or no more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The descriptor is no connected stream socket.
    #[error("its descriptor is not that of a stream socket")]
    NotAStream,
    /// Guest memory cannot be given to it.
    #[error("guest memory is not shared, or has more than {} regions", spec::REGIONS_MAX)]
    Memory,
    /// The socket was closed, or nothing came in time.
    #[error("it does not answer: {0}")]
    Silent(Errno),
    /// It has closed the socket.
    #[error("it has ended")]
    Ended,
    /// It answered something else than what it was asked.
    #[error("its answer to request {request} is none of vhost-user's")]
    Answer {
        /// What it was asked.
        request: u32,
    },
    /// It cannot do what is needed.
    #[error("it offers features {0:#x}, and lacks virtio 1.0's")]
    Features(u64),
    /// It says that it cannot map guest memory.
    #[error("it refused guest memory (its status {0})")]
    Refused(u64),
}

/// A process at the other end of a socket, that has guest memory.
#[derive(Debug)]
pub struct Backend {
    socket: UnixStream,
    features: u64,
}

impl Backend {
    /// Gives guest memory to the process, and asks what it can do.
    ///
    /// # Errors
    /// It does not answer, or not as it must.
    pub fn connect(socket: OwnedFd, memory: &GuestMemoryMmap) -> Result<Self, BackendError> {
        if getsockopt(&socket, sockopt::SockType) != Ok(SockType::Stream) {
            return Err(BackendError::NotAStream);
        }
        let socket = UnixStream::from(socket);
        let limit = |time| {
            let set = socket.set_read_timeout(Some(time)).and_then(|()| socket.set_write_timeout(Some(time)));
            set.and_then(|()| socket.set_nonblocking(false)).map_err(|_| BackendError::NotAStream)
        };
        limit(START)?;
        let mut backend =
            Self { socket: socket.try_clone().map_err(|_| BackendError::NotAStream)?, features: 0 };
        backend.greet(memory)?;
        limit(ANSWER)?;
        Ok(backend)
    }

    fn greet(&mut self, memory: &GuestMemoryMmap) -> Result<(), BackendError> {
        self.send(spec::GET_FEATURES, 0, &[], &[])?;
        self.features = self.answer(spec::GET_FEATURES)?;
        if self.features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(BackendError::Features(self.features));
        }
        let mut acknowledges = false;
        if self.features & spec::F_PROTOCOL != 0 {
            self.send(spec::GET_PROTOCOL_FEATURES, 0, &[], &[])?;
            let wanted = self.answer(spec::GET_PROTOCOL_FEATURES)? & spec::P_REPLY_ACK;
            self.send(spec::SET_PROTOCOL_FEATURES, 0, &wanted.to_le_bytes(), &[])?;
            acknowledges = wanted != 0;
        }
        self.send(spec::SET_OWNER, 0, &[], &[])?;
        let (table, files) = table(memory).ok_or(BackendError::Memory)?;
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let flags = if acknowledges { spec::NEED_REPLY } else { 0 };
        self.send(spec::SET_MEM_TABLE, flags, &table, &fds)?;
        match if acknowledges { self.answer(spec::SET_MEM_TABLE)? } else { 0 } {
            0 => Ok(()),
            status => Err(BackendError::Refused(status)),
        }
    }

    /// What it offers.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Becomes readable when it has ended.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// From now on it works on the queues: index, rings, the event that rings when there is something in it, and the one to
    /// ring when something was given back.
    ///
    /// # Errors
    /// It is gone.
    pub fn start(
        &mut self,
        features: u64,
        queues: &[(u32, Rings, &dyn AsRawFd, &dyn AsRawFd)],
    ) -> Result<(), BackendError> {
        let features = features | self.features & spec::F_PROTOCOL;
        self.send(spec::SET_FEATURES, 0, &features.to_le_bytes(), &[])?;
        for (index, rings, kick, call) in queues {
            self.send(spec::SET_VRING_NUM, 0, &state(*index, rings.size.into()), &[])?;
            self.send(spec::SET_VRING_BASE, 0, &state(*index, 0), &[])?;
            let mut address = state(*index, 0);
            for field in [rings.descriptors, rings.used, rings.available, 0] {
                address.extend(field.to_le_bytes());
            }
            self.send(spec::SET_VRING_ADDR, 0, &address, &[])?;
            // The kick starts the queue, so that it comes last.
            let event = u64::from(*index).to_le_bytes();
            self.send(spec::SET_VRING_CALL, 0, &event, &[call.as_raw_fd()])?;
            self.send(spec::SET_VRING_KICK, 0, &event, &[kick.as_raw_fd()])?;
        }
        if self.features & spec::F_PROTOCOL != 0 {
            for (index, ..) in queues {
                self.send(spec::SET_VRING_ENABLE, 0, &state(*index, 1), &[])?;
            }
        }
        Ok(())
    }

    /// It lets go of a queue: when this returns without an error, it has.
    ///
    /// # Errors
    /// It is gone, or does not say so in time.
    pub fn stop(&mut self, index: u32) -> Result<(), BackendError> {
        self.send(spec::GET_VRING_BASE, 0, &state(index, 0), &[])?;
        // Where it had come to is of no interest to a driver that begins anew.
        match self.answer(spec::GET_VRING_BASE)? as u32 {
            answered if answered == index => Ok(()),
            _ => Err(BackendError::Answer { request: spec::GET_VRING_BASE }),
        }
    }

    /// It has no more to say, and hears no more.
    pub fn hang_up(&self) {
        // It may have done so first.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<(), BackendError> {
        let mut message = Vec::with_capacity(spec::HEADER_LENGTH + payload.len());
        for field in [request, spec::VERSION | flags, payload.len() as u32] {
            message.extend(field.to_le_bytes());
        }
        message.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let mut rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let mut rest = &message[..];
        while !rest.is_empty() {
            let (fd, bytes) = (self.socket.as_raw_fd(), [IoSlice::new(rest)]);
            match sendmsg::<()>(fd, &bytes, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    rights = &[];
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(BackendError::Ended),
                Err(errno) => return Err(BackendError::Silent(errno)),
            }
        }
        Ok(())
    }

    /// The eight bytes of an answer.
    fn answer(&self, request: u32) -> Result<u64, BackendError> {
        let mut message = [0; spec::HEADER_LENGTH + 8];
        let mut done = 0;
        while done < message.len() {
            match nix::unistd::read(&self.socket, &mut message[done..]) {
                Ok(0) => return Err(BackendError::Ended),
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Err(BackendError::Ended),
                Err(errno) => return Err(BackendError::Silent(errno)),
            }
        }
        let mut expected = [0; spec::HEADER_LENGTH];
        for (field, value) in expected.chunks_exact_mut(4).zip([request, spec::VERSION | spec::REPLY, 8_u32])
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let (header, value) = message.split_at(spec::HEADER_LENGTH);
        match value.try_into() {
            // Whether it wanted an answer in turn (bit 3) is of no interest.
            Ok(value) if is_same(header, &expected) => Ok(u64::from_le_bytes(value)),
            _ => Err(BackendError::Answer { request }),
        }
    }
}

/// But for the bit by which an answer is wanted, which some repeat.
fn is_same(header: &[u8], expected: &[u8]) -> bool {
    header.iter().zip(expected).enumerate().all(|(at, (one, other))| match at {
        4 => one & !(spec::NEED_REPLY as u8) == *other,
        _ => one == other,
    })
}

/// struct vhost_vring_state.
fn state(index: u32, value: u32) -> Vec<u8> {
    [index.to_le_bytes(), value.to_le_bytes()].concat()
}

/// Where guest memory is, and the files that it is of, a region each.
fn table(memory: &GuestMemoryMmap) -> Option<(Vec<u8>, Vec<&File>)> {
    let regions = memory.num_regions();
    let mut table = state(u32::try_from(regions).ok().filter(|_| regions <= spec::REGIONS_MAX)?, 0);
    let mut files = Vec::new();
    for region in memory.iter() {
        let backing = region.file_offset()?;
        let address = region.start_addr().0;
        for field in [address, region.len(), address, backing.start()] {
            table.extend(field.to_le_bytes());
        }
        files.push(backing.file());
    }
    Some((table, files))
}
