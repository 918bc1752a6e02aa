//! The last step: the init is executed, with what it must know on a descriptor.

use std::{
    ffi::CString,
    fs::File,
    io::{Seek, Write},
    os::fd::{AsRawFd, IntoRawFd},
};

use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::execve,
};
use undercroft_protocol::{
    command::{Failure, Launch},
    write_frame,
};

use crate::jobs::system;

/// Executes the init. Returns only if that fails.
///
/// The descriptor's number is in `UNDERCROFT_LAUNCH`; it holds one frame with the [`Launch`]. Its token is a secret of the
/// init's: arguments and environment of a process can be read by its user, a descriptor that is closed cannot.
pub(super) fn init(what: &Launch, path: &str) -> Failure {
    match try_init(what, path) {
        Ok(never) => match never {},
        Err(error) => system(&format!("executing the distribution's init {path}"))(error),
    }
}

fn try_init(what: &Launch, path: &str) -> std::io::Result<std::convert::Infallible> {
    let mut file = File::from(memfd_create(c"undercroft-launch", MFdFlags::empty())?);
    write_frame(&mut file, what).map_err(std::io::Error::other)?;
    file.flush()?;
    file.rewind()?;
    let descriptor = file.as_raw_fd();
    let path = CString::new(path)?;
    let mut environment = vec![CString::new(format!("UNDERCROFT_LAUNCH={descriptor}"))?];
    environment.push(c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    #[cfg(feature = "unix-transport")]
    if let Ok(host) = std::env::var("UNDERCROFT_HOST") {
        environment.push(CString::new(format!("UNDERCROFT_HOST={host}"))?);
    }
    let error = execve(&path, std::slice::from_ref(&path), &environment).err();
    // Not executed: the descriptor is closed with the process, which ends now.
    let _ = file.into_raw_fd();
    Err(error.map_or_else(std::io::Error::last_os_error, Into::into))
}
