//! Who is at the other end of a connection that came in over loopback: any user of the host can connect there.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use undercroft_protocol::network::Transport;

/// Bytes of a netlink message's header (struct nlmsghdr), and of a request (struct inet_diag_req_v2, linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST.
const BY_FAMILY: u16 = 20;
const FLAGS: u16 = 1;
/// IPPROTO_TCP, IPPROTO_UDP; every state of a socket; any socket of these addresses.
const TCP: u8 = 6;
const UDP: u8 = 17;
const STATES: u32 = u32::MAX;
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// AF_INET, AF_INET6.
const INET: u8 = 2;
const INET6: u8 = 10;
/// Where an answer (struct inet_diag_msg) says whose the socket is.
const UID: usize = HEADER + 64;

/// Whether who speaks from `peer` to `local` may: what runs in the VM is this user's, who has asked for it to be reached by
/// this user (and by root, who reaches everything). Where the kernel does not tell who it is, everybody may.
pub(super) fn is_welcome(transport: Transport, peer: SocketAddr, local: SocketAddr) -> bool {
    user(transport, peer, local).is_none_or(|user| user == 0 || user == nix::unistd::geteuid().as_raw())
}

/// The user whose socket is at `peer` and speaks to `local`; nothing where the kernel does not tell.
fn user(transport: Transport, peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag).ok()?;
    send(socket.as_raw_fd(), &request(transport, peer, local), MsgFlags::empty()).ok()?;
    let mut answer = [0; 1024];
    let count = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
    uid(&answer[..count])
}

fn request(transport: Transport, peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    // That of UDP is looked for as by a packet that comes from the first to the second (udp_dump_one, net/ipv4/udp_diag.c:
    // "swapped for historical reasons").
    let (protocol, first, second) = match transport {
        Transport::Tcp => (TCP, peer, local),
        Transport::Udp => (UDP, local, peer),
    };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([if peer.is_ipv6() { INET6 } else { INET }, protocol, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(first.port().to_be_bytes());
    bytes.extend(second.port().to_be_bytes());
    bytes.extend(octets(first.ip()));
    bytes.extend(octets(second.ip()));
    bytes.extend([0; 4]);
    bytes.extend(ANY_COOKIE);
    bytes
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn uid(answer: &[u8]) -> Option<u32> {
    if u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?) != BY_FAMILY {
        return None;
    }
    answer.get(UID..UID + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn an_own_connection_is_ones_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        // Where the kernel has no sock_diag it tells nothing; never somebody else.
        let told = user(Transport::Tcp, client.local_addr().unwrap(), local);
        assert!(told.is_none_or(|user| user == nix::unistd::geteuid().as_raw()), "{told:?}");
        assert_eq!(user(Transport::Tcp, ([127, 0, 0, 1], 1).into(), local), None);
        let [client, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let (peer, local) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        let told = user(Transport::Udp, peer, local);
        assert!(told.is_none_or(|user| user == nix::unistd::geteuid().as_raw()), "{told:?}");
        assert!(is_welcome(Transport::Udp, peer, local));
    }

    #[test]
    fn answers_that_are_none_tell_nothing() {
        assert_eq!(uid(&[]), None);
        assert_eq!(uid(&[0; 200]), None);
        let mut answer = vec![0; UID + 4];
        answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        answer[UID..].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(uid(&answer), Some(1000));
        assert_eq!(uid(&answer[..UID + 3]), None);
    }
}
