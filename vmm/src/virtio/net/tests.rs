//! The device between a driver made for tests and a peer on a real socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::link::{Kind, Link};
use super::{Net, NetControl, NetError, spec};
use crate::config::{MacAddress, NetBackend, NetConfig};
use crate::virtio::testing::{Driver, Part};
use crate::virtio::{EventLoop, mmio};

const RX: usize = 0;
const TX: usize = 1;

struct Guest {
    driver: Driver,
    events: EventLoop,
    control: NetControl,
    /// Where the receive buffers are, by head.
    buffers: Vec<(u16, u64)>,
}

impl Guest {
    fn new(features: u64) -> Self {
        let events = EventLoop::new().unwrap();
        let (device, control) = Net::new(&NetConfig::default(), events.clone()).unwrap();
        Self::with(device, control, events, features)
    }

    fn with(device: Net, control: NetControl, events: EventLoop, features: u64) -> Self {
        let mut driver = Driver::new(Box::new(device));
        driver.start(features & !(1 << 29));
        events.settle();
        Self { driver, events, control, buffers: Vec::new() }
    }

    /// A guest with a cable, whose other end is returned.
    fn connected(features: u64) -> (Self, UnixStream) {
        let guest = Self::new(features);
        let peer = guest.connect();
        (guest, peer)
    }

    fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        self.control.connect(ours.into()).unwrap();
        self.events.settle();
        theirs
    }

    fn post(&mut self, count: usize, length: u32) {
        for _ in 0..count {
            let (head, places) = self.driver.add(RX, &[Part::In(length)]);
            self.buffers.push((head, places[0]));
        }
        self.driver.ring(RX);
        self.events.settle();
    }

    /// The used receive buffers' bytes.
    fn used(&mut self) -> Vec<Vec<u8>> {
        self.events.settle();
        let mut all = Vec::new();
        for (head, length) in self.driver.used(RX) {
            let at = self.buffers.iter().position(|&(posted, _)| posted == head).unwrap();
            let (_, address) = self.buffers.remove(at);
            all.push(self.driver.bytes(address, length as usize));
        }
        all
    }

    /// Frames put together from buffers, with their headers' flags.
    fn received(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut buffers = self.used().into_iter();
        let mut frames = Vec::new();
        while let Some(first) = buffers.next() {
            let count = u16::from_le_bytes([first[10], first[11]]);
            let mut frame = first[spec::HEADER_LENGTH..].to_vec();
            for _ in 1..count {
                frame.extend(buffers.next().unwrap());
            }
            frames.push((first[0], frame));
        }
        frames
    }

    fn send(&mut self, header: &[u8; 12], frame: &[u8]) {
        self.driver.add(TX, &[Part::Out(header), Part::Out(frame)]);
        self.driver.ring(TX);
        self.events.settle();
    }

    fn is_up(&self) -> bool {
        self.driver.read(mmio::CONFIG + 4) >> 16 & 1 == 1
    }
}

/// Frames as they are on the wire.
fn wire(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect()
}

fn read_all(peer: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = peer.read_to_end(&mut bytes);
    bytes
}

#[test]
fn frames_go_both_ways() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    guest.send(&[0; 12], &[7; 60]);
    guest.send(&[0; 12], &[8; 1514]);
    assert_eq!(read_all(&mut peer), wire(&[vec![7; 60], vec![8; 1514]]));
    assert_eq!(guest.driver.used(TX).len(), 2);
    guest.post(4, 2000);
    peer.write_all(&wire(&[vec![1; 60], vec![2; 1514]])).unwrap();
    assert_eq!(guest.received(), [(2, vec![1; 60]), (2, vec![2; 1514])], "and known to be right");
}

#[test]
fn a_frame_lies_in_as_many_buffers_as_it_takes() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    let frame: Vec<u8> = (0..65_534_u32).map(|n| (n / 251) as u8).collect();
    peer.write_all(&wire(&[frame.clone(), vec![3; 60]])).unwrap();
    guest.post(40, 1536);
    assert!(guest.used().is_empty(), "not enough yet");
    guest.post(10, 1536);
    assert!(guest.received() == [(2, frame), (2, vec![3; 60])]);
}

