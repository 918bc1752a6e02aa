//! A session's terminal, in the distribution's own /dev/pts.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{errno::Errno, unistd::Pid};
use undercroft_protocol::session::WindowSize;

/// Opens a new terminal: its master, and its slave, which does not become anybody's controlling terminal yet.
pub(crate) fn open(size: WindowSize) -> io::Result<(File, File)> {
    let master =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/pts/ptmx")?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which lives through the call (ioctl_tty(2)).
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    // By the master and not by name: no name that the distribution could have changed is involved.
    // SAFETY: TIOCGPTPEER takes flags and makes a descriptor; no memory is passed.
    let slave = Errno::result(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
    })?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    let slave = unsafe { File::from_raw_fd(slave) };
    resize(&master, size)?;
    Ok((master, slave))
}

/// Changes the window's size; the foreground process group gets SIGWINCH from the kernel.
pub(crate) fn resize(terminal: &impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Makes the terminal this process's controlling one; the process must lead a session that has none.
pub(crate) fn take_control(slave: &impl AsFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number; no memory is passed.
    Errno::result(unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// The terminal's foreground process group, if it has one.
pub(crate) fn foreground(master: &impl AsFd) -> Option<Pid> {
    nix::unistd::tcgetpgrp(master).ok().filter(|group| group.as_raw() > 0)
}
