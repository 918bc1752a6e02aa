//! A TAP device's descriptor: what it must be, and what it is told (Linux, Documentation/networking/tuntap.rst).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::spec;

/// TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN (linux/if_tun.h).
const CHECKSUM: libc::c_ulong = 1;
const TSO4: libc::c_ulong = 2;
const TSO6: libc::c_ulong = 4;
const TSO_ECN: libc::c_ulong = 8;

/// Why a descriptor is no link.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no TUN/TAP device.
    #[error("the network's descriptor is not that of a TAP device")]
    NotATap(#[source] io::Error),
    /// It was made with other flags.
    #[error("the TAP device has the flags {0:#x}: expected IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (0x5002)")]
    Flags(i32),
    /// It does not take headers of virtio 1's length.
    #[error("the TAP device does not take headers of {} bytes", spec::HEADER_LENGTH)]
    Header(#[source] io::Error),
}

/// Checks that it is a TAP device whose frames have virtio's header and nothing else before them, and sets that header's
/// length.
pub(super) fn prepare(fd: BorrowedFd<'_>) -> Result<(), TapError> {
    const WANTED: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: an ifreq is plain data, for which all zeros are valid.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, which `interface` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut interface) })
        .map_err(TapError::NotATap)?;
    // SAFETY: the flags are the member that TUNGETIFF fills in, and any number is one.
    let flags = i32::from(unsafe { interface.ifr_ifru.ifru_flags });
    if flags & WANTED != WANTED {
        return Err(TapError::Flags(flags));
    }
    let length = spec::HEADER_LENGTH as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `length` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const length) })
        .map_err(TapError::Header)
}

/// Says what the guest's driver takes: packets without checksums, segments larger than packets.
pub(super) fn set_offloads(fd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    let mut flags = 0;
    if features & spec::F_GUEST_CHECKSUM != 0 {
        flags |= CHECKSUM;
        for (feature, flag) in
            [(spec::F_GUEST_TSO4, TSO4), (spec::F_GUEST_TSO6, TSO6), (spec::F_GUEST_ECN, TSO_ECN)]
        {
            flags |= if features & feature != 0 { flag } else { 0 };
        }
    }
    // SAFETY: TUNSETOFFLOAD takes a number and no memory.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) })
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_socket_is_no_tap() {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(prepare(socket.as_fd()), Err(TapError::NotATap(_))));
        assert!(set_offloads(socket.as_fd(), u64::MAX).is_err());
    }
}
