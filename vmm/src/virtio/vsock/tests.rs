//! The multiplexer between a driver made for tests and real unix sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;
use tempfile::TempDir;

use super::connection::WINDOW;
use super::multiplexer::MAX_CONNECTIONS;
use super::packet::{self, HEADER_LENGTH, Header};
use super::{Vsock, VsockError};
use crate::config::VsockConfig;
use crate::virtio::testing::{Driver, Part};
use crate::virtio::{EventLoop, mmio};

pub(super) const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
/// Room of one of the guest's receive buffers, as Linux has them.
const ROOM: u32 = 3776;

pub(super) struct Guest {
    driver: Driver,
    pub(super) events: EventLoop,
    folder: TempDir,
    /// Where the receive buffers are, by head.
    buffers: Vec<(u16, u64)>,
}

impl Guest {
    fn new() -> Self {
        Self::with_carrier(None).unwrap()
    }

    pub(super) fn with_carrier(carrier_fd: Option<i32>) -> Result<Self, VsockError> {
        let folder = tempfile::tempdir().unwrap();
        let events = EventLoop::new().unwrap();
        let config = VsockConfig { cid: CID as u32, socket: folder.path().join("v"), carrier_fd };
        let driver = Driver::started(Box::new(Vsock::new(&config, events.clone())?));
        Ok(Self { driver, events, folder, buffers: Vec::new() })
    }

    /// Gives the device `count` buffers to receive into.
    pub(super) fn post(&mut self, count: usize) {
        for _ in 0..count {
            let (head, places) = self.driver.add(RX, &[Part::In(HEADER_LENGTH as u32 + ROOM)]);
            self.buffers.push((head, places[0]));
        }
        self.driver.ring(RX);
        self.events.settle();
    }

    pub(super) fn send(&mut self, header: Header, data: &[u8]) {
        self.driver.add(TX, &[Part::Out(&header.encode()), Part::Out(data)]);
        self.driver.ring(TX);
        self.events.settle();
        self.driver.used(TX);
    }

    /// What the device has sent.
    pub(super) fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.events.settle();
        let mut packets = Vec::new();
        for (head, length) in self.driver.used(RX) {
            let at = self.buffers.iter().position(|&(posted, _)| posted == head).unwrap();
            let (_, address) = self.buffers.remove(at);
            let bytes = self.driver.bytes(address, length as usize);
            let header = Header::decode(&bytes[..HEADER_LENGTH].try_into().unwrap());
            assert_eq!(header.length as usize + HEADER_LENGTH, bytes.len());
            assert_eq!((header.source_cid, header.target_cid), (packet::HOST_CID, CID));
            packets.push((header, bytes[HEADER_LENGTH..].to_vec()));
        }
        packets
    }

    pub(super) fn ops(&mut self) -> Vec<u16> {
        self.received().iter().map(|(header, _)| header.op).collect()
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("v_{port}"))).unwrap()
    }

    /// Connects the guest's port 1024 to port 5000 of the host.
    fn connected(&mut self) -> UnixStream {
        let listener = self.listen(5000);
        self.send(header(packet::OP_REQUEST), &[]);
        self.post(1);
        assert_eq!(self.ops(), [packet::OP_RESPONSE]);
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

/// A packet from port 1024 to port 5000, with a buffer of 64 KiB.
fn header(op: u16) -> Header {
    Header {
        source_cid: CID,
        target_cid: packet::HOST_CID,
        source_port: 1024,
        target_port: 5000,
        kind: packet::TYPE_STREAM,
        op,
        buffer: 64 << 10,
        ..Header::default()
    }
}

fn data(length: usize) -> Header {
    Header { length: length as u32, ..header(packet::OP_RW) }
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

pub(super) fn is_at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

/// The multiplexer counts what it holds after every event in tests, and panics at more than there should be.
#[test]
fn a_guest_that_takes_no_answers_makes_nothing_grow() {
    let mut guest = Guest::new();
    let listener = guest.listen(5000);
    for _ in 0..100 {
        guest.send(header(packet::OP_REQUEST), &[]);
        guest.send(header(packet::OP_RST), &[]);
        assert!(is_at_end(&mut listener.accept().unwrap().0));
    }
    guest.post(1);
    assert!(guest.ops().is_empty(), "nothing is left to say of connections that have ended");
}

#[test]
fn the_guest_connects_to_the_host() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.send(data(5), b"hello");
    assert_eq!(read_all(&mut stream), b"hello");
    stream.write_all(b"good day").unwrap();
    guest.post(2);
    let packets = guest.received();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].0.op, &packets[0].1[..]), (packet::OP_RW, &b"good day"[..]));
    assert_eq!((packets[0].0.forwarded, packets[0].0.buffer), (5, WINDOW));
    assert_eq!((packets[0].0.source_port, packets[0].0.target_port), (5000, 1024));
}

