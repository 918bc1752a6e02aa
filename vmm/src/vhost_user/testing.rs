//! A back end in this process, right or wrong, for tests.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use virtio_queue::{Queue, QueueT};

use super::spec;
use crate::virtio::lock;

/// What a good one offers: virtio 1.0, rings' features, protocol features, and something that the device does not know.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26;

/// A message as it came in.
pub(crate) struct Message {
    pub(crate) request: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn field(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.payload[at..at + 8].try_into().unwrap())
    }
}

pub(crate) type Heard = Arc<Mutex<Vec<Message>>>;

/// How it answers a request: with these bytes behind the header, or by hanging up.
pub(crate) type Answers = fn(u32) -> Option<u64>;

pub(crate) fn good(request: u32) -> Option<u64> {
    Some(match request {
        spec::GET_FEATURES => FEATURES,
        spec::GET_PROTOCOL_FEATURES => 0xffff,
        _ => 0,
    })
}

/// It answers until the other end hangs up, or it does, for all who have its end.
pub(crate) fn run(socket: UnixStream, answers: Answers, heard: &Heard) {
    let end = socket.try_clone().unwrap();
    answer_all(socket, answers, heard);
    let _ = end.shutdown(std::net::Shutdown::Both);
}

fn answer_all(mut socket: UnixStream, answers: Answers, heard: &Heard) {
    let mut queue_index = 0;
    loop {
        let mut header = [0; spec::HEADER_LENGTH];
        let mut fds = Vec::new();
        {
            let mut space = nix::cmsg_space!([i32; 8]);
            let mut bytes = [IoSliceMut::new(&mut header)];
            let got = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut space), MsgFlags::empty());
            let Ok(got) = got else { return };
            if got.bytes != spec::HEADER_LENGTH {
                return;
            }
            for message in got.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags) = (word(0), word(4));
        let mut payload = vec![0; word(8) as usize];
        socket.read_exact(&mut payload).unwrap();
        if request == spec::GET_VRING_BASE {
            queue_index = u64::from(payload[0]);
        }
        lock(heard).push(Message {
            request,
            payload,
            fds: fds.into_iter().map(crate::descriptor::adopt).collect(),
        });
        let asks = matches!(request, spec::GET_FEATURES | spec::GET_PROTOCOL_FEATURES | spec::GET_VRING_BASE);
        if asks || flags & spec::NEED_REPLY != 0 {
            let Some(value) = answers(request) else { return };
            let value = if request == spec::GET_VRING_BASE { value + queue_index } else { value };
            let mut answer = Vec::new();
            // A request that is none, to be told apart.
            let repeated = if value == u64::MAX { 99 } else { request };
            for field in [repeated, spec::VERSION | spec::REPLY, 8] {
                answer.extend(field.to_le_bytes());
            }
            answer.extend(value.to_le_bytes());
            socket.write_all(&answer).unwrap();
        }
    }
}

/// A queue as the back end was told of it.
pub(crate) fn queue(heard: &[Message], index: u64) -> Queue {
    let of = |request| {
        let mut all = heard.iter().rev();
        all.find(|m| m.request == request && m.field(0) & 0xff == index).unwrap()
    };
    let mut queue = Queue::new(1024).unwrap();
    queue.set_size((of(spec::SET_VRING_NUM).field(0) >> 32) as u16);
    let address = of(spec::SET_VRING_ADDR);
    let set = |at| (Some(address.field(at) as u32), Some((address.field(at) >> 32) as u32));
    let (low, high) = set(8);
    queue.set_desc_table_address(low, high);
    let (low, high) = set(16);
    queue.set_used_ring_address(low, high);
    let (low, high) = set(24);
    queue.set_avail_ring_address(low, high);
    queue.set_ready(true);
    queue
}

pub(crate) fn eventfd(message: &Message) -> std::fs::File {
    message.fds[0].try_clone().unwrap().into()
}
