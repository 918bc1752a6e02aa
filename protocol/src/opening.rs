//! The first frame of each connection: who comes, and how it proves that.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Sixteen random bytes that the host made up for one connection, and takes once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub [u8; 16]);

/// A secret: its bytes do not belong in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The first frame that the guest sends on a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opening {
    /// mini-init's command channel.
    Command(GuestHello),
    /// mini-init's notify channel.
    Notify,
    /// A distribution's init, with the token from its [`Launch`](crate::command::Launch).
    Distribution(Token),
    /// A stream of bytes in or out of the VM, with the token from the request that asked for it. No frames follow.
    Stream(Token),
}

/// What mini-init tells about itself and the boot, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// The version of the mini-init crate, for people to read.
    pub mini_init: String,
    /// `uname -r`.
    pub kernel: String,
    /// CPUs online.
    pub cpus: u32,
    /// MemTotal in bytes.
    pub memory: u64,
    /// Where the boot went, oldest first; see [`Mark`].
    pub marks: Vec<Mark>,
    /// What did not work, without keeping the VM from being of use, a line each.
    pub warnings: Vec<String>,
}

/// A moment of the guest's, for the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What happened then: a kernel log line's text, or a name such as `mini-init: first instruction`.
    pub name: String,
    /// When, in nanoseconds of the guest's CLOCK_BOOTTIME.
    pub boottime_ns: u64,
    /// The same moment in nanoseconds of CLOCK_REALTIME, which kvmclock makes the host's; 0 where it is not known (the
    /// kernel's own lines).
    pub realtime_ns: u64,
}