#[test]
fn the_host_connects_to_the_guest() {
    let mut guest = Guest::new();
    guest.post(4);
    let mut stream = UnixStream::connect(guest.folder.path().join("v")).unwrap();
    // Bytes after the line are the guest's, however early they come.
    stream.write_all(b"CONNECT 99\nearly").unwrap();
    let packets = guest.received();
    assert_eq!(packets.len(), 1);
    let request = packets[0].0;
    assert_eq!((request.op, request.target_port), (packet::OP_REQUEST, 99));
    let answer = Header { source_port: 99, target_port: request.source_port, ..header(packet::OP_RESPONSE) };
    guest.send(answer, &[]);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut stream), format!("OK {}\n", request.source_port).as_bytes());
    assert_eq!(guest.received()[0].1, b"early");
    guest.send(Header { length: 2, op: packet::OP_RW, ..answer }, b"hi");
    assert_eq!(read_all(&mut stream), b"hi");
}

#[test]
fn a_port_that_nobody_listens_at_is_refused_on_either_side() {
    let mut guest = Guest::new();
    guest.post(4);
    guest.send(header(packet::OP_REQUEST), &[]);
    assert_eq!(guest.ops(), [packet::OP_RST]);
    let mut stream = UnixStream::connect(guest.folder.path().join("v")).unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    let request = guest.received()[0].0;
    guest.send(request.reset_of(), &[]);
    assert!(is_at_end(&mut stream));
    for line in
        ["CONNECT x\n", "CONNECT 4294967296\n", "GET / HTTP/1.1\r\n", "CONNECT 000000000000000000000007\n"]
    {
        let mut stream = UnixStream::connect(guest.folder.path().join("v")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        guest.events.settle();
        let end = stream.read(&mut [0]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{line}");
    }
    assert!(guest.ops().is_empty());
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.post(8);
    // The guest sends no more, and still receives.
    guest.send(data(4), b"last");
    guest.send(Header { flags: packet::SHUTDOWN_SEND, ..header(packet::OP_SHUTDOWN) }, &[]);
    assert_eq!(read_all(&mut stream), b"last");
    assert!(is_at_end(&mut stream));
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.received()[0].1, b"answer");
    // The host sends no more.
    stream.write_all(b"end").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = guest.received();
    assert_eq!(packets[0].1, b"end");
    assert_eq!(packets[1].0.op, packet::OP_SHUTDOWN);
    assert_ne!(packets[1].0.flags & packet::SHUTDOWN_SEND, 0);
    // The guest closes; that is answered.
    guest.send(Header { flags: packet::SHUTDOWN_BOTH, ..header(packet::OP_SHUTDOWN) }, &[]);
    assert_eq!(guest.ops(), [packet::OP_RST]);
}

#[test]
fn the_host_ends_first_and_the_guest_goes_on_sending() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.post(8);
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = guest.received();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (packet::OP_SHUTDOWN, packet::SHUTDOWN_SEND));
    guest.send(data(6), b"still!");
    assert_eq!(read_all(&mut stream), b"still!");
    drop(stream);
    let packets = guest.received();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (packet::OP_SHUTDOWN, packet::SHUTDOWN_BOTH));
    guest.send(header(packet::OP_RST), &[]);
    assert!(guest.ops().is_empty());
}

#[test]
fn a_host_that_closes_is_noticed_after_its_last_byte() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    stream.write_all(&[1; 10_000]).unwrap();
    drop(stream);
    guest.post(8);
    let packets = guest.received();
    let bytes: usize = packets.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(bytes, 10_000);
    let last = packets.last().unwrap().0;
    assert_eq!((last.op, last.flags), (packet::OP_SHUTDOWN, packet::SHUTDOWN_BOTH));
}

#[test]
fn a_guest_that_receives_no_more_stops_the_host_writing() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.send(Header { flags: packet::SHUTDOWN_RECEIVE, ..header(packet::OP_SHUTDOWN) }, &[]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(data(2), b"ok");
    assert_eq!(read_all(&mut stream), b"ok");
}

