//! Images as distributions: found, checked, and merged into one tar on the host.
//!
//! An image is a configuration and a row of layers, each a tar that says what changes over those below. Wherever they come
//! from (a registry, a layout, an archive of `docker save`), three steps follow. Each layer is decompressed into a file
//! without a name, and its digests are checked. Then the layers' headers are gone through once, from the lowest to the
//! highest, which makes a [`tree`] of names without contents. Last, the tree is written as one tar ([`merge`]), its content
//! copied from the layers. Memory goes with the number of files, never with their sizes; on the disk of the cache are, for
//! a while, the layers as they came, the layers decompressed, and the tar.
//!
//! Nothing is ever written by a name that stands in an image: what names may do is decided in the VM, which unpacks the tar
//! as it does any other.

mod auth;
mod document;
mod entries;
mod layer;
mod layout;
mod merge;
mod reference;
mod registry;
mod tree;

use std::{fs, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(super) use auth::credential_files;
pub use document::{Architecture, ImageConfig, Platform};
pub use reference::Reference;
pub(super) use registry::{Access, open as open_registry};

use self::{
    document::{Configuration, Descriptor, Understood},
    entries::{Region, Walk},
    layer::Blob,
    layout::Files,
    tree::Tree,
};
use super::{
    cache::{Cache, Kept},
    error::{Result, SourceError},
    fetch,
    progress::{Phase, Watch},
};
use crate::digest::Digest;

/// What makes a merged tar what it is, besides the layers: a change of the rules makes other files of the same layers.
const RULES: &str = "undercroft merge 1";
/// Indexes within indexes: one for tags and one for platforms is what there is.
const DEEPEST_INDEX: u32 = 4;

/// What is wanted of something that may hold several images.
pub(super) struct Wish<'a> {
    /// A tag, or `@` and a digest.
    pub(super) choice: Option<&'a str>,
    pub(super) architecture: Architecture,
}

/// An image that was found, its layers not yet.
pub(super) struct Opened<'a> {
    /// For people.
    pub(super) name: String,
    pub(super) config: Configuration,
    suggestion: Option<String>,
    layers: Box<dyn Layers + 'a>,
}

/// Who has an image's layers.
trait Layers {
    /// All of them, the lowest first.
    fn fetch(&mut self, watch: &mut Watch<'_>) -> Result<Vec<Blob>>;
}

/// A merged image.
pub(super) enum Merged {
    /// The caller has it already.
    Held(Digest),
    /// A tar in the cache.
    File { kept: Kept, digest: Digest, warnings: Vec<String> },
}

impl Opened<'_> {
    pub(super) fn image_config(&self) -> ImageConfig {
        self.config.run.clone()
    }

    /// What a distribution made from it could be called.
    pub(super) fn suggestion(&self) -> Option<&str> {
        self.suggestion.as_deref()
    }

    /// Merges its layers into one tar in the cache, unless that is there or the caller `have`s it.
    pub(super) fn merge(
        mut self,
        cache: &Cache,
        have: &dyn Fn(&Digest) -> bool,
        watch: &mut Watch<'_>,
    ) -> Result<Merged> {
        let note = cache.image_note(&self.key().to_string());
        let file_name = format!("{}.tar", super::cache::file_name(&self.name));
        if let Some(known) = read_note(&note) {
            if have(&known.digest) {
                return Ok(Merged::Held(known.digest));
            }
            if let Some(kept) = fetch::find(cache, &known.digest, &file_name, &self.name, watch)? {
                return Ok(Merged::File { kept, digest: known.digest, warnings: known.warnings });
            }
        }
        let blobs = self.layers.fetch(watch)?;
        watch.part_of(None);
        let mut plain = Vec::new();
        for (blob, diff_id) in blobs.iter().zip(&self.config.layers) {
            plain.push(layer::plain(&self.name, blob, *diff_id, cache, watch)?);
        }
        let tree = self.tree(&plain, watch)?;
        let (path, file) = cache.scratch(&file_name)?;
        let written = merge::write(&self.name, &tree, &plain, (&file, &path), cache, watch);
        let kept =
            written.and_then(|(digest, _)| Ok((cache.keep(&path, file, &digest, &file_name)?, digest)));
        let (kept, digest) = kept.inspect_err(|_| drop(fs::remove_file(&path)))?;
        write_note(&note, &Note { digest, warnings: tree.warnings.clone() });
        blobs.into_iter().filter_map(|blob| blob.kept).for_each(Kept::discard);
        Ok(Merged::File { kept, digest, warnings: tree.warnings })
    }

