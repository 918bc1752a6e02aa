//! What can go wrong on the way to a distribution, one variant a cause.

use std::{fmt, io, path::PathBuf};

use super::oci::Platform;
use crate::digest::Digest;

/// Shorthand for this module's results.
pub(super) type Result<T> = std::result::Result<T, SourceError>;

/// Why a distribution could not be had from where it is to come from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A text that names no source.
    #[error(
        "{text:?} names no distribution: {reason}. Expected a name from `undercroft list --online`, a path, \
         an http(s):// address, docker://NAME, oci:PATH or docker-archive:PATH"
    )]
    Text {
        /// As it was typed.
        text: String,
        /// What does not fit.
        reason: String,
    },
    /// Somebody called [`Cancel::cancel`](super::Cancel::cancel).
    #[error("stopped as asked; what was downloaded is kept, and the next try goes on from there")]
    Cancelled,
    /// A file or folder of the host could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// A verb: `open`, `create`, …
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The cache's file system is full, or would be.
    #[error(
        "no space for {what} in {}: {}{} there is free; make room, or set XDG_CACHE_HOME to a folder on a larger disk",
        path.display(), needed.map_or(String::new(), |n| format!("{} more is needed, ", Bytes(n))), Bytes(*free)
    )]
    DiskFull {
        /// What was to be written.
        what: String,
        /// The folder.
        path: PathBuf,
        /// Bytes still to be written, where that is known.
        needed: Option<u64>,
        /// Bytes that a normal user can still write.
        free: u64,
    },
    /// No connection, or none that can be trusted.
    #[error("cannot reach {host} for {url}: {reason}")]
    Unreachable {
        /// Who was called: the server, or the proxy in front of it.
        host: String,
        /// For what.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The host has no certificate authorities to judge a server by.
    #[error(
        "no certificate authorities are installed, so that nobody can tell whether {host} is {host}: \
         install the package ca-certificates, or name a file of them in SSL_CERT_FILE"
    )]
    NoCertificates {
        /// Who was called.
        host: String,
    },
    /// The server said no.
    #[error("{url}: the server answered {status}{}", status_hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The status of RFC 9110, section 15.
        status: u16,
    },
    /// Something that was encrypted was to go on in the clear.
    #[error(
        "{url} leads to {to}, which is not encrypted: not followed. If that is meant, name that address itself"
    )]
    Downgrade {
        /// What was asked for.
        url: String,
        /// Where the server sent us.
        to: String,
    },
    /// The connection ended before the file did.
    #[error(
        "the download of {url} was cut off after {}{}: {reason}. What is there is kept; run it again, and it goes on from there",
        Bytes(*have), total.map_or(String::new(), |total| format!(" of {}", Bytes(total)))
    )]
    Cut {
        /// What was asked for.
        url: String,
        /// Bytes that are there.
        have: u64,
        /// Bytes that there are, if the server said so.
        total: Option<u64>,
        /// How it ended.
        reason: String,
    },
    /// Longer than it may be.
    #[error("{what} is longer than the {} it may have: not taken", Bytes(*limit))]
    TooLarge {
        /// What.
        what: String,
        /// In bytes.
        limit: u64,
    },
    /// Not as long as was promised.
    #[error("{what} has {found} bytes, and {expected} were promised: it was removed")]
    WrongSize {
        /// What.
        what: String,
        /// In bytes.
        expected: u64,
        /// In bytes.
        found: u64,
    },
    /// Not what was promised.
    #[error(
        "{what} is not what was promised: expected SHA-256 {expected}, found {found}. {}",
        if *removed { "It was removed: try again; if that does not help, the server has another file than \
                       the list says, or somebody on the way changed it" }
        else { "It is damaged, or was changed" }
    )]
    WrongDigest {
        /// What.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What is there.
        found: Digest,
        /// Whether it was a download, which is gone now.
        removed: bool,
    },
    /// A list of distributions is no such thing.
    #[error("{from} is no list of distributions (WSL's DistributionInfo.json): {reason}")]
    List {
        /// Where it is.
        from: String,
        /// What does not fit.
        reason: String,
    },
    /// No list has that name.
    #[error(
        "no distribution is called {name:?} in {}{}. `undercroft list --online` shows all there are",
        from.join(" or "),
        if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(" or ")) }
    )]
    NoSuchName {
        /// What was asked for.
        name: String,
        /// Names like it.
        near: Vec<String>,
        /// The lists.
        from: Vec<String>,
    },
    /// A list has the name, and says nothing useful of it.
    #[error("{from} lists {name}, and that cannot be used: {reason}")]
    Listed {
        /// The name.
        name: String,
        /// The list.
        from: String,
        /// What does not fit.
        reason: String,
    },
    /// A text that is no image's name.
    #[error(
        "{name:?} is not the name of an image: {reason}. Expected something like debian:12 or ghcr.io/owner/name@sha256:…"
    )]
    ImageName {
        /// As it was typed.
        name: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// A registry does not give something.
    #[error("{registry} {reason}")]
    Registry {
        /// Its host.
        registry: String,
        /// What it does, and what to do.
        reason: String,
    },
    /// An image that is not as it must be.
    #[error("{image} cannot be used: {reason}")]
    Image {
        /// Which.
        image: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// An image for other machines.
    #[error("{image} is not there for {wanted}, only for {}", list(offered))]
    NoPlatform {
        /// Which.
        image: String,
        /// This machine.
        wanted: Platform,
        /// What there is.
        offered: Vec<Platform>,
    },
    /// More than one image, or none of that name.
    #[error("{image} has {}: {}", if chosen.is_some() { "no image of that name" } else { "more than one image" }, choices(image, offered))]
    Choose {
        /// The file or folder.
        image: String,
        /// What was asked for.
        chosen: Option<String>,
        /// The names there are.
        offered: Vec<String>,
    },
}

impl SourceError {
    pub(super) fn image(image: &str, reason: impl Into<String>) -> Self {
        Self::Image { image: image.into(), reason: reason.into() }
    }

    pub(super) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

/// What a status usually means here, and what helps.
fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (not allowed): it wants to know who asks, or does not serve this any more",
        404 | 410 => " (not there): check the address",
        407 => " (the proxy wants a password): set it in HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
        429 => " (too many requests): wait a while and try again",
        500..=599 => " (its own trouble): try again later",
        _ => ", which is not a file",
    }
}

fn list(offered: &[Platform]) -> String {
    if offered.is_empty() {
        return "nothing".into();
    }
    let mut names: Vec<_> = offered.iter().map(ToString::to_string).collect();
    names.dedup();
    names.join(", ")
}

fn choices(image: &str, offered: &[String]) -> String {
    if offered.is_empty() {
        return "none has a name; give its digest as PATH@sha256:…".into();
    }
    let mut names: Vec<_> = offered.iter().take(10).map(|name| format!("{image}:{name}")).collect();
    if offered.len() > names.len() {
        names.push("…".into());
    }
    format!("name one of {}", names.join(", "))
}

/// A number of bytes, for people.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        match self.0 {
            0..10_240 => write!(f, "{} bytes", self.0),
            10_240..MIB => write!(f, "{} KiB", self.0 >> 10),
            // Two digits are enough to see that it grows.
            MIB..GIB => write!(f, "{}.{} MiB", self.0 / MIB, self.0 % MIB * 10 / MIB),
            _ => write!(f, "{}.{} GiB", self.0 / GIB, self.0 % GIB * 10 / GIB),
        }
    }
}
