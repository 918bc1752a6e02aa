//! Everything the host and the guest of an undercroft utility VM say to each other.
//!
//! No I/O of its own beyond [`frame`], which reads and writes any `std::io` stream; no knowledge of vsock but its port
//! numbers in [`port`]. Messages are postcard, one to a frame, and each frame carries the protocol's version, so that a
//! peer of another version is recognised by its first eight bytes.
//!
//! Who speaks on which connection (opened by the guest, to the host's [`port::UNDERCROFT`]):
//!
//! | first frame ([`Opening`]) | then guest → host | then host → guest |
//! | --- | --- | --- |
//! | `Command` | [`Reply`](command::Reply) | [`Request`](command::Request) |
//! | `Notify` | [`Event`](command::Event) | nothing |
//! | `Distribution` | [`InitEvent`](session::InitEvent) | [`InitRequest`](session::InitRequest) |
//! | `Stream` | the bytes of a session's stdout, stderr or terminal | the bytes of its stdin or terminal, or of an import |
//!
//! One stream is not bytes but frames: that of the relay for the host's loopback ([`Command::Relay`](command::Command::Relay)),
//! on which the guest sends [`RelayEvent`](network::RelayEvent)s, and the host nothing. What has come in there is a connection that the
//! host opens, to the VM's [`port::RELAY`]: it begins with a [`Destination`](network::Destination), which is no frame.
//! Another is that for the host's name servers ([`Command::Resolver`](command::Command::Resolver)), with
//! [`Question`](network::Question)s and [`Answer`](network::Answer)s.
//!
//! The host takes `Command` and `Notify` once each, before any distribution runs. `Distribution` and `Stream` are proven
//! by a [`Token`] which the host made up and told only the process that was to come back with it: any process in any
//! distribution can open a vsock connection, and none of them can guess one.

pub mod command;
pub mod datagrams;
pub mod frame;
pub mod network;
pub mod opening;
pub mod session;

pub use frame::{FrameError, VERSION, read_frame, write_frame};
pub use opening::{Opening, Token};

/// vsock ports.
pub mod port {
    /// Of the host (context id 2): every connection of the guest's init processes to it.
    pub const UNDERCROFT: u32 = 5000;
    /// Of the VM: the host's connections to the relay. It takes a capability to listen below 1024 (LAST_RESERVED_PORT,
    /// net/vmw_vsock/af_vsock.c).
    pub const RELAY: u32 = 1000;
}

/// The context id of the utility VM itself. One VM has one vsock device, and nothing routes between VMs, so all can
/// have the same.
pub const GUEST_CID: u64 = 3;
