//! Where a distribution comes from.
//!
//! A [`Source`] is what somebody typed: a name of a list, a path, an address, an image. [`Source::obtain`] makes of it one
//! archive on this machine whose digest is known, and that [`Store::import_base`](crate::Store::import_base) takes:
//!
//! | typed | what it is |
//! | --- | --- |
//! | `Debian` | a name of a list in the format of WSL's `DistributionInfo.json` ([`Lists`]) |
//! | `./debian.tar.xz`, `x.wsl`, `file:///…` | a root file system's tar, an archive of `docker save`, an OCI image layout (a folder, or a tar of one): its content says which |
//! | `https://…` | the same, to be downloaded |
//! | `docker://debian:12` | an image of a registry |
//! | `oci:PATH[:TAG]`, `oci:PATH@sha256:…` | an image of a layout that holds several |
//! | `docker-archive:PATH[:NAME:TAG]` | an image of an archive that holds several |
//!
//! What is downloaded lies in a [`Cache`] until it was imported ([`Obtained::discard`]): a cut costs nothing but the rest.
//! An image is merged into one tar there, always the same one for the same layers. The digest that names the base is that
//! of the file, so that a person can check it with `sha256sum`; for a list's entry it is known before anything is downloaded,
//! and for an image that was merged before, before its layers are: who [`have`](Order::have)s it downloads nothing.
//!
//! Everything is synchronous. Who wants to stop it calls [`Cancel::cancel`] from another thread.
//!
//! ```no_run
//! use undercroft::{Store, source::{Cache, Cancel, Content, Order, Source}};
//! # fn main() -> undercroft::Result<()> {
//! # let store = Store::open("store".as_ref())?;
//! let source = Source::parse("docker://debian:12", "/home/me".as_ref())?;
//! let cache = Cache::open("/home/me/.cache/undercroft".as_ref())?;
//! let have = |digest: &_| store.base(digest).is_ok_and(|base| base.is_some());
//! let order = Order { memory: Some(store.digests()), have: &have, ..Order::new(&cache) };
//! let obtained = source.obtain(&order, &Cancel::new(), &mut |progress| println!("{}", progress.done))?;
//! match &obtained.content {
//!     Content::Held(digest) => println!("nothing to import: {digest} is here"),
//!     Content::File(archive) => println!("import {}", archive.path().display()),
//! }
//! // … once it is imported:
//! obtained.discard();
//! # Ok(())
//! # }
//! ```

mod cache;
mod error;
mod fetch;
mod http;
mod manifest;
mod oci;
mod progress;

#[cfg(test)]
mod tests;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

pub use cache::{Cache, Kept};
pub use error::SourceError;
pub use http::Network;
pub use manifest::{Catalogue, Entry, Lists, Package, STANDARD};
pub use oci::{Architecture, ImageConfig, Platform, Reference};
pub use progress::{Cancel, Phase, Progress};

use self::{
    error::Result,
    fetch::{Fetched, Wanted},
    http::{Client, shown},
    manifest::Place,
    oci::{Access, Merged, Opened, Wish},
    progress::Watch,
};
use crate::digest::{Digest, KnownFile};

/// What a distribution can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A name of a list.
    Name(String),
    /// A file or a folder, whose content says what it is.
    Path(PathBuf),
    /// A file to be downloaded.
    Web(String),
    /// An image of a registry.
    Registry(Reference),
    /// An image layout, a folder or a tar, and which of its images.
    Layout(PathBuf, Option<String>),
    /// An archive of `docker save`, and which of its images.
    Saved(PathBuf, Option<String>),
}

/// What [`Source::obtain`] needs besides.
#[derive(Clone)]
pub struct Order<'a> {
    /// Where downloads are kept.
    pub cache: &'a Cache,
    /// The lists that names are looked up in.
    pub lists: Lists,
    /// Where digests of files are remembered ([`Store::digests`](crate::Store::digests)).
    pub memory: Option<PathBuf>,
    /// Tells which archives' content is here already, and is not to be brought again.
    pub have: &'a dyn Fn(&Digest) -> bool,
    /// The kind of machine.
    pub architecture: Architecture,
    /// How servers are asked.
    pub network: Network,
    /// Files that may know passwords of registries, in the format of Docker's config.json.
    pub passwords: Vec<PathBuf>,
    /// Registries are asked in the clear, not only those of this machine.
    pub clear_text: bool,
}

