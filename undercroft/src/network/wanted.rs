//! What is to be listened for on the host, by what is listened for in the VM and what is published.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use undercroft_protocol::network::{Endpoint, Listener};

use super::relay::Goal;

/// What is to be listened for on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Want {
    /// On the host.
    pub(super) outside: Endpoint,
    /// Where it goes to in the VM: in whose network, and where there.
    pub(super) network: Option<u32>,
    pub(super) to: SocketAddr,
    /// Whether somebody has asked for it to be there, for everybody.
    pub(super) is_published: bool,
}

impl Want {
    pub(super) fn goal(&self) -> Goal {
        let at = Endpoint { address: self.to, ..self.outside };
        Goal { network: self.network, at, is_for_all: self.is_published }
    }
}

/// What is published: where on the host, and whose port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    pub(super) at: Endpoint,
    pub(super) whose: Whose,
}

/// Whose port is published.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// Whoever listens there.
    Anybodys,
    /// This distribution's alone, as soon as it is known that it is.
    Distributions(u32),
}

impl Published {
    fn is_for(&self, listener: &Listener) -> bool {
        let is_its = match self.whose {
            Whose::Anybodys => true,
            Whose::Distributions(id) => [listener.distribution, listener.network].contains(&Some(id)),
        };
        let port = listener.at.address.port();
        is_its && self.at.transport == listener.at.transport && self.at.address.port() == port
    }
}

/// What to listen for on the host: IPv4 on 127.0.0.1, IPv6 on ::1, and what is open to everybody by IPv6 on both, unless
/// IPv4 has one of its own. What is published at an address that includes one of those takes its place.
pub(super) fn wanted(
    listeners: Vec<Listener>,
    ignored: &[u16],
    published: &[Published],
) -> BTreeMap<Want, Listener> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let mut wanted: BTreeMap<(Endpoint, Option<u32>), (Want, Listener)> = BTreeMap::new();
    let (four, six): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.at.address.is_ipv4());
    for listener in four.into_iter().chain(six) {
        let Endpoint { transport, address } = listener.at;
        let (ip, port) = (address.ip(), address.port());
        if ignored.contains(&port) || port == 0 || !(ip.is_loopback() || ip.is_unspecified()) {
            continue;
        }
        let own = if ip.is_ipv4() { v4 } else { v6 };
        let to = SocketAddr::new(own, port);
        let mut put = |outside: Endpoint, is_published: bool| {
            let network = listener.network;
            wanted
                .entry((outside, network))
                .or_insert_with(|| (Want { outside, network, to, is_published }, listener.clone()));
        };
        let here = |one: &&Published| one.is_for(&listener);
        for one in published.iter().filter(here) {
            put(one.at, true);
        }
        // The wildcard of IPv6 takes IPv4's, too.
        let is_taken = |ip: IpAddr| {
            let mut wildcards = published.iter().filter(here).map(|one| one.at.address.ip());
            wildcards.any(|all| all == ip || all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4()))
        };
        let others = if ip.is_ipv6() && ip.is_unspecified() { vec![v6, v4] } else { vec![own] };
        for outside in others.into_iter().filter(|ip| !is_taken(*ip)) {
            put(Endpoint { transport, address: SocketAddr::new(outside, port) }, false);
        }
    }
    wanted.into_values().collect()
}

#[cfg(test)]
mod tests {
    use undercroft_protocol::network::Transport;

    use super::*;

    fn listener(address: &str) -> Listener {
        let at = Endpoint::tcp(address.parse().unwrap());
        Listener { at, network: None, distribution: Some(1), program: "p".into(), pid: Some(9) }
    }

    fn pairs(listeners: &[&str], ignored: &[u16]) -> Vec<(String, String)> {
        let listeners = listeners.iter().map(|address| listener(address)).collect();
        wanted(listeners, ignored, &[])
            .into_keys()
            .map(|want| (want.outside.to_string(), want.to.to_string()))
            .collect()
    }

