//! The configuration of undercroft and of its distributions: WSL's own files and keys, and few of ours.
//!
//! [`grammar`] reads a file without knowing a key. The [`keys`] are tables: name, kind, default, when a change acts, what
//! becomes of it here. [`Settings`] is a file read by its table; nothing in a file is fatal, and what is passed over is a
//! [`Warning`] with its line. [`HostConfig`], [`DistributionConfig`] and others are what programs look at;
//! [`Settings::rows`] is what people look at, and [`changed`] says what a change waits for.
//!
//! ```
//! use std::path::Path;
//! use undercroft_config::{HostConfig, HostFacts, Settings, keys::HOST};
//!
//! let text = "[wsl2]\nmemory = 4GB\nsystemd = true\n";
//! let settings = Settings::parse(&HOST, Path::new(".wslconfig"), text.as_bytes());
//! let facts = HostFacts { memory: 16 << 30, processors: 8, home: None };
//! let config = HostConfig::new(&settings, &facts);
//! assert_eq!((config.memory, config.swap, config.processors), (4 << 30, 1 << 30, 8));
//! assert_eq!(
//!     settings.warnings[0].to_string(),
//!     ".wslconfig:3: `wsl2.systemd` is not known, and is not used: it belongs into /etc/wsl.conf, under [boot]"
//! );
//! ```
//!
//! `docs/configuration.md` is written from the tables ([`document`]).

mod change;
mod document;
mod facts;
pub mod grammar;
mod host;
mod key;
pub mod keys;
mod settings;
pub mod value;
mod views;

pub use change::{Change, Restart, changed};
pub use document::document;
pub use facts::HostFacts;
pub use host::{Mount, NotAMount, NotATap, Published, Tap};
pub use key::{Acts, Default, Fate, Key, SUBSECTION, Table};
pub use settings::{LONGEST, Origin, Row, Setting, Settings, Warning};
pub use value::{Kind, Value, is_hostname};
pub use views::{
    AutoMemoryReclaim, DistributionConfig, DistributionSettings, HostConfig, NetworkingMode, PackageConfig,
};