#[test]
fn a_slow_reader_costs_one_window_and_the_guest_learns_its_credit() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.post(64);
    let chunk: Vec<u8> = (0..32_768_u32).map(|i| (i / 7) as u8).collect();
    // As far as the credit goes: what the socket does not take is kept.
    let mut sent = 0_u32;
    let mut forwarded = 0_u32;
    let mut read = Vec::new();
    while sent < 4 << 20 {
        for (header, _) in guest.received() {
            forwarded = header.forwarded;
        }
        if sent.wrapping_sub(forwarded) + chunk.len() as u32 > WINDOW {
            let before = read.len();
            read.extend(read_all(&mut stream));
            assert!(read.len() > before, "neither credit nor bytes");
            guest.post(4);
            continue;
        }
        guest.send(data(chunk.len()), &chunk);
        sent += chunk.len() as u32;
    }
    for _ in 0..64 {
        read.extend(read_all(&mut stream));
        guest.events.settle();
    }
    assert_eq!(read.len(), sent as usize);
    assert!(read.chunks(chunk.len()).all(|part| part == chunk));
}

#[test]
fn a_guest_that_overdraws_its_credit_loses_the_connection() {
    let mut guest = Guest::new();
    let _stream = guest.connected();
    guest.post(64);
    let chunk = vec![0; 64 << 10];
    let mut ops = Vec::new();
    for _ in 0..32 {
        guest.send(data(chunk.len()), &chunk);
        ops.extend(guest.ops());
    }
    assert!(ops.contains(&packet::OP_RST));
}

#[test]
fn the_guests_credit_is_kept_to_and_asked_for_once() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.send(Header { buffer: 5000, ..header(packet::OP_CREDIT_UPDATE) }, &[]);
    stream.write_all(&[1; 20_000]).unwrap();
    guest.post(16);
    let packets = guest.received();
    let lengths: Vec<_> = packets.iter().map(|(header, _)| (header.op, header.length)).collect();
    assert_eq!(
        lengths,
        [(packet::OP_RW, ROOM), (packet::OP_RW, 5000 - ROOM), (packet::OP_CREDIT_REQUEST, 0)]
    );
    guest.send(Header { buffer: 5000, forwarded: 2000, ..header(packet::OP_CREDIT_UPDATE) }, &[]);
    let lengths: Vec<_> = guest.received().iter().map(|(header, _)| header.length).collect();
    assert_eq!(lengths[0], 2000);
    // Absurd claims are no credit, and no reason to spin.
    guest.send(Header { buffer: 1, forwarded: 12_345_678, ..header(packet::OP_CREDIT_UPDATE) }, &[]);
    assert!(guest.received().iter().all(|(header, _)| header.op != packet::OP_RW));
}

#[test]
fn packets_that_are_none_or_not_for_us_do_no_harm() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.post(16);
    for lying in [
        Header { length: 10, ..header(packet::OP_RW) },
        Header { length: u32::MAX, ..header(packet::OP_RW) },
        Header { source_cid: 4, length: 3, ..header(packet::OP_RW) },
    ] {
        guest.send(lying, b"abc");
    }
    guest.driver.add(TX, &[Part::Out(&[1; 10])]);
    guest.driver.add(TX, &[Part::In(100)]);
    guest.driver.ring(TX);
    assert!(guest.ops().is_empty());
    assert!(read_all(&mut stream).is_empty());
    let elsewhere = Header { target_cid: 9, ..header(packet::OP_REQUEST) };
    guest.driver.add(TX, &[Part::Out(&elsewhere.encode())]);
    guest.driver.ring(TX);
    guest.events.settle();
    let used = guest.driver.used(RX);
    assert_eq!(used.len(), 1, "another machine is not there: refused");
    guest.send(Header { kind: 2, ..header(packet::OP_REQUEST) }, &[]);
    guest.send(Header { source_port: 77, ..data(1) }, b"x");
    assert_eq!(guest.ops(), [packet::OP_RST, packet::OP_RST]);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn answers_wait_for_buffers_and_packets_for_answers() {
    let mut guest = Guest::new();
    // Many more stray packets than there may be answers waiting, and no buffer for any.
    let mut sent = 0;
    for _ in 0..4 {
        for _ in 0..100 {
            let stray = Header { source_port: 10_000 + sent, ..data(0) };
            guest.driver.add(TX, &[Part::Out(&stray.encode())]);
            sent += 1;
        }
        guest.driver.ring(TX);
        guest.events.settle();
    }
    let taken = guest.driver.used(TX).len();
    assert!(taken <= 257, "{taken} were taken");
    let mut answers = 0;
    while answers < sent {
        guest.post(64);
        let ops = guest.ops();
        assert!(!ops.is_empty(), "it stopped at {answers}");
        answers += ops.len() as u32;
    }
    assert_eq!(answers, sent);
}

