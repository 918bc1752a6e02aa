//! A TAP device of the host's that somebody has made: the calls that open it (Linux, Documentation/networking/tuntap.rst,
//! netdevice(7)).

#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::Arc,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use undercroft_config::Tap;

use super::TapOptions;

/// Why a TAP device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is none of this name.
    #[error(
        "there is no network device {0}: as root, `ip tuntap add dev {0} mode tap vnet_hdr user NAME` makes one that NAME can use"
    )]
    Unknown(String),
    /// It cannot be opened.
    #[error(
        "the TAP device {name} cannot be used (it is to be one, this user's own, and used by nobody else)"
    )]
    Refused {
        /// The device.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl TapOptions {
    /// Opens the device as the VMM takes it.
    ///
    /// # Errors
    ///
    /// That there is no such device, or that it is no TAP device of this user's that is free.
    pub fn open(tap: &Tap) -> Result<Self, TapError> {
        let refused = |source| TapError::Refused { name: tap.device.clone(), source };
        // Whoever may make devices would make one by opening it, which is gone when the machine is.
        let mtu = mtu(&tap.device).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => TapError::Unknown(tap.device.clone()),
            _ => refused(error),
        })?;
        let device = attach(&tap.device).map_err(refused)?;
        let (addresses, gateways) = (tap.addresses.clone(), tap.gateways.clone());
        Ok(Self { device: Arc::new(device.into()), mtu, addresses, gateways })
    }
}

fn attach(name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let device = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(device)
}

/// The bytes of its longest packet, as a guest's network card can have.
fn mtu(name: &str) -> io::Result<u16> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = request(name);
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
    // SAFETY: the MTU is the member that SIOCGIFMTU fills in, and any number is one.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(super::MTU))
}

/// A request about the device of this name, which [`Tap`] has found to be short enough to end with a zero.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_none_is_told() {
        let tap = |name: &str| format!("{name} 10.9.8.7/24").parse::<Tap>().expect("a device and an address");
        let error = TapOptions::open(&tap("nosuchdevice")).expect_err("nobody has made it");
        assert!(matches!(error, TapError::Unknown(_)), "{error}");
        assert!(matches!(TapOptions::open(&tap("lo")), Err(TapError::Refused { .. })));
    }
}
