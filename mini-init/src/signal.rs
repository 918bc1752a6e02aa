//! Signals that carry a number.
#![allow(unsafe_code)]

use nix::{errno::Errno, unistd::Pid};

/// Sends a signal, realtime ones too, with a number beside it, which the receiver's signalfd shows as `ssi_int` (sigqueue(3)).
pub(crate) fn signal_with(pid: Pid, signal: i32, value: i32) -> Result<(), Errno> {
    let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
    // SAFETY: no memory is passed: the value is a number in a pointer's place, which only the receiver looks at.
    Errno::result(unsafe { libc::sigqueue(pid.as_raw(), signal, value) }).map(drop)
}
