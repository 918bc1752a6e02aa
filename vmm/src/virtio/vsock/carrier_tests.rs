//! Sockets that come over the carrier.

use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::VsockError;
use super::carrier::{MAX_CARRIED, OPENING_MAX};
use super::packet::{self, Header};
use super::tests::{CID, Guest, is_at_end};

const PORT: u32 = 1000;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

fn carrying() -> (Guest, OwnedFd) {
    let (ours, theirs) = pair();
    (Guest::with_carrier(Some(theirs.into_raw_fd())).unwrap(), ours)
}

fn hand_over(carrier: &OwnedFd, opening: &[u8], sockets: &[&dyn AsRawFd]) {
    let fds: Vec<_> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let port = PORT.to_le_bytes();
    let slices = [IoSlice::new(&port), IoSlice::new(opening)];
    sendmsg::<()>(carrier.as_raw_fd(), &slices, rights, MsgFlags::MSG_DONTWAIT, None).unwrap();
}

/// What the guest says to the host about the connection that it was asked for with `request`.
fn to(request: &Header, op: u16, length: usize) -> Header {
    Header {
        source_cid: CID,
        target_cid: packet::HOST_CID,
        source_port: request.target_port,
        target_port: request.source_port,
        length: length as u32,
        kind: packet::TYPE_STREAM,
        op,
        buffer: 64 << 10,
        ..Header::default()
    }
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn a_carried_socket_reaches_the_guest_behind_its_opening() {
    let (mut guest, carrier) = carrying();
    // It may block: the device does not.
    let (mut client, carried) = tcp();
    client.write_all(b"question").unwrap();
    hand_over(&carrier, b"opening", &[&carried]);
    drop(carried);
    guest.post(8);
    let request = guest.received().remove(0).0;
    assert_eq!((request.op, request.target_port), (packet::OP_REQUEST, PORT));
    guest.send(to(&request, packet::OP_RESPONSE, 0), &[]);
    let said: Vec<u8> = guest.received().into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(said, b"openingquestion");
    guest.send(to(&request, packet::OP_RW, 6), b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer", "and no OK before it");
    client.shutdown(Shutdown::Write).unwrap();
    guest.post(1);
    let end = guest.received().remove(0).0;
    assert_eq!((end.op, end.flags), (packet::OP_SHUTDOWN, packet::SHUTDOWN_SEND));
    guest.send(Header { flags: packet::SHUTDOWN_BOTH, ..to(&request, packet::OP_SHUTDOWN, 0) }, &[]);
    assert_eq!(guest.ops(), [packet::OP_RST]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_guest_with_little_room_gets_its_opening_in_pieces() {
    let (mut guest, carrier) = carrying();
    let (mut client, carried) = UnixStream::pair().unwrap();
    client.write_all(b"x").unwrap();
    hand_over(&carrier, &[7; OPENING_MAX], &[&carried]);
    guest.post(8);
    let request = guest.received().remove(0).0;
    guest.send(Header { buffer: 40, ..to(&request, packet::OP_RESPONSE, 0) }, &[]);
    let lengths = |packets: Vec<(Header, Vec<u8>)>| packets.iter().map(|p| p.1.len()).collect::<Vec<_>>();
    assert_eq!(lengths(guest.received()), [40, 0], "as much as it has room for, and how is it now?");
    let credit = Header { buffer: 40, forwarded: 40, ..to(&request, packet::OP_CREDIT_UPDATE, 0) };
    guest.send(credit, &[]);
    assert_eq!(lengths(guest.received()), [24, 1]);
}

#[test]
fn what_the_guest_refuses_is_closed() {
    let (mut guest, carrier) = carrying();
    let (mut client, carried) = UnixStream::pair().unwrap();
    hand_over(&carrier, b"o", &[&carried]);
    drop(carried);
    guest.post(1);
    let request = guest.received().remove(0).0;
    guest.send(to(&request, packet::OP_RST, 0), &[]);
    assert!(is_at_end(&mut client));
}

#[test]
fn messages_that_are_none_bring_nothing() {
    let (mut guest, carrier) = carrying();
    let (mut client, carried) = UnixStream::pair().unwrap();
    guest.post(8);
    hand_over(&carrier, b"o", &[]);
    hand_over(&carrier, b"", &[&carried]);
    hand_over(&carrier, &[7; OPENING_MAX + 1], &[&carried]);
    drop(carried);
    assert!(guest.ops().is_empty() && is_at_end(&mut client));
    // Of several the first one counts, and the others are closed.
    let (other, (_, carried)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let (mut theirs, others) = other;
    hand_over(&carrier, b"o", &[&carried, &others]);
    drop(others);
    guest.ops();
    assert!(is_at_end(&mut theirs));
    drop(carrier);
    guest.events.settle();
}

#[test]
fn carried_connections_are_limited_and_the_rest_waits() {
    let (mut guest, carrier) = carrying();
    guest.post(128);
    let mut clients = Vec::new();
    for _ in 0..MAX_CARRIED + 2 {
        let (client, carried) = UnixStream::pair().unwrap();
        hand_over(&carrier, b"o", &[&carried]);
        clients.push(client);
    }
    let requests = guest.received();
    assert_eq!(requests.len(), MAX_CARRIED);
    guest.send(to(&requests[0].0, packet::OP_RST, 0), &[]);
    assert_eq!(guest.ops(), [packet::OP_REQUEST]);
    assert!(is_at_end(&mut clients[0]));
}

#[test]
fn a_carrier_is_a_socket_of_sequenced_packets() {
    let (stream, _other) = UnixStream::pair().unwrap();
    for fd in [-1, stream.as_fd().as_raw_fd(), 1 << 20] {
        assert!(matches!(Guest::with_carrier(Some(fd)), Err(VsockError::Carrier(_))));
    }
}
