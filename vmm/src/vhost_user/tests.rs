//! What is made of back ends, right and wrong, by who has no guest.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::testing::{Answers, Heard, eventfd, good, queue, run};
use super::{Backend, BackendError, Driver, DriverError, spec};
use crate::memory;
use crate::virtio::lock;

/// The end of a socket at whose other end is one.
fn back_end(answers: Answers) -> (UnixStream, Heard, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let heard = Heard::default();
    let told = heard.clone();
    (ours, heard, std::thread::spawn(move || run(theirs, answers, &told)))
}

#[test]
fn one_that_lies_from_the_beginning_is_no_back_end() {
    let memory = memory::map_shared(8, None).unwrap();
    let connect = |answers, memory: &GuestMemoryMmap| Backend::connect(back_end(answers).0.into(), memory);
    let refused = |answers: Answers| connect(answers, &memory).unwrap_err().to_string();
    assert_eq!(refused(|_| None), "it has ended");
    assert_eq!(refused(|request| good(request).filter(|_| request != spec::SET_MEM_TABLE)), "it has ended");
    assert!(refused(|_| Some(1 << 30)).contains("lacks virtio 1.0's"));
    assert!(refused(|_| Some(u64::MAX)).contains("answer to request 1"));
    assert!(
        refused(|r| if r == spec::SET_MEM_TABLE { Some(3) } else { good(r) })
            .contains("refused guest memory")
    );
    let private = memory::map(8, None).unwrap();
    assert!(matches!(connect(good, &private), Err(BackendError::Memory)));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Backend::connect(file.into(), &memory), Err(BackendError::NotAStream)));
}

/// A driver, and the back end's view of its requests: memory and queue.
struct Test {
    driver: Driver,
    heard: Heard,
    memory: GuestMemoryMmap,
    queue: Queue,
}

impl Test {
    fn new() -> Self {
        let (socket, heard, _) = back_end(good);
        let driver = Driver::connect(socket.into(), 10_000).unwrap();
        // The last of what it is told.
        while lock(&heard).iter().filter(|m| m.request == spec::SET_VRING_ENABLE).count() < 2 {
            std::thread::yield_now();
        }
        let queue = queue(&lock(&heard), 1);
        Self { memory: driver.memory().clone(), driver, heard, queue }
    }

    fn ask(&mut self, words: &[u8]) {
        let slot = self.driver.slot().expect("room");
        self.driver.request(&slot, words.len()).unwrap().copy_from(words);
        self.driver.submit(slot, words.len(), 12_000).unwrap();
    }

    /// Answers the next request with its own bytes, twice; gives them.
    fn echo(&mut self) -> Vec<u8> {
        let chain = self.queue.pop_descriptor_chain(&self.memory).expect("a request");
        let parts: Vec<_> = chain.clone().collect();
        assert!(parts.len() == 2 && !parts[0].is_write_only() && parts[1].is_write_only());
        let mut words = vec![0; parts[0].len() as usize];
        self.memory.read_slice(&mut words, parts[0].addr()).unwrap();
        self.memory.write_slice(&[&words[..], &words].concat(), parts[1].addr()).unwrap();
        self.queue.add_used(&self.memory, chain.head_index(), 2 * words.len() as u32).unwrap();
        words
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let answer = self.driver.answered().unwrap()?;
        let mut words = vec![0; answer.length];
        self.driver.answer(&answer).copy_to(&mut words[..]);
        self.driver.done(answer);
        Some(words)
    }
}

#[test]
fn requests_are_answered_in_any_order_and_room_is_used_again() {
    let mut test = Test::new();
    for round in 0..100_u32 {
        let words = [round.to_le_bytes(), (round * 3).to_le_bytes()].map(|word| word.to_vec());
        for word in &words {
            test.ask(word);
        }
        assert_eq!((test.echo(), test.take()), (words[0].clone(), Some(words[0].repeat(2))));
        assert_eq!(test.take(), None);
        assert_eq!((test.echo(), test.take()), (words[1].clone(), Some(words[1].repeat(2))));
    }
    let heard = lock(&test.heard);
    let kick = heard.iter().rfind(|message| message.request == spec::SET_VRING_KICK).unwrap();
    let mut rung = [0; 8];
    std::io::Read::read_exact(&mut eventfd(kick), &mut rung).unwrap();
    assert_eq!(u64::from_le_bytes(rung), 200);
}

#[test]
fn there_is_room_for_so_many_and_so_much() {
    let mut test = Test::new();
    for _ in 0..16 {
        assert!(test.driver.has_room());
        test.ask(b"x");
    }
    assert!(!test.driver.has_room() && test.driver.slot().is_none());
    test.echo();
    assert!(test.take().is_some());
    let slot = test.driver.slot().unwrap();
    // Whole pages.
    assert!(test.driver.request(&slot, 12_288).is_ok());
    let error = test.driver.request(&slot, 12_289).unwrap_err();
    assert!(matches!(error, DriverError::TooLong { length: 12_289, room: 12_288 }));
}

#[test]
fn what_was_not_asked_is_no_answer() {
    let wrong: [fn(&mut Test); 4] = [
        // Not asked, no such slot, no head of one, longer than its room.
        |test| test.queue.add_used(&test.memory, 4, 1).unwrap(),
        |test| test.memory.write_obj(77_u32, GuestAddress(0x1800 + 4)).unwrap(),
        |test| test.queue.add_used(&test.memory, 1, 1).unwrap(),
        |test| test.queue.add_used(&test.memory, 0, 12_001).unwrap(),
    ];
    for (number, wrong) in wrong.into_iter().enumerate() {
        let mut test = Test::new();
        test.ask(b"x");
        wrong(&mut test);
        test.memory.write_obj(1_u16, GuestAddress(0x1800 + 2)).unwrap();
        assert!(matches!(test.driver.answered(), Err(DriverError::Used { .. })), "{number}");
    }
}

#[test]
fn who_drops_it_hangs_up() {
    let (socket, _, thread) = back_end(good);
    let driver = Driver::connect(socket.into(), 4096).unwrap();
    let other = driver.socket().try_clone_to_owned().unwrap();
    drop(driver);
    thread.join().unwrap();
    assert!(UnixStream::from(other).write_all(b"x").is_err());
}
