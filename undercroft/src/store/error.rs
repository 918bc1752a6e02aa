//! What can go wrong with a store, one variant a cause.

use std::path::PathBuf;

use crate::digest::Digest;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No distribution can be called that.
    #[error(
        "{0:?} is no name for a distribution: letters, digits, '.', '_' and '-', at most 256, and not . or .."
    )]
    Name(String),
    /// There is one of that name, or one that differs only in case, or it is just being made.
    #[error("there is already a distribution called {0}")]
    Taken(String),
    /// There is none of that name.
    #[error("there is no distribution called {0}")]
    Unknown(String),
    /// Another machine runs it.
    #[error("{0} is in use: another virtual machine has its disk")]
    InUse(String),
    /// The base that a distribution is made from is not there.
    #[error("{name} is made from the base {base}, which is not there: expected {}", path.display())]
    NoBase {
        /// The distribution.
        name: String,
        /// What is missing.
        base: Digest,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file of the store is not what it must be.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A newer undercroft wrote it.
    #[error("{} is of version {version}, and this undercroft knows {known}: use a newer one", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// What it says.
        version: u64,
        /// What is known here.
        known: u64,
    },
}