#[test]
fn drivers_that_know_less_get_less() {
    let (mut guest, mut peer) = Guest::connected(spec::F_MAC | 1 << 32);
    guest.post(3, 1600);
    peer.write_all(&wire(&[vec![1; 60], vec![2; 4000], vec![3; 1500]])).unwrap();
    assert_eq!(guest.received(), [(0, vec![1; 60]), (0, vec![3; 1500])], "what fits no buffer is lost");
    let mut header = [0; 12];
    header[0] = spec::FLAG_NEEDS_CHECKSUM;
    guest.send(&header, &[0; 60]);
    assert!(read_all(&mut peer).is_empty(), "checksums were not agreed upon");
}

#[test]
fn checksums_are_completed() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    let mut frame = vec![0x11; 101];
    // A UDP header whose checksum field holds the pseudo header's sum.
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    let mut header = [0; 12];
    (header[0], header[6], header[8]) = (spec::FLAG_NEEDS_CHECKSUM, 34, 6);
    guest.send(&header, &frame);
    // By hand: 32 words of 0x1111, the sum so far, and a half word, complemented.
    let mut sum: u32 = 32 * 0x1111 + 0x1234 + 0x1100;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[40..42].copy_from_slice(&(!sum as u16).to_be_bytes());
    assert_eq!(read_all(&mut peer), wire(&[frame]));
}

#[test]
fn what_is_no_frame_is_dropped() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    let header = |flags, gso, start| {
        let mut header = [0; 12];
        (header[0], header[1], header[6]) = (flags, gso, start);
        header
    };
    guest.send(&[0; 12], &[1; 13]);
    guest.send(&[0; 12], &vec![1; spec::FRAME_MAX + 1]);
    guest.send(&header(0, 1, 0), &[1; 60]);
    guest.send(&header(1, 0, 60), &[1; 60]);
    guest.driver.add(TX, &[Part::Out(&[0; 5])]);
    guest.driver.add(TX, &[Part::In(100)]);
    guest.send(&[0; 12], &[9; 14]);
    assert_eq!(read_all(&mut peer), wire(&[vec![9; 14]]));
    assert_eq!(guest.driver.used(TX).len(), 7);
    // And the other way.
    guest.post(2, 200);
    peer.write_all(&wire(&[vec![], vec![1; 13], vec![2; 14]])).unwrap();
    assert_eq!(guest.received(), [(2, vec![2; 14])]);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_peer_that_does_not_read_makes_the_guest_wait() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    let frame = vec![5; 30_000];
    let mut sent = 0;
    while guest.driver.used(TX).len() == 1 || sent == 0 {
        guest.send(&[0; 12], &frame);
        sent += 1;
        assert!(sent < 1000, "nobody stops the guest");
    }
    let mut all = Vec::new();
    for _ in 0..100 {
        all.extend(read_all(&mut peer));
        guest.events.settle();
    }
    assert_eq!(all.len(), sent * (frame.len() + 4), "and nothing is lost");
    assert_eq!(guest.driver.used(TX).len(), 1);
}

#[test]
fn a_guest_without_buffers_makes_the_peer_wait() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    let one = wire(&[vec![6; 1000]]);
    let mut written = 0;
    while let Ok(count) = peer.write(&one[written % one.len()..]) {
        written += count;
        guest.events.settle();
        assert!(written < 4 << 20, "nobody stops the peer");
    }
    let mut read = 0;
    while read < written / one.len() {
        guest.post(8, 1100);
        let frames = guest.received();
        assert!(!frames.is_empty() && frames.iter().all(|(_, frame)| *frame == [6; 1000]));
        read += frames.len();
    }
}

