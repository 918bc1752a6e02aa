//! What of the host's a value names: an address, a folder, a network device.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::value::is_path;

/// Where on the host a port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The address, and the port that is the same in the virtual machine.
    pub address: SocketAddr,
    /// Whether it is one of UDP's, not of TCP's.
    pub is_udp: bool,
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, is_udp) = text.strip_suffix("/udp").map_or((text, false), |address| (address, true));
        let address = address.strip_suffix("/tcp").unwrap_or(address).parse::<SocketAddr>();
        match address {
            Ok(address) if address.port() != 0 => Ok(Self { address, is_udp }),
            _ => {
                Err("expected an address of this host's and a port, such as 0.0.0.0:8080, [::]:53/udp".into())
            }
        }
    }
}

/// `0.0.0.0:53/udp`.
impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, if self.is_udp { "/udp" } else { "" })
    }
}

/// A folder of the host's in a distribution.
#[derive(Debug, Clone, Eq)]
pub struct Mount {
    /// The host's path: absolute, or `~/…` until it is resolved.
    pub host: String,
    /// The distribution's path: absolute, without `..`.
    pub guest: String,
    /// Whether the distribution can only read.
    pub read_only: bool,
    /// The line that it was written in, or 0.
    pub line: usize,
}

/// Wherever they were written.
impl PartialEq for Mount {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, &self.guest, self.read_only) == (&other.host, &other.guest, other.read_only)
    }
}

/// `/home/ada/src:/mnt/src:ro`.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host, self.guest, if self.read_only { ":ro" } else { "" })
    }
}

/// Why a text is no [`Mount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected FOLDER[:DIR][:ro|:rw], the host's FOLDER (in a file absolute, or ~/…) and where the distribution sees it, \
     absolute and without `..`"
)]
pub struct NotAMount;

/// The first `:/` parts the two, so that either may have colons of another kind in it; a host folder alone is seen at the
/// same path.
impl FromStr for Mount {
    type Err = NotAMount;

    fn from_str(text: &str) -> Result<Self, NotAMount> {
        let (folders, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        let (host, guest) = match folders.split_once(":/") {
            Some((host, guest)) => (host, format!("/{guest}")),
            None if folders.contains(':') => return Err(NotAMount),
            None => (folders, folders.to_owned()),
        };
        let plain = |path: &str| path.split('/').all(|part| part != ".." && part != ".");
        let good = is_path(host)
            && guest.starts_with('/')
            && !guest.contains('\0')
            && plain(&guest)
            && guest.len() > 1;
        good.then(|| Mount { host: host.into(), guest, read_only, line: 0 }).ok_or(NotAMount)
    }
}

/// A TAP device of the host's, and who the virtual machine is in its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The device's name, of at most 15 bytes (IFNAMSIZ in the kernel's include/uapi/linux/if.h).
    pub device: String,
    /// The virtual machine's addresses, and the bits of each that its network shares.
    pub addresses: Vec<(IpAddr, u8)>,
    /// By whom everything else is reached, one of each family at most.
    pub gateways: Vec<IpAddr>,
}

/// `tap0 192.168.7.2/24,fd07::2/64 via 192.168.7.1`.
impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect();
        write!(f, "{} {}", self.device, addresses.join(","))?;
        let gateways: Vec<_> = self.gateways.iter().map(ToString::to_string).collect();
        if gateways.is_empty() { Ok(()) } else { write!(f, " via {}", gateways.join(",")) }
    }
}

/// Why a text is no [`Tap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected DEVICE ADDRESS/BITS[,…] [via GATEWAY[,…]], such as tap0 192.168.7.2/24 via 192.168.7.1")]
pub struct NotATap;

impl FromStr for Tap {
    type Err = NotATap;

    fn from_str(text: &str) -> Result<Self, NotATap> {
        let words: Vec<_> = text.split_whitespace().collect();
        let (device, addresses, gateways) = match words[..] {
            [device, addresses] => (device, addresses, ""),
            [device, addresses, "via", gateways] => (device, addresses, gateways),
            _ => return Err(NotATap),
        };
        let named = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
        if device.len() > 15 || [".", ".."].contains(&device) || !device.chars().all(named) {
            return Err(NotATap);
        }
        let address = |text: &str| {
            let (ip, bits) = text.split_once('/')?;
            let (ip, bits) = (ip.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
        };
        let addresses: Vec<_> = addresses.split(',').map(address).collect::<Option<_>>().ok_or(NotATap)?;
        let gateways: Vec<IpAddr> = match gateways {
            "" => Vec::new(),
            some => some.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| NotATap)?,
        };
        let one_each = |four: bool| gateways.iter().filter(|ip| ip.is_ipv4() == four).count() <= 1;
        let reached = gateways.iter().all(|by| addresses.iter().any(|(ip, _)| ip.is_ipv4() == by.is_ipv4()));
        match one_each(true) && one_each(false) && reached {
            true => Ok(Self { device: device.into(), addresses, gateways }),
            false => Err(NotATap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_a_device_and_addresses() {
        for good in ["tap0 192.168.7.2/24", "t 10.0.0.2/8,fd07::2/64 via 10.0.0.1,fd07::1"] {
            assert_eq!(good.parse::<Tap>().map(|tap| tap.to_string()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "tap0",
            "tap0 192.168.7.2",
            "tap0 192.168.7.2/33",
            "tap0 x/24",
            "tap0 10.0.0.2/8 via",
            "tap0 10.0.0.2/8 by 10.0.0.1",
            "tap0 10.0.0.2/8 via fd07::1",
            "tap0 10.0.0.2/8 via 10.0.0.1,10.0.0.3",
            "../tap0 10.0.0.2/8",
            ".. 10.0.0.2/8",
            "a-name-that-is-long 10.0.0.2/8",
        ] {
            assert_eq!(bad.parse::<Tap>(), Err(NotATap), "{bad}");
        }
    }
}
