//! A back end in this process, right or wrong, and what the device makes of it.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{Driver, MEMORY, Part};
use super::super::{EventLoop, lock, mmio};
use super::{BackendError, Fs, spec};

/// What a good one offers: virtio 1.0, rings' features, protocol features, and something that the device does not know.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26;

/// A message as it came in.
struct Message {
    request: u32,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    fn field(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.payload[at..at + 8].try_into().unwrap())
    }
}

type Heard = Arc<Mutex<Vec<Message>>>;

/// How it answers a request: with these bytes behind the header, or by hanging up.
type Answers = fn(u32) -> Option<u64>;

fn good(request: u32) -> Option<u64> {
    Some(match request {
        spec::GET_FEATURES => FEATURES,
        spec::GET_PROTOCOL_FEATURES => 0xffff,
        _ => 0,
    })
}

/// It answers until the other end hangs up, or it does, for all who have its end.
fn run(socket: UnixStream, answers: Answers, heard: &Heard) {
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

struct Test {
    driver: Driver,
    events: EventLoop,
    heard: Heard,
    /// A duplicate of the back end's end.
    end: UnixStream,
    thread: Option<JoinHandle<()>>,
}

fn memory() -> GuestMemoryMmap {
    crate::memory::map_shared(MEMORY >> 20, None).unwrap()
}

fn connect(
    answers: Answers,
    memory: &GuestMemoryMmap,
) -> Result<(Fs, EventLoop, Heard, UnixStream, JoinHandle<()>), BackendError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (heard, end) = (Heard::default(), theirs.try_clone().unwrap());
    let told = heard.clone();
    let thread = std::thread::spawn(move || run(theirs, answers, &told));
    let events = EventLoop::new().unwrap();
    let fs = Fs::connect("src", ours.into(), memory, events.clone())?;
    Ok((fs, events, heard, end, thread))
}

impl Test {
    fn new(answers: Answers) -> Self {
        let memory = memory();
        let (fs, events, heard, end, thread) = connect(answers, &memory).unwrap();
        let driver = Driver::with(memory, Box::new(fs));
        Self { driver, events, heard, end, thread: Some(thread) }
    }

    fn started(answers: Answers) -> Self {
        let mut test = Self::new(answers);
        test.driver.start(!(1 << 29));
        test
    }