    #[test]
    fn loopback_is_answered_by_loopback() {
        let expected = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(outside, to)| ((*outside).into(), (*to).into()))
                .collect::<Vec<(String, String)>>()
        };
        assert_eq!(
            pairs(&["0.0.0.0:80", "127.0.0.1:81"], &[]),
            expected(&[("127.0.0.1:80", "127.0.0.1:80"), ("127.0.0.1:81", "127.0.0.1:81")])
        );
        assert_eq!(
            pairs(&["[::]:80", "[::1]:81"], &[]),
            expected(&[("127.0.0.1:80", "[::1]:80"), ("[::1]:80", "[::1]:80"), ("[::1]:81", "[::1]:81")])
        );
        // Both: each has its own.
        assert_eq!(
            pairs(&["[::]:80", "0.0.0.0:80"], &[]),
            expected(&[("127.0.0.1:80", "127.0.0.1:80"), ("[::1]:80", "[::1]:80")])
        );
        assert_eq!(pairs(&["0.0.0.0:80", "10.0.0.2:81", "0.0.0.0:0"], &[80]), []);
    }

    #[test]
    fn what_is_published_is_there_and_in_the_place_of_what_it_includes() {
        let published = ["0.0.0.0:80", "[::]:81", "192.0.2.1:82", "192.0.2.1:83"];
        let published = published
            .map(|address| Published { at: Endpoint::tcp(address.parse().unwrap()), whose: Whose::Anybodys });
        let outside = |listeners: &[&str]| -> Vec<(String, bool)> {
            let listeners = listeners.iter().map(|address| listener(address)).collect();
            let wanted = wanted(listeners, &[], &published);
            wanted.into_keys().map(|want| (want.outside.to_string(), want.is_published)).collect()
        };
        let own = |text: &str, is_published| (text.to_owned(), is_published);
        assert_eq!(outside(&["127.0.0.1:80"]), [own("0.0.0.0:80", true)]);
        assert_eq!(outside(&["[::]:81"]), [own("[::]:81", true)]);
        assert_eq!(outside(&["127.0.0.1:82"]), [own("127.0.0.1:82", false), own("192.0.2.1:82", true)]);
        assert_eq!(outside(&["127.0.0.1:84"]), [own("127.0.0.1:84", false)]);
        // By UDP that is another port.
        let mut datagrams = listener("127.0.0.1:80");
        datagrams.at.transport = Transport::Udp;
        let wanted: Vec<_> = wanted(vec![datagrams], &[], &published).into_keys().collect();
        assert_eq!(wanted[0].outside.to_string(), "127.0.0.1:80/udp");
    }

    #[test]
    fn what_is_published_of_one_is_not_the_others() {
        let at = Endpoint::tcp("192.0.2.1:80".parse().unwrap());
        let of = |id| Published { at, whose: Whose::Distributions(id) };
        let count = |network, distribution, id| {
            let listener = Listener { network, distribution, ..listener("0.0.0.0:80") };
            wanted(vec![listener], &[], &[of(id)]).into_keys().filter(|want| want.is_published).count()
        };
        assert_eq!([count(None, Some(1), 1), count(None, Some(2), 1), count(None, None, 1)], [1, 0, 0]);
        assert_eq!([count(Some(1), None, 1), count(Some(2), None, 1)], [1, 0]);
    }

    #[test]
    fn networks_of_their_own_have_the_same_ports() {
        let own = |network| Listener { network, ..listener("0.0.0.0:80") };
        let wanted: Vec<Want> =
            wanted(vec![own(None), own(Some(7)), own(Some(3))], &[], &[]).into_keys().collect();
        let networks: Vec<Option<u32>> = wanted.iter().map(|want| want.network).collect();
        assert_eq!(networks, [None, Some(3), Some(7)]);
        assert!(wanted.iter().all(|want| want.outside.to_string() == "127.0.0.1:80"));
        assert_eq!(wanted[1].goal().network, Some(3));
    }
}
