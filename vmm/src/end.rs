//! How a machine's life ended.

use serde::{Deserialize, Serialize};

/// Why the machine no longer runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked, said by pvpanic or on the console before a reset; with the console's line, if any.
    GuestPanic(String),
    /// A vCPU shut down: a fault while delivering a fault while delivering a fault, or a reboot by that means.
    TripleFault,
    /// KVM could not go on.
    InternalError {
        /// KVM's `suberror` (linux/kvm.h, `KVM_INTERNAL_ERROR_*`), or the number of the exit that nobody handles.
        suberror: u32,
        /// Where the vCPU was.
        rip: u64,
        /// What is known besides.
        detail: String,
    },
    /// Ended from outside: over the control socket or by a signal.
    Killed,
}

impl End {
    /// The exit status of the binary.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Killed => 0,
            Self::Reset => 3,
            Self::GuestPanic(_) => 4,
            Self::TripleFault => 5,
            Self::InternalError { .. } => 6,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::GuestPanic(line) if line.is_empty() => f.write_str("the guest's kernel panicked"),
            Self::GuestPanic(line) => write!(f, "the guest's kernel panicked: {line}"),
            Self::TripleFault => f.write_str("a vCPU shut down (triple fault)"),
            Self::InternalError { suberror, rip, detail } => {
                write!(f, "KVM stopped with an internal error {suberror} at rip {rip:#x}: {detail}")
            }
            Self::Killed => f.write_str("the machine was told to stop"),
        }
    }
}
