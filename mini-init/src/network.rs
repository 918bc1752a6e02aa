//! The loopback device.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::log::Warnings;

/// Brings `lo` up; the kernel gives it its addresses by itself then.
pub(crate) fn loopback_up(warnings: &mut Warnings) {
    warnings.take("bringing up the loopback device", set_up(b"lo"));
}

/// netdevice(7): SIOCGIFFLAGS, SIOCSIFFLAGS.
fn set_up(name: &[u8]) -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: both requests read and write one ifreq, which `request` is, and which lives through the calls; the flags
    // are the union's member that both use.
    unsafe {
        Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))?;
    }
    Ok(())
}
