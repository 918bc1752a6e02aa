//! The control socket: how whoever started the VMM talks to it while the machine runs.
//!
//! It is an inherited stream socket ([`MachineConfig::control_fd`](crate::MachineConfig::control_fd)). Each message is one
//! JSON object on a line of its own. [`Request`]s come in, [`Message`]s go out: replies, which carry the request's number, and events.
//! A disk to attach, or where the network goes, comes as a file descriptor (SCM_RIGHTS) beside its request's bytes; the VMM
//! opens no file itself.
//! When the peer closes the socket the machine runs on.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::descriptor::{adopt, borrow};
use crate::end::End;
use crate::vcpu::Exits;

/// Something asked of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the asker; the reply carries it.
    pub id: u64,
    /// What to do.
    #[serde(rename = "do")]
    pub action: Action,
}

/// What can be asked of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The file descriptor that comes along becomes a logical unit of the SCSI controller. The open file, which the sender
    /// may still have, is read and written directly (O_DIRECT) from then on, if it can be and `page_cache` is off.
    Attach {
        /// Its number, 0 to 255.
        lun: u16,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// A logical unit goes away. The guest should have deleted its device first.
    Detach {
        /// Its number.
        lun: u16,
    },
    /// The file descriptor that comes along is where the network card's cable goes from now on: a connected stream socket, or
    /// a TAP device if the card was made with one.
    Link,
    /// The balloon is to be this large.
    Balloon {
        /// MiB that the guest is to give up.
        mib: u64,
    },
    /// The guest is to have so much memory: that of the boot, and what is plugged.
    Memory {
        /// MiB, from the configuration's `memory_mib` to its `max_memory_mib`.
        mib: u64,
    },
    /// Says how the machine is ([`Statistics`]).
    Statistics,
    /// Ends the machine at once, without asking the guest.
    Stop,
}

/// Something the VMM says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// Something happened.
    Event {
        /// What.
        event: Event,
    },
    /// A request was carried out.
    Done {
        /// The request's number.
        id: u64,
        /// What came of it: `null`, or [`Statistics`].
        ok: serde_json::Value,
    },
    /// A request was not carried out.
    Failed {
        /// The request's number; 0 if it could not be read.
        id: u64,
        /// Why.
        error: String,
    },
}

/// What happens without being asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs run.
    Started(Started),
    /// The machine is no more; the VMM exits.
    Ended(Ended),
}

/// When what was reached, in nanoseconds of CLOCK_REALTIME.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The VMM's `main` began (in a library: [`Machine::new`](crate::Machine::new) was called).
    pub process: u64,
    /// KVM has made the VM, and memory is mapped.
    pub vm: u64,
    /// Kernel, initramfs and tables are in guest memory.
    pub kernel: u64,
    /// The first vCPU is about to run.
    pub vcpu: u64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// How often the vCPUs left the guest, all together.
    pub exits: Exits,
}

/// How the machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// How often the vCPUs have left the guest, all together.
    pub exits: Exits,
    /// Each vCPU's share, by number.
    pub vcpus: Vec<Exits>,
    /// Its memory.
    pub memory: Memory,
    /// Writes and flushes that its disks have carried out.
    pub disk_writes: u64,
}

/// The guest's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What it had at boot, and keeps.
    pub boot: u64,
    /// What it has plugged besides.
    pub plugged: u64,
    /// What it is to have plugged; it gets there as far as it can, in its own time.
    pub requested: u64,
}

/// A line longer than this is no request.
const LINE_MAX: usize = 4096;
/// File descriptors that may wait for their request.
const DESCRIPTORS_MAX: usize = 16;

/// The VMM's end of the socket.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
    pending: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// Why the control socket cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor is not an open stream socket.
    #[error("control_fd {fd} is not an inherited stream socket")]
    NotASocket {
        /// The descriptor.
        fd: RawFd,
    },
    /// The peer has closed it.
    #[error("the control socket was closed")]
    Closed,
    /// The peer sent a line without end.
    #[error("more than 4096 bytes without a line's end came over the control socket")]
    TooLong,
    /// Reading or writing failed.
    #[error("the control socket")]
    Io(#[from] io::Error),
}

impl Control {
    /// Takes over the inherited descriptor `fd`.
    ///
    /// # Errors
    /// It is not a stream socket.
    pub fn from_fd(fd: RawFd) -> Result<Self, Error> {
        let socket = inherited(fd).ok_or(Error::NotASocket { fd })?;
        Ok(Self::new(UnixStream::from(socket)))
    }

