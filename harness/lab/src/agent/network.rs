//! The network of L1: loopback, and QEMU's user network at its usual addresses.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Address, mask and gateway that QEMU's `-netdev user` hands out, and its name server.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Brings `lo` up, and `eth0` if there is one.
pub(crate) fn up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    flags(&socket, "lo")?;
    if !Path::new("/sys/class/net/eth0").exists() {
        return Ok(());
    }
    address(&socket, libc::SIOCSIFADDR, ADDRESS)?;
    address(&socket, libc::SIOCSIFNETMASK, MASK)?;
    flags(&socket, "eth0")?;
    route(&socket)?;
    let file = "/run/resolv.conf";
    std::fs::write(file, format!("nameserver {NAME_SERVER}\n"))?;
    let target = std::fs::canonicalize("/etc/resolv.conf");
    match target {
        Ok(target) => {
            nix::mount::mount(Some(file), &target, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?
        }
        // A link into /run, which is empty here.
        Err(_) => {
            if let Ok(target) = std::fs::read_link("/etc/resolv.conf") {
                let target = Path::new("/etc").join(target);
                target.parent().map(std::fs::create_dir_all).transpose()?;
                std::fs::copy(file, target)?;
            }
        }
    }
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeroes is a valid one: a name of length zero and an integer union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain structures of sixteen bytes, made to stand for each other.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

fn done(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn flags(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

fn address(socket: &OwnedFd, what: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request("eth0");
    request.ifr_ifru.ifru_addr = internet(address);
    // SAFETY: both address ioctls read one ifreq.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), what, &request) })
}

fn route(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: an rtentry of zeroes is a valid one: integers, addresses of family zero, a null device name.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = internet(GATEWAY);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads one rtentry.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &route) })
}