    /// The back end is no more; all that was said to it has been heard.
    fn kill(&mut self) {
        self.end.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    fn requests(&self) -> Vec<u32> {
        lock(&self.heard).iter().map(|message| message.request).collect()
    }

    /// A request, as FUSE has it; gives where its answer will be.
    fn ask(&mut self, queue: usize, unique: u64) -> u64 {
        let mut header = [0; 40];
        header[8..16].copy_from_slice(&unique.to_le_bytes());
        let (_, places) = self.driver.add(queue, &[Part::Out(&header), Part::In(16), Part::In(100)]);
        self.driver.ring(queue);
        places[1]
    }

    fn is_refused(&self, at: u64, unique: u64) -> bool {
        let answer = self.driver.bytes(at, 16);
        answer[..4] == 16_u32.to_le_bytes()
            && answer[4..8] == (-libc::ENOTCONN).to_le_bytes()
            && answer[8..] == unique.to_le_bytes()
    }

    fn has_interrupt(&self) -> bool {
        let status = self.driver.read(mmio::INTERRUPT_STATUS);
        self.driver.write(mmio::INTERRUPT_ACK, status);
        status & mmio::INTERRUPT_USED_BUFFER != 0
    }
}

/// A queue as the back end was told of it.
fn queue(heard: &[Message], index: u64) -> Queue {
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

fn eventfd(message: &Message) -> std::fs::File {
    message.fds[0].try_clone().unwrap().into()
}

#[test]
fn a_back_end_is_told_all_that_it_needs() {
    let mut test = Test::started(good);
    let mut tag = [0; 8];
    crate::bus::Device::read(&test.driver.transport, mmio::CONFIG, &mut tag);
    assert_eq!((&tag, test.driver.read(mmio::CONFIG + 36)), (b"src\0\0\0\0\0", 1));
    test.ask(1, 5);
    // An answer to it shows that all before was heard.
    test.driver.write(mmio::STATUS, 0);
    let requests = test.requests();
    assert_eq!(requests[..5], [1, 15, 16, 3, 5]);
    assert_eq!(requests[5..], [2, 8, 10, 9, 13, 12, 8, 10, 9, 13, 12, 18, 18, 11, 11]);
    {
        let heard = lock(&test.heard);
        let features = heard.iter().find(|m| m.request == spec::SET_FEATURES).unwrap();
        assert_eq!(features.field(0), 1 << 32 | 1 << 30 | 1 << 28, "EVENT_IDX was not wanted");
        assert_eq!(heard[2].field(0), 1 << 3, "of the protocol's features, that answers are given");
        let table = &heard[4];
        assert_eq!((table.field(0), table.field(8), table.field(16), table.fds.len()), (1, 0, MEMORY, 1));
        let kick = heard.iter().rfind(|m| m.request == spec::SET_VRING_KICK).unwrap();
        assert!(eventfd(kick).read(&mut [0; 8]).is_err(), "what rang before the reset means nothing");
    }
    // And from the beginning again; now one request is worked on.
    test.driver.start(!(1 << 29));
    let at = test.ask(1, 6);
    test.driver.read(mmio::STATUS);
    while test.requests().len() < 32 {
        std::thread::yield_now();
    }
    let heard = std::mem::take(&mut *lock(&test.heard));
    let last = |request| heard.iter().rfind(|message| message.request == request).unwrap();
    let mut rung = [0; 8];
    eventfd(last(spec::SET_VRING_KICK)).read_exact(&mut rung).unwrap();
    assert_eq!(u64::from_le_bytes(rung), 1, "by the doorbell itself");
    let mut queue = queue(&heard, 1);
    let memory = test.driver.memory.clone();
    let chain = queue.pop_descriptor_chain(&memory).unwrap();
    memory.write_obj(77_u64, GuestAddress(at)).unwrap();
    queue.add_used(&memory, chain.head_index(), 8).unwrap();
    assert!(!test.has_interrupt());
    eventfd(last(spec::SET_VRING_CALL)).write_all(&1_u64.to_le_bytes()).unwrap();
    test.events.settle();
    assert!(test.has_interrupt() && !test.driver.needs_reset());
    assert_eq!(test.driver.used(1), [(0, 8)]);
}

#[test]
fn the_requests_of_one_that_died_end_as_errors() {
    let mut test = Test::started(good);
    let places = [test.ask(1, 10), test.ask(1, 11), test.ask(1, 12)];
    test.driver.add(0, &[Part::Out(&[0; 48])]);
    while !test.requests().ends_with(&[18, 18]) {
        std::thread::yield_now();
    }
    let mut queue = queue(&lock(&test.heard), 1);
    let memory = test.driver.memory.clone();
    let (first, second) =
        (queue.pop_descriptor_chain(&memory).unwrap(), queue.pop_descriptor_chain(&memory).unwrap());
    memory.write_slice(&[9; 16], GuestAddress(places[0])).unwrap();
    queue.add_used(&memory, first.head_index(), 16).unwrap();
    test.kill();
    test.events.settle();
    assert!(test.has_interrupt());
    let heads: Vec<u16> = test.driver.used(1).iter().map(|used| used.0).collect();
    assert_eq!(heads, [first.head_index(), second.head_index(), 6]);
    assert_eq!(test.driver.bytes(places[0], 16), [9; 16], "what it had answered stays");
    assert!(test.is_refused(places[1], 11) && test.is_refused(places[2], 12));
    assert_eq!(test.driver.used(0), [(0, 0)], "what has no answer is given back");
    // What comes later, too; and after a reset.
    for start in [false, true] {
        if start {
            test.driver.write(mmio::STATUS, 0);
            test.driver.start(u64::MAX);
            test.events.settle();
        }
        let at = test.ask(1, 13);
        test.events.settle();
        assert!(test.has_interrupt() && test.is_refused(at, 13), "{start}");
    }
}

#[test]
fn one_that_left_nonsense_behind_stops_the_queue_only() {
    let mut test = Test::started(good);
    test.ask(1, 1);
    test.driver.memory.write_obj(500_u16, GuestAddress(0x2_c002)).unwrap();
    test.kill();
    test.events.settle();
    assert!(test.driver.needs_reset());
    test.driver.write(mmio::STATUS, 0);
    assert!(!test.driver.needs_reset());
}

#[test]
fn one_that_does_not_stop_as_it_is_told_is_given_up() {
    let answers: Answers = |request| if request == spec::GET_VRING_BASE { Some(7) } else { good(request) };
    let mut test = Test::started(answers);
    test.driver.write(mmio::STATUS, 0);
    test.driver.start(!0);
    test.events.settle();
    let at = test.ask(1, 2);
    test.events.settle();
    assert!(test.is_refused(at, 2));
}

#[test]
fn one_that_lies_from_the_beginning_is_no_back_end() {
    let memory = memory();
    let refused = |answers: Answers| connect(answers, &memory).map(drop).unwrap_err().to_string();
    assert_eq!(refused(|_| None), "it has ended");
    assert_eq!(refused(|request| good(request).filter(|_| request != spec::SET_MEM_TABLE)), "it has ended");
    assert!(refused(|_| Some(1 << 30)).contains("lacks virtio 1.0's"));
    assert!(refused(|_| Some(u64::MAX)).contains("answer to request 1"));
    assert!(
        refused(|r| if r == spec::SET_MEM_TABLE { Some(3) } else { good(r) })
            .contains("refused guest memory")
    );
    let private = crate::memory::map(MEMORY >> 20, None).unwrap();
    assert!(matches!(connect(good, &private).map(drop), Err(BackendError::Memory)));
    let file = tempfile::tempfile().unwrap();
    let none = Fs::connect("x", file.into(), &memory, EventLoop::new().unwrap());
    assert!(matches!(none.map(drop), Err(BackendError::NotAStream)));
}
