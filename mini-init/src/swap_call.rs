//! swapon(2) and swapoff(2), which no crate wraps.
#![allow(unsafe_code)]

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path};

use nix::errno::Errno;

/// include/linux/swap.h: what a priority is marked by; and that blocks are discarded, all at first and each when it is free,
/// so that the host's file is as large as what is swapped out.
const SWAP_FLAG_PREFER: i32 = 0x8000;
const SWAP_FLAG_PRIO_MASK: i32 = 0x7fff;
const SWAP_FLAG_DISCARD: i32 = 0x1_0000;

/// Begins to use a device as swap, with the kernel's priority or this one. It must have a swap's header.
pub(crate) fn on(device: &Path, priority: Option<u16>) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_bytes())?;
    let preferred = priority.map_or(0, |number| SWAP_FLAG_PREFER | (i32::from(number) & SWAP_FLAG_PRIO_MASK));
    // SAFETY: the path is a string with its zero, and lives through the call; no other memory is passed.
    let result = unsafe { libc::swapon(path.as_ptr(), preferred | SWAP_FLAG_DISCARD) };
    Ok(Errno::result(result).map(drop)?)
}

/// Moves what is swapped out to a device back into memory, and ends its use.
pub(crate) fn off(device: &Path) -> io::Result<()> {
    let path = CString::new(device.as_os_str().as_bytes())?;
    // SAFETY: the path is a string with its zero, and lives through the call.
    let result = unsafe { libc::swapoff(path.as_ptr()) };
    Ok(Errno::result(result).map(drop)?)
}