    /// What the layers amount to.
    fn tree(&self, layers: &[Region], watch: &mut Watch<'_>) -> Result<Tree> {
        let mut tree = Tree::new();
        for (number, layer) in layers.iter().enumerate() {
            let of = || format!("layer {} of {}", number + 1, layers.len());
            let mut walk = Walk::new(layer.clone());
            loop {
                let next = walk.next();
                let next =
                    next.map_err(|error| SourceError::image(&self.name, format!("{}: {error}", of())))?;
                let Some(entry) = next else { break };
                tree.apply(number, &entry)
                    .map_err(|error| SourceError::image(&self.name, error.to_string()))?;
                watch.step(Phase::Unpacking, &self.name, walk.at(), Some(layer.length))?;
            }
        }
        Ok(tree)
    }

    /// What its merged tar is known by: it follows from the layers' contents.
    fn key(&self) -> Digest {
        let mut hash = Sha256::new_with_prefix(RULES);
        self.config.layers.iter().for_each(|layer| hash.update(layer.to_string()));
        Digest::of(hash)
    }
}

/// What layers were merged into before.
#[derive(Serialize, Deserialize)]
struct Note {
    digest: Digest,
    warnings: Vec<String>,
}

fn read_note(path: &Path) -> Option<Note> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(1 << 20).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// It is only remembered for speed.
fn write_note(path: &Path, note: &Note) {
    let new = path.with_extension("new");
    let text = serde_json::to_vec(note).unwrap_or_default();
    let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
}

/// A manifest that was found.
struct Resolved {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Follows indexes to the manifest for a kind of machine. `read` gives a document that is what its descriptor says.
fn resolve(
    image: &str,
    mut descriptor: Descriptor,
    architecture: Architecture,
    read: &mut dyn FnMut(&Descriptor) -> Result<Vec<u8>>,
) -> Result<Resolved> {
    for _ in 0..DEEPEST_INDEX {
        let bytes = read(&descriptor)?;
        match Understood::parse(image, &bytes)? {
            Understood::Manifest { .. } if descriptor.is_index() => {
                return Err(SourceError::image(image, "it calls something an index that is a manifest"));
            }
            Understood::Manifest { config, layers } => return Ok(Resolved { config, layers }),
            Understood::Index(entries) => {
                descriptor = document::choose(image, &entries, architecture)?.clone();
            }
        }
    }
    Err(SourceError::image(image, format!("its indexes lie in each other more than {DEEPEST_INDEX} deep")))
}

/// Opens an image layout in a folder.
pub(super) fn open_folder(path: &Path, wish: &Wish<'_>) -> Result<Opened<'static>> {
    layout::open_layout(&path.display().to_string(), &Files::Folder(path.into()), wish)
}

/// Opens an archive of an image: a layout's, or one of `docker save`.
pub(super) fn open_archive(
    path: &Path,
    wish: &Wish<'_>,
    cache: &Cache,
    watch: &mut Watch<'_>,
) -> Result<Opened<'static>> {
    let image = path.display().to_string();
    let file = fs::File::open(path).map_err(SourceError::file("open", path))?;
    let region = Region::whole(file, path).map_err(SourceError::file("read", path))?;
    let region =
        if is_plain(&region) { region } else { layer::decompressed(&image, &region, cache, watch)?.0 };
    let files = Files::of(&image, region, watch)?;
    if files.is_layout()? {
        layout::open_layout(&image, &files, wish)
    } else {
        layout::open_saved(&image, &files, wish)
    }
}

fn is_plain(region: &Region) -> bool {
    let mut first = [0; 16];
    region.read_at(&mut first, 0).is_err()
        || crate::import::Format::of(&first) == crate::import::Format::Plain
}

/// Whether an archive begins like one of an image and not like a root file system's. Only its first entry is looked at: what
/// `docker save`, podman and skopeo write begins with a blob, a layer, or a document at its root.
pub(super) fn begins_like_an_image(path: &Path) -> bool {
    let first = || -> Option<Vec<u8>> {
        let file =
            fs::File::open(path).ok().filter(|file| file.metadata().is_ok_and(|about| about.is_file()))?;
        let mut region = Region::whole(file, path).ok()?;
        let mut start = Vec::new();
        region.reader().take(16).read_to_end(&mut start).ok()?;
        let format = crate::import::Format::of(&start);
        if format != crate::import::Format::Plain {
            // Enough for a header, and for long names before it.
            let source = format.decoder(std::io::BufReader::new(region.reader())).ok()?;
            let mut file = tempfile::tempfile().ok()?;
            // A content that does not end here is no matter.
            std::io::copy(&mut source.take(8 << 10), &mut file).ok()?;
            file.set_len(1 << 40).ok()?;
            region = Region::whole(file, path).ok()?;
        }
        Walk::new(region).next().ok().flatten().map(|entry| entry.name)
    };
    first().is_some_and(|name| is_of_an_image(&name))
}

fn is_of_an_image(name: &[u8]) -> bool {
    let Some(parts) = entries::parts(name) else { return false };
    let Some(first) = parts.first().and_then(|part| std::str::from_utf8(part).ok()) else { return false };
    let stem = first.split_once('.').map_or(first, |(stem, _)| stem);
    let is_digest = stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest || matches!(first, "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories")
}
