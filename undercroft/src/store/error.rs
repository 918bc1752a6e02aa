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
    #[error("there is no distribution called {0}: `undercroft list` names those that there are")]
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
    /// A disk cannot be made so small.
    #[error("{name} cannot be made {} MiB large: what is on its disk takes {} MiB", wanted >> 20, least.div_ceil(1 << 20))]
    TooSmall {
        /// The distribution.
        name: String,
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that are the least.
        least: u64,
    },
    /// A file is no disk that could be a distribution's.
    #[error("{} is no disk of a distribution: {reason}", path.display())]
    NoImage {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// An image is a distribution's disk already.
    #[error("{} belongs to {owner} already", path.display())]
    Owned {
        /// The image.
        path: PathBuf,
        /// The distribution.
        owner: String,
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