impl<'a> Order<'a> {
    /// For this machine, with WSL's list, the environment's proxy, and the user's passwords for registries.
    pub fn new(cache: &'a Cache) -> Self {
        Self {
            cache,
            lists: Lists::default(),
            memory: None,
            have: &|_| false,
            architecture: Architecture::HOST,
            network: Network::default(),
            passwords: oci::credential_files(),
            clear_text: false,
        }
    }

    /// What can be installed by name, for `list --online`.
    pub fn catalogue(&self, cancel: &Cancel, tell: &mut dyn FnMut(Progress<'_>)) -> crate::Result<Catalogue> {
        let client = Client::new(&self.network, cancel)?;
        Ok(self.lists.read(&client, &mut Watch::new(cancel, tell))?)
    }
}

/// What was obtained.
#[derive(Debug)]
pub struct Obtained {
    /// The archive.
    pub content: Content,
    /// What the distribution could be called, as [`check_name`](crate::store::check_name) allows it.
    pub name: Option<String>,
    /// What an image says of how it is run.
    pub image: Option<ImageConfig>,
    /// What of an image could not be taken over.
    pub warnings: Vec<String>,
    kept: Option<Kept>,
}

/// The archive of a distribution.
#[derive(Debug, Clone)]
pub enum Content {
    /// The caller [`have`](Order::have)s what this is the digest of.
    Held(Digest),
    /// A file for [`Store::import_base`](crate::Store::import_base).
    File(KnownFile),
}

impl Obtained {
    /// It was imported: what was made in the cache for it is of no more use.
    pub fn discard(self) {
        if let Some(kept) = self.kept {
            kept.discard();
        }
    }
}

impl Source {
    /// Reads what somebody typed in a folder.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let wrong = |reason: &str| SourceError::Text { text: text.into(), reason: reason.into() };
        if text.is_empty() || text.contains('\0') {
            return Err(wrong("it is empty, or has a zero byte"));
        }
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(Reference::parse(name)?));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, choice) = chosen(rest, folder);
            return Ok(Self::Layout(path, choice));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (path, choice) = chosen(rest, folder);
            return Ok(Self::Saved(path, choice));
        }
        match Place::of(text)? {
            Place::Web(url) => Ok(Self::Web(url)),
            Place::File(path) if path.is_absolute() => Ok(Self::Path(path)),
            Place::File(_) if text.contains("://") => {
                Err(wrong("nothing is known of addresses of that kind"))
            }
            Place::File(path) if is_path(text) => Ok(Self::Path(folder.join(path))),
            Place::File(_) => Ok(Self::Name(text.into())),
        }
    }

    /// Brings it here: an archive whose digest is known. `tell` is told how far it is.
    pub fn obtain(
        &self,
        order: &Order<'_>,
        cancel: &Cancel,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> crate::Result<Obtained> {
        let mut work = Work { order, cancel, watch: Watch::new(cancel, tell) };
        match self {
            Self::Name(name) => work.name(name),
            Self::Path(path) => work.path(path),
            Self::Web(url) => {
                let client = work.client()?;
                let fetched = work.download(&client, url, None, &shown(url))?;
                work.downloaded(fetched, suggestion(&fetch::last_part(url)))
            }
            Self::Registry(reference) => {
                let client = work.client()?;
                let access = Access {
                    client: &client,
                    cache: order.cache,
                    passwords: &order.passwords,
                    clear_text: order.clear_text,
                    architecture: order.architecture,
                };
                let opened = oci::open_registry(reference, &access, &mut work.watch)?;
                work.image(opened, None)
            }
            Self::Layout(path, choice) => work.image_at(path, choice.as_deref()),
            Self::Saved(path, choice) => work.image_at(path, choice.as_deref()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = |choice: &Option<String>| match choice.as_deref() {
            None => String::new(),
            Some(digest) if digest.starts_with('@') => digest.into(),
            Some(tag) => format!(":{tag}"),
        };
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => path.display().fmt(f),
            Self::Web(url) => f.write_str(&shown(url)),
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::Layout(path, of) => write!(f, "oci:{}{}", path.display(), choice(of)),
            Self::Saved(path, of) => write!(f, "docker-archive:{}{}", path.display(), choice(of)),
        }
    }
}

/// One order that is being carried out.
struct Work<'a> {
    order: &'a Order<'a>,
    cancel: &'a Cancel,
    watch: Watch<'a>,
}

