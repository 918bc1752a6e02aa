//! Requests to the kernel's routing tables (rtnetlink(7)), each answered before the next.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// Bytes of a message's header: length, type, flags, sequence number, sender (struct nlmsghdr, linux/netlink.h).
const HEADER: usize = 16;
/// NLMSG_ERROR: the answer to a request that wants one; 0 is no error.
const ERROR: u16 = libc::NLMSG_ERROR as u16;

/// A request in the making.
#[derive(Debug)]
struct Request(Vec<u8>);

impl Request {
    /// With the fixed part that its type has.
    fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// With an attribute more (struct rtattr, linux/rtnetlink.h): length and type, content, up to a multiple of four.
    fn with(mut self, kind: u16, content: &[u8]) -> Self {
        // Contents are a few bytes.
        self.0.extend((4 + content.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings a link up, with packets of at most `mtu` bytes if that is to be changed.
    pub(super) fn set_up(&mut self, index: u32, mtu: Option<u32>) -> Result<(), Errno> {
        let up = libc::IFF_UP as u32;
        // struct ifinfomsg: family, pad, type; index, flags, which of them change.
        let fixed = [[0; 4], index.to_ne_bytes(), up.to_ne_bytes(), up.to_ne_bytes()].concat();
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &fixed);
        if let Some(mtu) = mtu {
            request = request.with(libc::IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.ask(request)
    }

    /// Gives a link an address.
    pub(super) fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<(), Errno> {
        // Nobody else can have it on this wire: no search for duplicates, which would keep it from being used at once.
        let flags = if ip.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        // struct ifaddrmsg: family, prefix, flags, scope; index.
        let fixed = [[family(ip), prefix, flags, libc::RT_SCOPE_UNIVERSE], index.to_ne_bytes()].concat();
        let request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed)
            .with(libc::IFA_LOCAL, &octets(ip))
            .with(libc::IFA_ADDRESS, &octets(ip));
        self.ask(request)
    }

    /// Sends what goes nowhere else to `gateway`.
    pub(super) fn set_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<(), Errno> {
        // struct rtmsg: family, destination's and source's prefix, TOS; table, protocol, scope, type; flags.
        let fixed = [
            [family(gateway), 0, 0, 0],
            [libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST],
            [0; 4],
        ]
        .concat();
        let request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed)
            .with(libc::RTA_GATEWAY, &octets(gateway))
            .with(libc::RTA_OIF, &index.to_ne_bytes());
        self.ask(request)
    }

    fn ask(&mut self, request: Request) -> Result<(), Errno> {
        self.sequence += 1;
        send(self.socket.as_raw_fd(), &request.finish(self.sequence), MsgFlags::empty())?;
        let mut bytes = [0; 4096];
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            if let Some(outcome) = answer(&bytes[..count], self.sequence) {
                return outcome;
            }
        }
    }
}

/// The answer to the request with this number, if it is among the messages in `bytes`.
fn answer(mut bytes: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
    };
    while let (Some(length), Some(number)) = (word(bytes, 0), word(bytes, 8)) {
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if kind == ERROR && number == sequence {
            // struct nlmsgerr begins with the error, negative.
            let error = word(bytes, HEADER)? as i32;
            return Some(if error == 0 { Ok(()) } else { Err(Errno::from_raw(error.wrapping_neg())) });
        }
        bytes = bytes.get((length as usize).next_multiple_of(4).max(HEADER)..)?;
    }
    None
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_counted() {
        let request = Request::new(7, 0, &[1; 8]).with(3, b"abcde").with(4, &[9; 4]).finish(5);
        assert_eq!(request.len(), 16 + 8 + 12 + 8);
        assert_eq!(request[..4], 44_u32.to_ne_bytes());
        assert_eq!(request[24..28], [9_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat());
        assert_eq!(request[33..36], [0; 3]);
        assert_eq!(request[36..40], [8_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
    }

    #[test]
    fn an_answer_is_found_among_others() {
        let message = |kind: u16, sequence: u32, error: i32| {
            let mut bytes = Request::new(kind, 0, &error.to_ne_bytes()).finish(sequence);
            bytes.extend([0; 16]);
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let all =
            [message(16, 2, 0), message(ERROR, 1, -17), message(ERROR, 2, -1), message(ERROR, 3, 0)].concat();
        assert_eq!(answer(&all, 1), Some(Err(Errno::EEXIST)));
        assert_eq!(answer(&all, 2), Some(Err(Errno::EPERM)));
        assert_eq!(answer(&all, 3), Some(Ok(())));
        assert_eq!(answer(&all, 4), None);
        for cut in 0..all.len() {
            let _ = answer(&all[..cut], 3);
        }
        // A length of nothing goes on, and ends.
        assert_eq!(answer(&[0; 100], 1), None);
    }
}
