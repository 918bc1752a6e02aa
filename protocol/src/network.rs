//! The network: what the host tells mini-init of it, and the relay between the host's loopback and the VM's listeners.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// How the VM's network card is to be set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The card's own address, by which it is found.
    pub mac: [u8; 6],
    /// Bytes of the longest packet.
    pub mtu: u16,
    /// The VM's addresses.
    pub addresses: Vec<Address>,
    /// Where everything else is reached, at most one of each family.
    pub gateways: Vec<IpAddr>,
}

/// An address, and how much of it the network's others have in common with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network's part.
    pub prefix: u8,
}

/// A network of a distribution's own: a wire to the VM, which passes on what goes further, in its own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Bytes of the longest packet.
    pub mtu: u16,
    /// The addresses of its ends, at most one pair of each family.
    pub ends: Vec<Ends>,
}

/// The addresses of the two ends of a [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The VM's, which is the distribution's gateway.
    pub vm: IpAddr,
    /// The distribution's, of the same family.
    pub distribution: IpAddr,
    /// Bits that both have in common.
    pub prefix: u8,
}

/// What names mean: the content of the resolv.conf that the distributions share, and of their /etc/hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Name servers, in the order in which they are asked.
    pub nameservers: Vec<IpAddr>,
    /// Domains that short names are looked for in.
    pub search: Vec<String>,
    /// resolv.conf(5)'s options, as they are.
    pub options: Vec<String>,
    /// Names that no server is asked for.
    pub hosts: Vec<Host>,
}

/// A name and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The address.
    pub address: IpAddr,
    /// The name.
    pub name: String,
}

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// In a stream.
    Tcp,
    /// In datagrams; where they go over a stream of ours, as [`Datagrams`](crate::datagrams::Datagrams).
    Udp,
}

/// One end of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// How bytes get there.
    pub transport: Transport,
    /// Where it is.
    pub address: SocketAddr,
}

impl Endpoint {
    /// For TCP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self { transport: Transport::Tcp, address }
    }

    /// For UDP.
    pub fn udp(address: SocketAddr) -> Self {
        Self { transport: Transport::Udp, address }
    }
}

/// `127.0.0.1:80`, `127.0.0.1:53/udp`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = if self.transport == Transport::Udp { "/udp" } else { "" };
        write!(f, "{}{transport}", self.address)
    }
}

/// A question to a name server (RFC 1035, 4.1), by somebody in the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// For the answer.
    pub id: u64,
    /// How it was asked: an answer by UDP may be cut short, by TCP it may not.
    pub transport: Transport,
    /// The message as it is, without the length that TCP puts before it.
    pub message: Vec<u8>,
}

/// What the host's name servers answered to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`Question::id`].
    pub id: u64,
    /// The message.
    pub message: Vec<u8>,
}

/// What the relay in the VM tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayEvent {
    /// All that is listened for now, when it has changed; it takes the place of what was told before.
    Listening(Vec<Listener>),
    /// Something that a person should read.
    Warning(String),
}

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// Where: loopback, or everywhere (the unspecified address).
    pub at: Endpoint,
    /// The distribution in whose own network that is; the VM's network otherwise.
    pub network: Option<u32>,
    /// The distribution that it belongs to, by [`Launch::id`](crate::command::Launch::id), if it does.
    pub distribution: Option<u32>,
    /// The program's name, as far as it is known.
    pub program: String,
    /// Its process id in the VM's own PID namespace, if it is known.
    pub pid: Option<u32>,
}

/// Where a connection of the host's to the relay goes on to: its first bytes. What comes on the one goes out on the other; with
/// UDP the host's has [`Datagrams`](crate::datagrams::Datagrams).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The distribution in whose own network that is; the VM's network otherwise.
    pub network: Option<u32>,
    /// An address there. (No scope: it is not one of a link's.)
    pub to: Endpoint,
}

impl Destination {
    /// Bytes of one.
    pub const LENGTH: usize = 24;

    /// Transport (0 TCP, 1 UDP) and, from bit 1 on, family (4, 6); whose network (0 the VM's, 1 a distribution's); the port, and that
    /// distribution, little endian; the address, of IPv4's the first four bytes.
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let address = self.to.address;
        let family = if address.is_ipv6() { 6 } else { 4 };
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = family << 1 | u8::from(self.to.transport == Transport::Udp);
        bytes[1] = self.network.is_some().into();
        bytes[2..4].copy_from_slice(&address.port().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.network.unwrap_or(0).to_le_bytes());
        match address.ip() {
            IpAddr::V4(ip) => bytes[8..12].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes[8..].copy_from_slice(&ip.octets()),
        }
        bytes
    }

    /// Nothing if that is none.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let [kind, whose, port_low, port_high, n0, n1, n2, n3, ip @ ..] = *bytes;
        let ip: IpAddr = match kind >> 1 {
            4 => [ip[0], ip[1], ip[2], ip[3]].into(),
            6 => ip.into(),
            _ => return None,
        };
        let network = match whose {
            0 => None,
            1 => Some(u32::from_le_bytes([n0, n1, n2, n3])),
            _ => return None,
        };
        let transport = if kind & 1 == 1 { Transport::Udp } else { Transport::Tcp };
        let address = SocketAddr::new(ip, u16::from_le_bytes([port_low, port_high]));
        Some(Self { network, to: Endpoint { transport, address } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_comes_back() {
        for (network, to) in [
            (None, Endpoint::tcp("127.0.0.1:80".parse().unwrap())),
            (Some(7), Endpoint::udp("[::1]:65535".parse().unwrap())),
            (Some(u32::MAX), Endpoint::tcp("[fe80::1:2]:443".parse().unwrap())),
        ] {
            let destination = Destination { network, to };
            assert_eq!(Destination::decode(&destination.encode()), Some(destination));
        }
        let good = Destination { network: None, to: Endpoint::tcp("127.0.0.1:80".parse().unwrap()) }.encode();
        for (at, bad) in [(0, 0), (0, 10), (0, 255), (1, 2)] {
            let mut bytes = good;
            bytes[at] = bad;
            assert_eq!(Destination::decode(&bytes), None);
        }
    }
}
