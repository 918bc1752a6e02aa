//! Connections to the host.

use std::{fs::File, io, os::fd::OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use undercroft_protocol::{Opening, port, write_frame};

/// The host's context id (virtio specification 1.2, section 5.10.4: 2 is the host's).
pub(crate) const HOST_CID: u32 = 2;

/// Opens a connection and says what it is for. The socket blocks, and is closed on exec. An error if nobody listens on
/// [`port::UNDERCROFT`], or the opening cannot be written.
pub fn connect_as(opening: &Opening) -> io::Result<OwnedFd> {
    let socket = open()?;
    let mut stream = File::from(socket);
    write_frame(&mut stream, opening).map_err(io::Error::other)?;
    Ok(stream.into())
}

fn open() -> io::Result<OwnedFd> {
    #[cfg(feature = "unix-transport")]
    if let Some(name) =
        std::env::var("UNDERCROFT_HOST").ok().and_then(|v| v.strip_prefix('@').map(str::to_owned))
    {
        use nix::sys::socket::UnixAddr;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new_abstract(name.as_bytes())?)?;
        return Ok(socket);
    }
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &VsockAddr::new(HOST_CID, port::UNDERCROFT))?;
    Ok(socket)
}
