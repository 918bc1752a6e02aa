//! Descriptors that are known by their number: inherited ones, and those received over a socket.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// For looking at; `None` if it is no descriptor's number.
pub(crate) fn borrow(fd: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: it is not -1; what is done with it (fcntl, getsockopt) fails harmlessly if it is not open.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Takes over one that is open, as the configuration says that it is.
pub(crate) fn inherit(fd: RawFd) -> Option<OwnedFd> {
    nix::fcntl::fcntl(borrow(fd)?, nix::fcntl::FcntlArg::F_GETFD).is_ok().then(|| adopt(fd))
}

/// Takes it over.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor was either just received, so that nobody else knows it, or is the one that the configuration
    // hands over to the VMM, checked to be open.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
