//! The network: what the host tells mini-init of it, and the relay between the host's loopback and the VM's listeners.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::opening::Token;

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

/// What the relay in the VM tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayEvent {
    /// All that is listened for now, when it has changed; it takes the place of what was told before.
    Listening(Vec<Listener>),
    /// Nobody takes the connection that was asked for with this token.
    Refused(Token),
    /// Something that a person should read.
    Warning(String),
}

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// Where: loopback, or everywhere (the unspecified address).
    pub address: SocketAddr,
    /// The distribution that it belongs to, by [`Launch::id`](crate::command::Launch::id), if it does.
    pub distribution: Option<u32>,
    /// The program's name, as far as it is known.
    pub program: String,
    /// Its process id in the VM's own PID namespace, if it is known.
    pub pid: Option<u32>,
}

/// What the host asks of the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayRequest {
    /// Connect there, and come back with the token; what comes on the one goes out on the other.
    Connect {
        /// For the stream's opening.
        token: Token,
        /// An address of the VM's.
        to: SocketAddr,
    },
}
