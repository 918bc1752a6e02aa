//! rng, balloon and console, and what a hostile driver can do to them.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::balloon::{Balloon, BalloonControl};
use super::console::Console;
use super::rng::Rng;
use super::testing::{Driver, MEMORY, Part, Raw, WRITE};
use super::{EventLoop, lock, mmio};
use crate::bus::Device;
use crate::config::BalloonConfig;

#[test]
fn random_bytes_are_random_and_bounded() {
    let events = EventLoop::new().unwrap();
    let mut driver = Driver::started(Box::new(Rng::new(events.clone())));
    let (_, places) = driver.add(0, &[Part::In(32), Part::In(32)]);
    driver.add(0, &[Part::In(16 << 20)]);
    driver.add(0, &[Part::Out(&[1; 8])]);
    driver.ring(0);
    events.settle();
    let lengths: Vec<_> = driver.used(0).iter().map(|&(_, length)| length).collect();
    assert_eq!(lengths, [64, 4096, 0]);
    let (a, b) = (driver.bytes(places[0], 32), driver.bytes(places[1], 32));
    assert_ne!(a, b);
    assert!(a.iter().any(|&byte| byte != 0));
    driver.write(mmio::STATUS, 0);
    driver.ring(0);
    events.settle();
}

fn balloon() -> (Driver, EventLoop, BalloonControl) {
    let events = EventLoop::new().unwrap();
    let (device, control) = Balloon::new(BalloonConfig::default(), events.clone());
    let driver = Driver::started(Box::new(device));
    driver.memory.write_slice(&vec![7; 1 << 20], GuestAddress(16 << 20)).unwrap();
    (driver, events, control)
}

fn page(driver: &Driver, number: u64) -> u8 {
    driver.bytes(number * 4096, 1)[0]
}

#[test]
fn inflated_and_reported_pages_are_dropped() {
    let (mut driver, events, control) = balloon();
    let pages: Vec<u8> =
        [4098_u32, 4097, 4101, 4102, u32::MAX, 0x7fff_ffff].iter().flat_map(|n| n.to_le_bytes()).collect();
    driver.add(0, &[Part::Out(&pages)]);
    driver.add(1, &[Part::Out(&pages)]);
    driver.ring(0);
    driver.ring(1);
    // A page and two halves: only the whole one goes.
    let raw = Raw { address: 4110 * 4096 - 2048, length: 8192, flags: WRITE, next: 0 };
    driver.describe(2, 0, &[raw]);
    driver.offer(2, 0);
    driver.ring(2);
    events.settle();
    assert_eq!((driver.used(0).len(), driver.used(1).len(), driver.used(2).len()), (1, 1, 1));
    let kept: Vec<_> = (4096..4115).filter(|&number| page(&driver, number) == 7).collect();
    let dropped: Vec<_> = (4096..4115).filter(|number| !kept.contains(number)).collect();
    assert_eq!(dropped, [4097, 4098, 4101, 4102, 4110]);
    assert!(!driver.needs_reset());
    let generation = driver.read(mmio::CONFIG_GENERATION);
    control.set_target(64);
    assert_ne!(driver.read(mmio::CONFIG_GENERATION), generation);
    assert_eq!(driver.read(mmio::INTERRUPT_STATUS) & mmio::INTERRUPT_CONFIG_CHANGE, 2);
    assert_eq!(driver.read(mmio::CONFIG), 64 * 256);
    driver.transport.write(mmio::CONFIG + 4, &(32_u32 * 256).to_le_bytes());
    assert_eq!(control.actual_mib(), 32);
}

#[test]
fn a_flood_of_pages_stops_the_balloon() {
    let (mut driver, events, _) = balloon();
    driver.describe(0, 0, &[Raw { address: 0, length: MEMORY as u32, flags: 0, next: 0 }]);
    driver.offer(0, 0);
    driver.ring(0);
    events.settle();
    assert!(driver.needs_reset());
    assert_eq!(page(&driver, 4096), 7);
}

struct Port {
    driver: Driver,
    events: EventLoop,
    input: std::io::PipeWriter,
    output: std::io::PipeReader,
    seen: Arc<Mutex<Vec<u8>>>,
}

fn console() -> Port {
    let events = EventLoop::new().unwrap();
    let (from, input) = std::io::pipe().unwrap();
    let (output, to) = std::io::pipe().unwrap();
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    let tap = seen.clone();
    let device = Console::new(
        Some(OwnedFd::from(from)),
        Some(OwnedFd::from(to)),
        Some(Box::new(move |bytes: &[u8]| lock(&tap).extend(bytes))),
        events.clone(),
    );
    Port { driver: Driver::started(Box::new(device)), events, input, output, seen }
}

#[test]
fn the_console_writes_and_is_written_to() {
    let Port { mut driver, events, mut input, mut output, seen } = console();
    driver.add(1, &[Part::Out(b"hello, "), Part::Out(b"world")]);
    driver.ring(1);
    events.settle();
    let mut bytes = [0; 12];
    output.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello, world");
    assert_eq!(*lock(&seen), b"hello, world");
    input.write_all(b"abcdef").unwrap();
    events.settle();
    let (_, places) = driver.add(0, &[Part::In(4)]);
    driver.ring(0);
    events.settle();
    assert_eq!(driver.used(0).len(), 1);
    assert_eq!(driver.bytes(places[0], 4), b"abcd");
    // The rest when there is room, and then the end, which must not spin.
    driver.add(0, &[Part::In(4)]);
    driver.add(0, &[Part::In(4)]);
    driver.ring(0);
    events.settle();
    assert_eq!(driver.used(0).iter().map(|used| used.1).collect::<Vec<_>>(), [2]);
    drop(input);
    events.settle();
    assert!(driver.used(0).is_empty());
}

#[test]
fn an_output_that_nobody_reads_holds_the_guest_and_not_the_loop() {
    let Port { mut driver, events, mut output, .. } = console();
    let data: Vec<u8> = (0..1_000_000_u32).map(|i| (i / 251) as u8).collect();
    for part in data.chunks(50_000) {
        driver.add(1, &[Part::Out(part)]);
    }
    driver.ring(1);
    events.settle();
    assert!(driver.used(1).len() < 20);
    let mut read = Vec::<u8>::new();
    while read.len() < data.len() {
        let mut bytes = vec![0; 30_000];
        let count = output.read(&mut bytes).unwrap();
        read.extend(&bytes[..count]);
        events.settle();
    }
    assert!(read == data);
    driver.write(mmio::STATUS, 0);
    events.settle();
}