#[test]
fn small_buffers_are_given_back_and_nothing_is_lost() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    stream.write_all(&[3; 6000]).unwrap();
    guest.events.settle();
    let mut bytes = 0;
    for _ in 0..4 {
        for room in [HEADER_LENGTH as u32 - 1, HEADER_LENGTH as u32, HEADER_LENGTH as u32 + 1000] {
            guest.driver.add(RX, &[Part::In(room)]);
        }
        guest.driver.add(RX, &[Part::In(20), Part::In(24), Part::In(1000)]);
        guest.driver.ring(RX);
        guest.events.settle();
        for (_, length) in guest.driver.used(RX) {
            bytes += (length as usize).saturating_sub(HEADER_LENGTH);
        }
    }
    assert_eq!(bytes, 6000);
}

#[test]
fn a_reset_ends_all_connections_and_the_next_driver_makes_new_ones() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.driver.write(mmio::STATUS, 0);
    assert!(is_at_end(&mut stream));
    guest.buffers.clear();
    guest.driver.start(!0);
    std::fs::remove_file(guest.folder.path().join("v_5000")).unwrap();
    guest.connected();
}

#[test]
fn sockets_are_replaced_when_abandoned_and_never_taken_from_the_living() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("v");
    let make = |cid| {
        Vsock::new(&VsockConfig { cid, socket: socket.clone(), carrier_fd: None }, EventLoop::new().unwrap())
    };
    assert!(matches!(make(2), Err(VsockError::ContextId(2))));
    let living = UnixListener::bind(&socket).unwrap();
    assert!(matches!(make(3), Err(VsockError::Listen { .. })));
    drop(living);
    drop(make(3).unwrap());
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    assert!(matches!(make(3), Err(VsockError::Listen { .. })));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn connections_are_limited() {
    let mut guest = Guest::new();
    let listener = guest.listen(5000);
    guest.post(128);
    let mut ops = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 + 3 {
        guest.send(Header { source_port: port, ..header(packet::OP_REQUEST) }, &[]);
        ops.extend(guest.ops());
    }
    let (made, refused) = ops.split_at(MAX_CONNECTIONS);
    assert!(made.iter().all(|&op| op == packet::OP_RESPONSE));
    assert_eq!(refused, [packet::OP_RST; 3]);
    let mut one_more = UnixStream::connect(guest.folder.path().join("v")).unwrap();
    guest.events.settle();
    assert!(is_at_end(&mut one_more));
    // One goes, one comes.
    guest.send(Header { source_port: 5, ..header(packet::OP_RST) }, &[]);
    guest.send(Header { source_port: 5, ..header(packet::OP_REQUEST) }, &[]);
    assert_eq!(guest.ops(), [packet::OP_RESPONSE]);
    drop(listener);
}

#[test]
fn a_listener_whose_backlog_is_full_holds_up_nobody() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    let mut guest = Guest::new();
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let path = guest.folder.path().join("v_5000");
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&fd, Backlog::new(1).unwrap()).unwrap();
    guest.post(16);
    let mut ops = Vec::new();
    for port in 0..8 {
        guest.send(Header { source_port: port, ..header(packet::OP_REQUEST) }, &[]);
        ops.extend(guest.ops());
    }
    assert_eq!((ops[0], ops[7], ops.len()), (packet::OP_RESPONSE, packet::OP_RST, 8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_packets_leave_the_multiplexer_standing(
        packets in prop::collection::vec(
            (0_u16..10, 0_u32..4, prop_oneof![0_u32..70, any::<u32>()], any::<u32>(), any::<u32>(),
             prop::collection::vec(any::<u8>(), 0..64), 0_u32..3), 1..60),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listen(5000);
        listener.set_nonblocking(true).unwrap();
        let mut streams = Vec::new();
        for (op, flags, length, buffer, forwarded, bytes, port) in packets {
            let header = Header { op, flags, length, buffer, forwarded, source_port: port, ..header(op) };
            guest.send(header, &bytes);
            if let Ok((stream, _)) = listener.accept() {
                (&stream).write_all(&bytes).unwrap();
                streams.push(stream);
            }
            guest.post(1);
            guest.received();
        }
        prop_assert!(!guest.driver.needs_reset());
    }
}