    /// Speaks over `socket`.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, pending: Vec::new(), descriptors: VecDeque::new() }
    }

    /// The descriptor to poll for reading.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Says something.
    ///
    /// # Errors
    /// The peer does not read any more.
    pub fn send(&self, message: &Message) -> Result<(), Error> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::from)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            // Not write(2): without MSG_NOSIGNAL a peer that has gone ends the process.
            let sent = nix::sys::socket::send(self.socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL)
                .map_err(io::Error::from)?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Reads what is there: the requests that are complete, or what to answer to lines that are none.
    ///
    /// # Errors
    /// The peer has closed the socket, or keeps to no lines.
    pub fn receive(&mut self) -> Result<Vec<Result<Request, Message>>, Error> {
        let mut bytes = [0; LINE_MAX];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let count = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags)
                .map_err(io::Error::from)?;
            for part in message.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(descriptors) = part {
                    self.descriptors.extend(descriptors.into_iter().map(adopt));
                }
            }
            message.bytes
        };
        self.descriptors.truncate(DESCRIPTORS_MAX);
        if count == 0 {
            return Err(Error::Closed);
        }
        self.pending.extend_from_slice(&bytes[..count]);
        let mut requests = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            requests.push(serde_json::from_slice(&line).map_err(|error| Message::Failed {
                id: 0,
                error: format!(
                    "not a request (one JSON object a line, see undercroft_vmm::control): {error}"
                ),
            }));
        }
        if self.pending.len() > LINE_MAX {
            return Err(Error::TooLong);
        }
        Ok(requests)
    }

    /// The file descriptor that came with the earliest request whose descriptor was not taken yet.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

/// Takes ownership of an inherited stream socket; nothing if `fd` is none.
fn inherited(fd: RawFd) -> Option<OwnedFd> {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    let is_open = nix::fcntl::fcntl(borrow(fd)?, nix::fcntl::FcntlArg::F_GETFD).is_ok();
    let kind = getsockopt(&borrow(fd)?, sockopt::SockType).ok();
    (is_open && kind == Some(SockType::Stream)).then(|| adopt(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn requests_and_messages_have_the_documented_form() {
        let request: Request =
            serde_json::from_str(r#"{"id":1,"do":{"attach":{"lun":3,"read_only":false}}}"#).unwrap();
        assert_eq!(request.action, Action::Attach { lun: 3, read_only: false });
        let request: Request = serde_json::from_str(r#"{"id":2,"do":"stop"}"#).unwrap();
        assert_eq!(request.action, Action::Stop);
        let request: Request = serde_json::from_str(r#"{"id":3,"do":"link"}"#).unwrap();
        assert_eq!(request.action, Action::Link);
        let ended = Ended { end: End::PowerOff, exits: Exits::default() };
        let text = serde_json::to_string(&Message::Event { event: Event::Ended(ended.clone()) }).unwrap();
        assert!(text.starts_with(r#"{"event":{"ended":{"end":"power_off","exits":{"io_in":0"#), "{text}");
        let back: Message = serde_json::from_str(&text).unwrap();
        assert_eq!(back, Message::Event { event: Event::Ended(ended) });
        let failed: Message = serde_json::from_str(r#"{"id":4,"error":"no"}"#).unwrap();
        assert_eq!(failed, Message::Failed { id: 4, error: "no".into() });
        let done: Message = serde_json::from_str(r#"{"id":4,"ok":null}"#).unwrap();
        assert_eq!(done, Message::Done { id: 4, ok: serde_json::Value::Null });
    }

    #[test]
    fn a_descriptor_comes_with_its_request() {
        use nix::sys::socket::{ControlMessage, sendmsg};
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours);
        let file = tempfile::tempfile().unwrap();
        let line = b"{\"id\":1,\"do\":{\"attach\":{\"lun\":0,\"read_only\":true}}}\nnonsense\n";
        let fds = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(theirs.as_raw_fd(), &[io::IoSlice::new(line)], &rights, MsgFlags::empty(), None)
            .unwrap();
        let requests = control.receive().unwrap();
        assert!(matches!(requests[0], Ok(Request { id: 1, .. })));
        assert!(matches!(requests[1], Err(Message::Failed { id: 0, .. })));
        assert!(control.descriptor().is_some());
        assert!(control.descriptor().is_none());
        control.send(&Message::Done { id: 1, ok: serde_json::Value::Null }).unwrap();
        let mut reply = String::new();
        BufReader::new(&theirs).read_line(&mut reply).unwrap();
        assert_eq!(reply, "{\"id\":1,\"ok\":null}\n");
        (&theirs).write_all(&[b'x'; 3000]).unwrap();
        assert!(control.receive().unwrap().is_empty());
        (&theirs).write_all(&[b'x'; 3000]).unwrap();
        assert!(matches!(control.receive(), Err(Error::TooLong)));
        drop(theirs);
    }
}