impl Work<'_> {
    fn client(&self) -> Result<Client> {
        Client::new(&self.order.network, self.cancel)
    }

    fn name(&mut self, name: &str) -> crate::Result<Obtained> {
        let client = self.client()?;
        let catalogue = self.order.lists.read(&client, &mut self.watch)?;
        let (entry, from) = catalogue.find(name)?;
        let package = entry.package(self.order.architecture).map_err(|reason| SourceError::Listed {
            name: entry.name.clone(),
            from: from.into(),
            reason: reason.into(),
        })?;
        let suggestion = Some(allowed(&entry.name)).filter(|name| !name.is_empty());
        if (self.order.have)(&package.digest) {
            return Ok(held(package.digest, suggestion, None));
        }
        match Place::of(&package.url)? {
            Place::Web(url) => {
                let fetched = self.download(&client, &url, Some(package.digest), &entry.friendly_name)?;
                self.downloaded(fetched, suggestion)
            }
            Place::File(path) => {
                let file = self.known(&path)?;
                if file.digest() != package.digest {
                    return Err(SourceError::WrongDigest {
                        what: path.display().to_string(),
                        expected: package.digest,
                        found: file.digest(),
                        removed: false,
                    }
                    .into());
                }
                self.archive(file, suggestion)
            }
        }
    }

    fn download(
        &mut self,
        client: &Client,
        url: &str,
        digest: Option<Digest>,
        what: &str,
    ) -> Result<Fetched> {
        let what = what.to_owned();
        let wanted = Wanted { url: url.into(), headers: Vec::new(), digest, size: None, what };
        fetch::fetch(client, self.order.cache, &wanted, &mut self.watch)
    }

    fn downloaded(&mut self, fetched: Fetched, name: Option<String>) -> crate::Result<Obtained> {
        let Fetched { file: kept, digest } = fetched;
        let file = KnownFile::told(kept.path(), digest)?;
        let mut obtained = self.archive(file, name)?;
        if obtained.kept.is_none() && matches!(obtained.content, Content::File(_)) {
            obtained.kept = Some(kept);
        } else {
            // It was an image, and is merged.
            kept.discard();
        }
        Ok(obtained)
    }

    fn path(&mut self, path: &Path) -> crate::Result<Obtained> {
        let about = fs::metadata(path).map_err(SourceError::file("find", path))?;
        if about.is_dir() {
            return self.image_at(path, None);
        }
        if oci::begins_like_an_image(path) {
            return self.image_at(path, None);
        }
        let file = self.known(path)?;
        let name = path.file_name().and_then(|name| suggestion(&name.to_string_lossy()));
        self.archive(file, name)
    }

    /// Reads a file of the host's, unless it is remembered.
    fn known(&mut self, path: &Path) -> crate::Result<KnownFile> {
        let (what, mut stopped) = (path.display().to_string(), None);
        let watch = &mut self.watch;
        let known = KnownFile::read(path, self.order.memory.as_deref(), |read, total| {
            if let Err(error) = watch.step(Phase::Checking, &what, read, Some(total)) {
                stopped = Some(error);
            }
        })?;
        match stopped {
            Some(error) => Err(error.into()),
            None => Ok(known),
        }
    }

    /// A file that is here: a root file system's tar is ready, an image's is to be merged.
    fn archive(&mut self, file: KnownFile, name: Option<String>) -> crate::Result<Obtained> {
        if oci::begins_like_an_image(file.path()) {
            let mut obtained = self.image_at(file.path(), None)?;
            obtained.name = name.or(obtained.name);
            return Ok(obtained);
        }
        if (self.order.have)(&file.digest()) {
            return Ok(held(file.digest(), name, None));
        }
        let content = Content::File(file);
        Ok(Obtained { content, name, image: None, warnings: Vec::new(), kept: None })
    }

    fn image_at(&mut self, path: &Path, choice: Option<&str>) -> crate::Result<Obtained> {
        let wish = Wish { choice, architecture: self.order.architecture };
        let about = fs::metadata(path).map_err(SourceError::file("find", path))?;
        let opened = if about.is_dir() {
            oci::open_folder(path, &wish)?
        } else {
            oci::open_archive(path, &wish, self.order.cache, &mut self.watch)?
        };
        let name = path.file_name().and_then(|name| suggestion(&name.to_string_lossy()));
        self.image(opened, name)
    }

    /// Merges an image. `name` is what it could be called if it does not say so itself.
    fn image(&mut self, opened: Opened<'_>, name: Option<String>) -> crate::Result<Obtained> {
        let image = Some(opened.image_config());
        let said = opened.suggestion().map(allowed).filter(|name| is_word(name));
        let name = said.or(name);
        match opened.merge(self.order.cache, self.order.have, &mut self.watch)? {
            Merged::Held(digest) => Ok(held(digest, name, image)),
            Merged::File { kept, digest, warnings } => {
                let content = Content::File(KnownFile::told(kept.path(), digest)?);
                Ok(Obtained { content, name, image, warnings, kept: Some(kept) })
            }
        }
    }
}

