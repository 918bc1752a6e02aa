//! A back end in this process, right or wrong, and what the device makes of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::testing::{Driver, MEMORY, Part};
use super::super::{EventLoop, lock, mmio};
use super::Fs;
use crate::vhost_user::testing::{Answers, Heard, eventfd, good, queue, run};
use crate::vhost_user::{BackendError, spec};

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
