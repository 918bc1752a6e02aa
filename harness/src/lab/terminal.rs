//! The host's terminal while a command in the lab has one: raw, and as it was afterwards.
#![allow(unsafe_code)]

use std::io::IsTerminal;
use std::os::fd::AsRawFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use undercroft_lab::wire::Size;

/// Raw mode on stdin for as long as it lives.
pub(super) struct Raw {
    before: Option<Termios>,
}

impl Raw {
    pub(super) fn new() -> Self {
        let stdin = std::io::stdin();
        let before = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(&stdin, SetArg::TCSADRAIN, &raw);
        }
        Raw { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

nix::ioctl_read_bad!(get_size, libc::TIOCGWINSZ, libc::winsize);

/// The size of the terminal on stdout; 24 by 80 if it is none.
pub(super) fn size() -> Size {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives until the call returns.
    let known = unsafe { get_size(std::io::stdout().as_raw_fd(), &raw mut size) }.is_ok();
    if known && size.ws_row > 0 {
        Size { rows: size.ws_row, columns: size.ws_col }
    } else {
        Size { rows: 24, columns: 80 }
    }
}
