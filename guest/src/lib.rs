//! How a program in the guest reaches its host: opening a connection ([`host`]), taking one ([`door`]), frames that never block
//! ([`channel`]), clocks ([`clock`]); and how it makes processes ([`process`]).
//!
//! For PID 1 of the utility VM and PID 1 of each distribution, which are synchronous and have one thread each.

pub mod channel;
pub mod clock;
pub mod door;
pub mod host;
pub mod process;