#[test]
fn the_cable_is_pulled_out_and_plugged_in_again() {
    let (mut guest, peer) = Guest::connected(u64::MAX);
    assert!(guest.is_up());
    let generation = guest.driver.read(mmio::CONFIG_GENERATION);
    drop(peer);
    guest.events.settle();
    assert!(!guest.is_up() && !guest.control.is_up());
    assert_ne!(guest.driver.read(mmio::CONFIG_GENERATION), generation);
    assert_ne!(guest.driver.read(mmio::INTERRUPT_STATUS) & mmio::INTERRUPT_CONFIG_CHANGE, 0);
    guest.send(&[0; 12], &[1; 60]);
    assert_eq!(guest.driver.used(TX).len(), 1, "lost, and the guest goes on");
    let mut peer = guest.connect();
    assert!(guest.is_up());
    guest.send(&[0; 12], &[2; 60]);
    assert_eq!(read_all(&mut peer), wire(&[vec![2; 60]]));
    // One in the place of another that still works; and one that talks nonsense.
    let mut other = guest.connect();
    assert!(matches!(peer.read(&mut [0]), Ok(0)));
    guest.post(1, 100);
    other.write_all(&wire(&[vec![4; 20]])).unwrap();
    assert_eq!(guest.received(), [(2, vec![4; 20])]);
    other.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    guest.events.settle();
    assert!(!guest.is_up());
}

#[test]
fn a_cable_stays_plugged_in_over_a_reset() {
    let (mut guest, mut peer) = Guest::connected(u64::MAX);
    guest.driver.write(mmio::STATUS, 0);
    guest.events.settle();
    guest.driver.start(!(1 << 29));
    guest.events.settle();
    assert!(guest.is_up());
    guest.send(&[0; 12], &[2; 60]);
    assert_eq!(read_all(&mut peer), wire(&[vec![2; 60]]));
}

#[test]
fn the_configuration_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let events = EventLoop::new().unwrap();
    let config = |backend| NetConfig { mac: MacAddress([2, 1, 2, 3, 4, 5]), mtu: 65_520, backend };
    let missing = Net::new(&config(NetBackend::StreamPath(path.clone())), events.clone());
    assert!(matches!(missing, Err(NetError::Connect { .. })));
    assert!(matches!(
        Net::new(&config(NetBackend::StreamFd(9999)), events.clone()),
        Err(NetError::NotInherited(9999))
    ));
    let listener = UnixListener::bind(&path).unwrap();
    let (device, control) = Net::new(&config(NetBackend::StreamPath(path)), events.clone()).unwrap();
    let guest = Guest::with(device, control, events, u64::MAX);
    let config: Vec<u8> =
        (0..4).flat_map(|n| guest.driver.read(mmio::CONFIG + 4 * n).to_le_bytes()).collect();
    assert_eq!(config, [2, 1, 2, 3, 4, 5, 1, 0, 1, 0, 0xf0, 0xff, 0, 0, 0, 0]);
    drop(listener);
}

/// A datagram socket is as a TAP device is: a packet at each read and write.
#[test]
fn headers_go_through_to_a_tap() {
    let events = EventLoop::new().unwrap();
    let (ours, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let link = Link::unchecked(ours.into(), Kind::Tap).unwrap();
    let (device, control) =
        Net::assemble(&NetConfig::default(), Kind::Tap, Some(link), events.clone()).unwrap();
    let mut guest = Guest::with(device, control, events, u64::MAX);
    let mut header = [0; 12];
    (header[0], header[1], header[6], header[8]) = (1, 1, 34, 16);
    guest.send(&header, &[1; 5000]);
    let mut packet = vec![0; 70_000];
    let count = tap.recv(&mut packet).unwrap();
    assert_eq!((&packet[..12], &packet[12..count]), (&header[..], &[1; 5000][..]));
    guest.post(4, 2000);
    tap.send(&packet[..count]).unwrap();
    assert_eq!(guest.received(), [(1, vec![1; 5000])]);
    // As many as the socket holds, and the rest when it is read.
    for _ in 0..100 {
        guest.send(&[0; 12], &[2; 20_000]);
    }
    let mut packets = 0;
    while tap.recv(&mut packet).is_ok() {
        packets += 1;
        guest.events.settle();
    }
    assert_eq!((packets, guest.driver.used(TX).len()), (100, 101));
}
