//! Requests to the kernel's routing and packet filter tables (rtnetlink(7), linux/netfilter/nfnetlink.h).

use std::{
    net::IpAddr,
    ops::RangeInclusive,
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
/// linux/veth.h: the other end, as its own struct ifinfomsg with attributes.
const VETH_INFO_PEER: u16 = 1;

/// Attributes, one after another (struct nlattr, linux/netlink.h): length and type, content, up to a multiple of four.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// With one more.
    pub(super) fn with(mut self, kind: u16, content: &[u8]) -> Self {
        put(&mut self.0, kind, content);
        self
    }

    /// With one more, which holds others.
    pub(super) fn holding(self, kind: u16, others: &Attributes) -> Self {
        self.with(kind | libc::NLA_F_NESTED as u16, &others.0)
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, content: &[u8]) {
    // Contents are a few hundred bytes at most.
    bytes.extend((4 + content.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A name as the kernel takes it.
pub(super) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// A request in the making.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// With the fixed part that its type has. It is to be answered.
    pub(super) fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// One that nobody answers.
    pub(super) fn unanswered(kind: u16, fixed: &[u8]) -> Self {
        let mut request = Self::new(kind, 0, fixed);
        request.0[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request
    }

    /// With an attribute more.
    pub(super) fn with(mut self, kind: u16, content: &[u8]) -> Self {
        put(&mut self.0, kind, content);
        self
    }

    /// With one more, which holds others.
    pub(super) fn holding(self, kind: u16, others: &Attributes) -> Self {
        self.with(kind | libc::NLA_F_NESTED as u16, &others.0)
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
    /// To the routing tables of the network that this thread is in.
    pub(super) fn open() -> Result<Self, Errno> {
        Self::to(SockProtocol::NetlinkRoute)
    }

    /// To its packet filter.
    pub(super) fn open_filter() -> Result<Self, Errno> {
        Self::to(SockProtocol::NetlinkNetFilter)
    }

    fn to(protocol: SockProtocol) -> Result<Self, Errno> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A link's number.
    pub(super) fn index(&self, name: &str) -> std::io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// Makes a pair of links that are the two ends of one wire: the first here, the second in the network of a process.
    pub(super) fn add_pair(&mut self, mtu: u32, here: &str, there: &str, process: u32) -> Result<(), Errno> {
        // struct ifinfomsg, all of which attributes say.
        let fixed = [0; 16];
        let ends = |bytes: &mut Vec<u8>, name: &str| {
            put(bytes, libc::IFLA_IFNAME, &text(name));
            put(bytes, libc::IFLA_MTU, &mtu.to_ne_bytes());
        };
        let mut peer = fixed.to_vec();
        ends(&mut peer, there);
        put(&mut peer, libc::IFLA_NET_NS_PID, &process.to_ne_bytes());
        let pair = Attributes::default()
            .with(libc::IFLA_INFO_KIND, b"veth")
            .holding(libc::IFLA_INFO_DATA, &Attributes::default().with(VETH_INFO_PEER, &peer));
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWLINK, flags, &fixed);
        ends(&mut request.0, here);
        self.ask(request.holding(libc::IFLA_LINKINFO, &pair))
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
        self.exchange(&request.finish(self.sequence), self.sequence..=self.sequence)
    }

    /// Asks for all of these in one message, of which all happen or none. All but the first and the last, which begin and
    /// end it, are answered.
    pub(super) fn ask_for_all(&mut self, requests: Vec<Request>) -> Result<(), Errno> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence += 1;
            bytes.extend(request.finish(self.sequence));
        }
        self.exchange(&bytes, first..=self.sequence - 1)
    }

    /// Sends that, and waits until the last of these is answered, or one of them by an error.
    fn exchange(&mut self, request: &[u8], numbers: RangeInclusive<u32>) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), request, MsgFlags::empty())?;
        let mut bytes = [0; 8192];
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            for (number, outcome) in answers(&bytes[..count]) {
                if numbers.contains(&number) {
                    outcome?;
                }
                if number == *numbers.end() {
                    return Ok(());
                }
            }
        }
    }
}

/// The answers among the messages in `bytes`, with the numbers of what they answer.
fn answers(mut bytes: &[u8]) -> Vec<(u32, Result<(), Errno>)> {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
    };
    let mut all = Vec::new();
    while let (Some(length), Some(number)) = (word(bytes, 0), word(bytes, 8)) {
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        // struct nlmsgerr begins with the error, negative.
        if kind == ERROR
            && let Some(error) = word(bytes, HEADER)
        {
            let error = (error as i32).wrapping_neg();
            all.push((number, if error == 0 { Ok(()) } else { Err(Errno::from_raw(error)) }));
        }
        let Some(rest) = bytes.get((length as usize).next_multiple_of(4).max(HEADER)..) else { break };
        bytes = rest;
    }
    all
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
    fn attributes_hold_others() {
        let inner = Attributes::default().with(1, b"ab").with(2, &[3; 4]);
        let request = Request::unanswered(9, &[]).holding(18, &inner).finish(1);
        assert_eq!(request[6..8], 1_u16.to_ne_bytes(), "no answer is asked for");
        assert_eq!(request[16..20], [20_u16.to_ne_bytes(), (18_u16 | 1 << 15).to_ne_bytes()].concat());
        assert_eq!(request[20..28], [6, 0, 1, 0, b'a', b'b', 0, 0]);
        assert_eq!(request.len(), 16 + 4 + 8 + 8);
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
        assert_eq!(answers(&all), [(1, Err(Errno::EEXIST)), (2, Err(Errno::EPERM)), (3, Ok(()))]);
        for cut in 0..all.len() {
            assert!(answers(&all[..cut]).len() <= 3);
        }
        // A length of nothing goes on, and ends.
        assert_eq!(answers(&[0; 100]), []);
    }
}
