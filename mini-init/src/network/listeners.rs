//! What is listened for, and by whom: from /proc.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
};

use undercroft_protocol::network::{Endpoint, Listener, Transport};

use super::own;

/// As many as are told at most. A distribution can open more; the first ones count.
const LISTENERS_MAX: usize = 512;
/// The state LISTEN, as /proc/net/tcp has it; and that of a datagram socket that takes what anybody sends (TCP_CLOSE: it
/// is not connected).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";
/// Where a network's sockets are told, below /proc/net.
const FILES: [(&str, Transport); 4] =
    [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)];
/// Bytes of those files that are looked at.
const LENGTH_MAX: u64 = 1 << 20;

/// A socket that listens, by its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    network: Option<u32>,
    at: Endpoint,
    inode: u64,
}

/// Whose a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    distribution: u32,
    program: String,
    pid: u32,
}

/// What is known of the sockets that listen; owners are looked for once.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    owners: HashMap<u64, Owner>,
}

impl Listeners {
    /// All that can be reached by loopback, in order.
    pub(super) fn read(&mut self) -> Vec<Listener> {
        let mut sockets = Vec::new();
        let own = own::running().into_iter().map(|(id, init)| (Some(id), format!("/proc/{init}/net")));
        for (network, folder) in [(None, "/proc/net".to_owned())].into_iter().chain(own) {
            for (file, transport) in FILES {
                // Without IPv6 there are only two.
                if let Ok(file) = File::open(Path::new(&folder).join(file)) {
                    sockets.extend(parse(BufReader::new(file.take(LENGTH_MAX)), network, transport));
                }
            }
        }
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let passing = passing(&range);
        sockets.retain(|socket| {
            is_reached_by_loopback(socket.at.address.ip())
                && (socket.at.transport == Transport::Tcp || !passing.contains(&socket.at.address.port()))
        });
        sockets.truncate(LISTENERS_MAX);
        self.owners.retain(|inode, _| sockets.iter().any(|socket| socket.inode == *inode));
        if sockets.iter().any(|socket| !self.owners.contains_key(&socket.inode)) {
            self.find_owners(&sockets);
        }
        let mut all: Vec<Listener> = sockets
            .iter()
            .map(|socket| {
                let owner = self.owners.get(&socket.inode);
                Listener {
                    at: socket.at,
                    network: socket.network,
                    distribution: owner.map(|owner| owner.distribution),
                    program: owner.map_or_else(String::new, |owner| owner.program.clone()),
                    pid: owner.map(|owner| owner.pid),
                }
            })
            .collect();
        // SO_REUSEPORT: several at one address are one.
        all.sort_by_key(|listener| (listener.at, listener.network, listener.pid));
        all.dedup_by_key(|listener| (listener.at, listener.network));
        all
    }

    /// Looks through the distributions' processes, from the lowest number on: the first that has a socket is the one that
    /// the others have it from.
    fn find_owners(&mut self, sockets: &[Socket]) {
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        for pid in pids {
            let folder = Path::new("/proc").join(pid.to_string());
            let cgroup = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
            let Some(distribution) = distribution(&cgroup) else { continue };
            for link in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
                let Some(inode) = fs::read_link(link.path()).ok().as_deref().and_then(inode) else {
                    continue;
                };
                if sockets.iter().any(|socket| socket.inode == inode) {
                    self.owners.entry(inode).or_insert_with(|| {
                        let name = fs::read(folder.join("comm")).unwrap_or_default();
                        let program = String::from_utf8_lossy(&name).trim_end().to_owned();
                        Owner { distribution, program, pid }
                    });
                }
            }
        }
    }
}

fn is_reached_by_loopback(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// `/proc/PID/cgroup` → the number of its distribution.
pub(super) fn distribution(cgroup: &str) -> Option<u32> {
    let rest = cgroup.lines().find_map(|line| line.strip_prefix("0::/distributions/"))?;
    rest.split('/').next()?.parse().ok()
}

/// `socket:[4711]` → 4711.
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The sockets that listen, of /proc/net/tcp or tcp6 (proc_net_tcp.rst), where they come first, or of udp or udp6, where
/// they are among others.
fn parse(file: impl BufRead, network: Option<u32>, transport: Transport) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for line in file.lines().skip(1).map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = words[..] else { break };
        match (transport, state) {
            (Transport::Tcp, LISTENING) | (Transport::Udp, UNCONNECTED) => {}
            (Transport::Tcp, _) => break,
            (Transport::Udp, _) => continue,
        }
        if let (Some(address), Ok(inode)) = (address(local), inode.parse()) {
            sockets.push(Socket { network, at: Endpoint { transport, address }, inode });
        }
    }
    sockets
}

/// The ports that the kernel gives to who asks for none (ip-sysctl.rst, ip_local_port_range). A datagram socket that has one
/// is most likely not there to be found, but to ask somebody something: that one listens and one asks looks alike.
fn passing(range: &str) -> RangeInclusive<u16> {
    let mut numbers = range.split_whitespace().map_while(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32_768..=60_999,
    }
}

/// `0100007F:1F90`: words of 32 bits as they lie in memory, read as numbers of this machine's; the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    let mut rest = ip;
    while !rest.is_empty() {
        let (word, after) = rest.split_at_checked(8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = after;
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n\
            \x20  2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100 0 0 10 0\n\
            \x20  3: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1 0 100 0 0 10 0\n";
        let seen = |transport| -> Vec<_> {
            let sockets = parse(text.as_bytes(), None, transport);
            sockets.iter().map(|socket| (socket.at.to_string(), socket.inode)).collect()
        };
        assert_eq!(
            seen(Transport::Tcp),
            [("0.0.0.0:80".into(), 11), ("127.0.0.1:8080".into(), 12)],
            "until the first other one"
        );
        assert_eq!(
            address("00000000000000000000000001000000:0016"),
            Some(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 22))
        );
        for nonsense in
            ["", ":", "00:00", "0000000:0050", "0100007F:10000", "ü100007F:1", "0100007F0100007F:1"]
        {
            assert_eq!(address(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn owners_are_told_by_cgroup_and_link() {
        assert_eq!(distribution("0::/distributions/7/session-1\n"), Some(7));
        assert_eq!(distribution("0::/distributions/12\n"), Some(12));
        assert_eq!(distribution("0::/\n"), None);
        assert_eq!(inode(Path::new("socket:[4711]")), Some(4711));
        assert_eq!(inode(Path::new("/dev/null")), None);
    }

    #[test]
    fn one_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(Listeners::default().read().iter().any(|listener| listener.at == Endpoint::tcp(address)));
        drop(listener);
        assert!(!Listeners::default().read().iter().any(|listener| listener.at == Endpoint::tcp(address)));
    }
}
