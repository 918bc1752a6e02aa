//! Which addresses the VM and the host's side of its network have.
//!
//! They are the VM's own affair: passt translates each connection into one of the host's, so nobody else ever sees them. They
//! must only be none of those that the host itself is in a network with, since the VM would take these for its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use undercroft_protocol::network::{Address, Ends};

/// Networks of 256 addresses that are private (RFC 1918) and rarely met; the first that is free is taken.
const NETWORKS: [[u8; 3]; 4] = [[10, 87, 84], [172, 29, 84], [192, 168, 184], [10, 184, 87]];
/// A network of the VM's own (RFC 4193): fd, and forty bits that were drawn once.
const NETWORK6: [u16; 4] = [0xfd75, 0x6e64, 0x6374, 0];
const PREFIX: u8 = 24;
const PREFIX6: u8 = 64;
/// Networks of 65 536 addresses of the same kind, for the wires of distributions that have a network of their own, four
/// addresses each; and the one of the VM's own for those.
const WIRES: [[u8; 2]; 4] = [[10, 88], [172, 28], [10, 185], [172, 30]];
const WIRES6: [u16; 4] = [NETWORK6[0], NETWORK6[1], NETWORK6[2], 1];
/// How many wires there are addresses for.
const WIRES_MAX: u32 = 1 << 14;
/// Bits that the two ends of a wire have in common.
const PREFIX_WIRE: u8 = 30;
const PREFIX_WIRE6: u8 = 126;

/// The addresses of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    network: [u8; 3],
    wires: [u8; 2],
    /// By which of its devices the host reaches the world by IPv6, if it does and it is wanted.
    pub(crate) ipv6: Option<String>,
}

impl Addresses {
    /// A network in which the host has no address.
    pub(crate) fn choose(hosts: &[IpAddr], ipv6: Option<String>) -> Self {
        let is_free = |network: &[u8; 3]| {
            !hosts.iter().any(|host| matches!(host, IpAddr::V4(host) if host.octets()[..3] == network[..]))
        };
        let network = NETWORKS.into_iter().find(is_free).unwrap_or(NETWORKS[0]);
        let is_free = |wires: &[u8; 2]| {
            !hosts.iter().any(|host| matches!(host, IpAddr::V4(host) if host.octets()[..2] == wires[..]))
        };
        let wires = WIRES.into_iter().find(is_free).unwrap_or(WIRES[0]);
        Self { network, wires, ipv6 }
    }

    fn v4(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, last)
    }

    fn v6(last: u16) -> Ipv6Addr {
        let [a, b, c, d] = NETWORK6;
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, last)
    }

    /// By which everything else is reached, and the host itself.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.v4(1)
    }

    pub(crate) fn gateway6(&self) -> Ipv6Addr {
        Self::v6(1)
    }

    /// The VM's.
    pub(crate) fn guest(&self) -> Ipv4Addr {
        self.v4(2)
    }

    pub(crate) fn guest6(&self) -> Ipv6Addr {
        Self::v6(2)
    }

    /// At which the host's own name server answers.
    pub(crate) fn resolver(&self) -> Ipv4Addr {
        self.v4(3)
    }

    pub(crate) fn prefix(&self) -> u8 {
        PREFIX
    }

    /// The VM's, as it is told them.
    pub(crate) fn all(&self) -> Vec<Address> {
        let mut all = vec![Address { ip: self.guest().into(), prefix: PREFIX }];
        if self.ipv6.is_some() {
            all.push(Address { ip: self.guest6().into(), prefix: PREFIX6 });
        }
        all
    }

    /// Those of the wire of the distribution with this number.
    pub(crate) fn wire(&self, number: u32) -> Vec<Ends> {
        let number = (number % WIRES_MAX) as u16 * 4;
        let v4 = |last: u16| {
            let ([a, b], [c, d]) = (self.wires, (number + last).to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        };
        let v6 = |last: u16| {
            let [a, b, c, d] = WIRES6;
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, number + last).into()
        };
        let mut all = vec![Ends { vm: v4(1), distribution: v4(2), prefix: PREFIX_WIRE }];
        if self.ipv6.is_some() {
            all.push(Ends { vm: v6(1), distribution: v6(2), prefix: PREFIX_WIRE6 });
        }
        all
    }

    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        let mut all = vec![self.gateway().into()];
        if self.ipv6.is_some() {
            all.push(self.gateway6().into());
        }
        all
    }
}

/// The host's addresses, as /proc/net/fib_trie has them: each local one stands on the line before `/32 host LOCAL`.
pub(crate) fn hosts(fib_trie: &str) -> Vec<IpAddr> {
    let lines: Vec<&str> = fib_trie.lines().collect();
    let local = lines.windows(2).filter(|pair| pair[1].contains("/32 host LOCAL"));
    local.filter_map(|pair| pair[0].trim_start_matches(['|', '-', ' ']).trim().parse().ok()).collect()
}

/// By which device the host reaches the world by IPv6, as /proc/net/ipv6_route has it: destination, its prefix, …, flags, device.
pub(crate) fn ipv6_device(routes: &str) -> Option<&str> {
    /// RTF_REJECT (linux/route.h).
    const REJECT: u32 = 0x200;
    routes.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, prefix, .., flags, device] = words[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(REJECT);
        let is_default = destination.bytes().all(|byte| byte == b'0') && prefix == "00";
        (is_default && flags & REJECT == 0 && device != "lo").then_some(device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_the_hosts_is_not_taken() {
        let addresses = Addresses::choose(&[], None);
        assert_eq!(addresses.guest(), Ipv4Addr::new(10, 87, 84, 2));
        assert_eq!((addresses.all().len(), addresses.gateways().len()), (1, 1));
        let taken = [IpAddr::from([10, 87, 84, 77]), IpAddr::from([172, 29, 84, 1])];
        let addresses = Addresses::choose(&taken, Some("eth0".into()));
        assert_eq!(addresses.gateway(), Ipv4Addr::new(192, 168, 184, 1));
        assert_eq!((addresses.all().len(), addresses.gateways().len()), (2, 2));
        let wire = |addresses: &Addresses, number| addresses.wire(number)[0].distribution.to_string();
        assert_eq!(wire(&addresses, 1), "10.88.0.6");
        assert_eq!(addresses.wire(1)[1].vm.to_string(), "fd75:6e64:6374:1::5");
        assert_eq!(wire(&addresses, WIRES_MAX - 1), "10.88.255.254");
        assert_eq!(wire(&addresses, WIRES_MAX), "10.88.0.2");
        assert_eq!(wire(&Addresses::choose(&[[10, 88, 7, 7].into()], None), 2), "172.28.0.10");
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n\
                    \x20       +-- 192.0.2.0/24 2 0 2\n           |-- 192.0.2.2\n              /32 host LOCAL\n\
                    \x20          |-- 192.0.2.255\n              /32 link BROADCAST\n";
        assert_eq!(hosts(trie), [IpAddr::from([192, 0, 2, 2])]);
        let zeros = "0".repeat(32);
        let route = |flags: &str, device: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 {flags} {device}\n")
        };
        assert_eq!(ipv6_device(&route("00000003", "    eth0")), Some("eth0"));
        assert_eq!(ipv6_device(&route("00200200", "      lo")), None);
        assert_eq!(ipv6_device(&format!("fd{} 40 x 00 x 0 0 0 00000001 eth0\n", &zeros[2..])), None);
        assert_eq!(ipv6_device("nonsense\n"), None);
    }
}