fn held(digest: Digest, name: Option<String>, image: Option<ImageConfig>) -> Obtained {
    Obtained { content: Content::Held(digest), name, image, warnings: Vec::new(), kept: None }
}

/// A path, and behind it which of its images; a file whose name has a colon in it is taken whole.
fn chosen(text: &str, folder: &Path) -> (PathBuf, Option<String>) {
    let whole = folder.join(text);
    if whole.exists() {
        return (whole, None);
    }
    if let Some((path, digest)) = text.split_once('@').filter(|(_, digest)| digest.starts_with("sha256:")) {
        return (folder.join(path), Some(format!("@{digest}")));
    }
    match text.split_once(':') {
        Some((path, choice)) if !choice.is_empty() => (folder.join(path), Some(choice.into())),
        _ => (whole, None),
    }
}

/// Endings that archives have, the longer ones first.
const ENDINGS: [&str; 12] = [
    ".tar.gz",
    ".tar.xz",
    ".tar.zst",
    ".tar.bz2",
    ".rootfs.tar",
    ".tar",
    ".tgz",
    ".txz",
    ".tzst",
    ".tbz2",
    ".wsl",
    ".oci",
];

/// Whether a word is a path and not a name of a list.
fn is_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    text.contains('/') || matches!(text, "." | "..") || ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// What a distribution from a file of that name could be called.
fn suggestion(file: &str) -> Option<String> {
    let lower = file.to_ascii_lowercase();
    let end = ENDINGS
        .iter()
        .find(|ending| lower.ends_with(*ending))
        .map_or(file.len(), |end| file.len() - end.len());
    // Lower case may be longer or shorter in other alphabets.
    let name = allowed(file.get(..end).unwrap_or(file));
    is_word(&name).then_some(name)
}

/// A text as a distribution's name.
fn allowed(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = text.chars().map(|c| if fits(c) { c } else { '-' }).take(64).collect();
    name.trim_matches(['.', '-']).to_owned()
}

/// Whether it says anything.
fn is_word(name: &str) -> bool {
    name.chars().any(|c| c.is_ascii_alphanumeric()) && crate::store::check_name(name).is_ok()
}
