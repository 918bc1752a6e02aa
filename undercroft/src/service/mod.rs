//! The product's service: one for each user, started by the first command, gone when nobody needs it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`wire`] | what the command line and the service say to each other |
//! | `client` | the command line's side: finds the service, or starts it |
//! | `greeting` | a request, and before it which version's it is |
//! | `listen` | the service's side: the socket, who may connect, one thread a connection |
//! | `state` | what runs, under one lock |
//! | `host` | the virtual machine: started when it is needed |
//! | `lifecycle` | a distribution: started, watched, stopped |
//! | `idle` | when what stops, and why it does not yet |
//! | `session` | one process for one client |
//! | `setup` | what a new distribution's makers want run first |
//! | `jobs` | what takes long: import, removal |
//! | `whole` | export, clone, rename, move, resize |
//! | `upkeep` | swap, memory that goes back, the clock |
//! | `answers` | what can be asked |
//!
//! The service owns the store and the machine. It is not in a session's way: the streams are handed to the client, and go with
//! it. Killed at any moment it takes the machine along (PR_SET_PDEATHSIG), and the store is whole at any moment.

mod answers;
mod bring;
mod client;
pub mod error;
mod folders;
mod greeting;
mod host;
mod idle;
mod jobs;
mod lifecycle;
mod listen;
mod parts;
mod paths;
mod session;
mod settings;
mod setup;
mod state;
mod upkeep;
mod whole;
pub mod wire;

pub use bring::bring;
pub use client::{Client, Remote};
pub use error::ServiceError;
pub use listen::serve;
pub use parts::{PARTS, Parts};
pub use paths::Paths;
pub use settings::{PATIENCE, Settings};
