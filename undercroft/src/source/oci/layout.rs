//! Images in files: OCI image layouts and what `docker save` writes, in a folder or in a tar archive.
//!
//! Formats: OCI Image Format 1.1, "image-layout.md"; Docker's image specification 1.2, "Combined Image JSON + Filesystem
//! Changeset Format", whose `manifest.json` names a configuration and the layers by their paths in the archive. Since Docker 25
//! an archive is both; then the layout is read, whose every byte has a digest.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        error::{Result, SourceError},
        progress::{Phase, Watch},
    },
    Layers, Opened, Wish,
    document::{self, Configuration, Descriptor, LONGEST_CONFIG, LONGEST_MANIFEST, Understood, parse_digest},
    entries::{Kind, Region, Walk, parts},
    layer::Blob,
};
use crate::digest::Digest;

/// The most entries of an archive of images: each layer is three at most.
const MOST_ENTRIES: usize = 50_000;

/// Files by their names, in a folder or an archive.
#[derive(Debug)]
pub(super) enum Files {
    Folder(PathBuf),
    Archive { region: Region, entries: BTreeMap<Vec<u8>, Slot> },
}

/// A file in an archive.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    At {
        offset: u64,
        length: u64,
    },
    /// Another name of it: Docker stores a layer once.
    Link(Vec<u8>),
}

impl Files {
    /// Looks through an archive.
    pub(super) fn of(image: &str, region: Region, watch: &mut Watch<'_>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut walk = Walk::new(region.clone());
        while let Some(entry) = walk.next().map_err(|error| SourceError::image(image, error.to_string()))? {
            watch.step(Phase::Checking, image, walk.at(), Some(region.length))?;
            let Some(name) = parts(&entry.name).map(|parts| parts.join(&b'/')) else { continue };
            let slot = match entry.kind {
                Kind::File => Slot::At { offset: entry.content, length: entry.size },
                Kind::HardLink => match parts(&entry.target) {
                    Some(target) => Slot::Link(target.join(&b'/')),
                    None => continue,
                },
                // `../ID/layer.tar`, from the file's own folder.
                Kind::SymbolicLink => Slot::Link(beside(&name, &entry.target)),
                _ => continue,
            };
            entries.insert(name, slot);
            if entries.len() > MOST_ENTRIES {
                return Err(SourceError::image(
                    image,
                    format!(
                        "it has more than {MOST_ENTRIES} files: an archive of a root file system, perhaps, and not of an image"
                    ),
                ));
            }
        }
        Ok(Self::Archive { region, entries })
    }

    /// A file, if it is there.
    fn open(&self, name: &str) -> Result<Option<Region>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                // Neither waits for the other end of a pipe, nor takes one for a file.
                let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
                let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(SourceError::file("open", path)(error)),
                };
                let regular = file.metadata().is_ok_and(|about| about.is_file());
                let region = Region::whole(file, &path).map_err(SourceError::file("read", path))?;
                Ok(regular.then_some(region))
            }
            Self::Archive { region, entries } => {
                let mut name = name.as_bytes();
                // A link to a link to a link is more than anybody writes.
                for _ in 0..3 {
                    match entries.get(name) {
                        Some(Slot::At { offset, length }) => return Ok(region.part(*offset, *length)),
                        Some(Slot::Link(target)) => name = target,
                        None => break,
                    }
                }
                Ok(None)
            }
        }
    }

    /// The whole of a small file.
    fn read(&self, image: &str, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(region) = self.open(name)? else { return Ok(None) };
        let what = || format!("{name} of {image}");
        if region.length > limit {
            return Err(SourceError::TooLarge { what: what(), limit });
        }
        let mut bytes = Vec::new();
        let read = region.reader().take(limit).read_to_end(&mut bytes);
        read.map_err(SourceError::file("read", &region.path))?;
        Ok(Some(bytes))
    }

    pub(super) fn is_layout(&self) -> Result<bool> {
        Ok(self.open("oci-layout")?.is_some() && self.open("index.json")?.is_some())
    }

    fn blob(&self, image: &str, descriptor: &Descriptor) -> Result<(Region, Digest)> {
        let digest = descriptor.digest(image)?;
        let region = self.open(&format!("blobs/sha256/{digest}"))?;
        let region = region.ok_or_else(|| {
            SourceError::image(image, format!("blobs/sha256/{digest} is missing, and it is a part of it"))
        })?;
        if region.length != descriptor.size {
            return Err(SourceError::image(
                image,
                format!(
                    "blobs/sha256/{digest} has {} bytes, and {} were promised",
                    region.length, descriptor.size
                ),
            ));
        }
        Ok((region, digest))
    }

    fn document(&self, image: &str, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let (region, expected) = self.blob(image, descriptor)?;
        let what = || format!("blobs/sha256/{expected} of {image}");
        if region.length > limit {
            return Err(SourceError::TooLarge { what: what(), limit });
        }
        let mut bytes = Vec::new();
        let read = region.reader().take(limit).read_to_end(&mut bytes);
        read.map_err(SourceError::file("read", &region.path))?;
        let found = Digest::of(Sha256::new_with_prefix(&bytes));
        if found != expected {
            return Err(SourceError::WrongDigest { what: what(), expected, found, removed: false });
        }
        Ok(bytes)
    }
}

/// A link's target, seen from the archive's root.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let folder = name.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &name[..slash]);
    let mut path: Vec<&[u8]> = Vec::new();
    for part in folder.split(|&b| b == b'/').chain(target.split(|&b| b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            part => path.push(part),
        }
    }
    path.join(&b'/')
}

/// The layers of an image in files.
struct Stored(Vec<(Region, Option<Digest>)>);

impl Layers for Stored {
    fn fetch(&mut self, _: &mut Watch<'_>) -> Result<Vec<Blob>> {
        let blob = |(region, digest)| Blob { region, digest, kept: None };
        Ok(std::mem::take(&mut self.0).into_iter().map(blob).collect())
    }
}

/// Opens an image of a layout.
pub(super) fn open_layout(image: &str, files: &Files, wish: &Wish<'_>) -> Result<Opened<'static>> {
    let wrong = |reason: &str| SourceError::image(image, reason);
    let missing = || wrong("it is no OCI image layout: it has no oci-layout and index.json");
    let version = files.read(image, "oci-layout", LONGEST_MANIFEST)?.ok_or_else(missing)?;
    let version = serde_json::from_slice::<Version>(&version).ok().map(|version| version.number);
    if !version.is_some_and(|number| number.starts_with("1.")) {
        return Err(wrong(
            "its oci-layout is of no version that is known here: expected imageLayoutVersion 1.0.0",
        ));
    }
    let index = files.read(image, "index.json", LONGEST_MANIFEST)?.ok_or_else(missing)?;
    let Understood::Index(entries) = Understood::parse(image, &index)? else {
        return Err(wrong("its index.json is no index"));
    };
    let chosen = choose(image, &entries, wish)?;
    let resolved = super::resolve(image, chosen.clone(), wish.architecture, &mut |descriptor| {
        files.document(image, descriptor, LONGEST_MANIFEST)
    })?;
    let config = files.document(image, &resolved.config, LONGEST_CONFIG)?;
    let config = Configuration::parse(image, &config, resolved.layers.len(), wish.architecture)?;
    let layers = resolved
        .layers
        .iter()
        .map(|layer| files.blob(image, layer).map(|(region, digest)| (region, Some(digest))));
    let layers = Stored(layers.collect::<Result<_>>()?);
    let suggestion = chosen.ref_name().map(str::to_owned);
    Ok(Opened { name: image.into(), config, suggestion, layers: Box::new(layers) })
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "imageLayoutVersion")]
    number: String,
}

/// The one image that is meant.
fn choose(image: &str, entries: &[Descriptor], wish: &Wish<'_>) -> Result<Descriptor> {
    let named = |entry: &&Descriptor| match wish.choice {
        None => true,
        Some(choice) => match choice.strip_prefix('@') {
            Some(digest) => entry.digest(image).is_ok_and(|found| Some(found) == parse_digest(digest)),
            None => entry.ref_name() == Some(choice),
        },
    };
    let candidates: Vec<_> = entries.iter().filter(named).cloned().collect();
    match &candidates[..] {
        [only] => Ok(only.clone()),
        // The same image for several kinds of machine: one has to be right.
        [first, ..] if candidates.iter().all(|one| one.ref_name() == first.ref_name()) => {
            document::choose(image, &candidates, wish.architecture).cloned()
        }
        [] if entries.is_empty() => Err(SourceError::image(image, "its index.json names no image")),
        _ => Err(SourceError::Choose {
            image: image.into(),
            chosen: wish.choice.map(str::to_owned),
            offered: entries.iter().filter_map(|entry| entry.ref_name().map(str::to_owned)).collect(),
        }),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Opens an image of an archive that `docker save` wrote.
pub(super) fn open_saved(image: &str, files: &Files, wish: &Wish<'_>) -> Result<Opened<'static>> {
    let wrong = |reason: String| SourceError::image(image, reason);
    let manifest = files.read(image, "manifest.json", LONGEST_MANIFEST)?;
    let manifest = manifest.ok_or_else(|| {
        wrong("it has neither manifest.json nor oci-layout: no `docker save` wrote it".into())
    })?;
    let saved: Vec<Saved> = serde_json::from_slice(&manifest)
        .map_err(|error| wrong(format!("its manifest.json is not what it should be: {error}")))?;
    let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
    let named = |one: &&Saved| wish.choice.is_none_or(|choice| tags(one).iter().any(|tag| tag == choice));
    let candidates: Vec<_> = saved.iter().filter(named).collect();
    let [only] = candidates[..] else {
        return Err(SourceError::Choose {
            image: image.into(),
            chosen: wish.choice.map(str::to_owned),
            offered: saved.iter().flat_map(tags).collect(),
        });
    };
    let config = files.read(image, &only.config, LONGEST_CONFIG)?;
    let config = config.ok_or_else(|| {
        wrong(format!("{}, its configuration, is missing", crate::console::printable(&only.config)))
    })?;
    // The layers' digests are the configuration's, and where its own name is a digest it is checked too.
    check_name(image, &only.config, &config)?;
    let config = Configuration::parse(image, &config, only.layers.len(), wish.architecture)?;
    let layers = only.layers.iter().map(|name| {
        let missing = || wrong(format!("the layer {} is missing", crate::console::printable(name)));
        files.open(name)?.map(|region| (region, None)).ok_or_else(missing)
    });
    let layers = Stored(layers.collect::<Result<_>>()?);
    let tag = tags(only).first().and_then(|tag| super::Reference::parse(tag).ok());
    Ok(Opened {
        name: image.into(),
        config,
        suggestion: tag.map(|tag| tag.suggestion()),
        layers: Box::new(layers),
    })
}

fn check_name(image: &str, name: &str, config: &[u8]) -> Result<()> {
    let last = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let Ok(expected) = last.parse::<Digest>() else { return Ok(()) };
    let found = Digest::of(Sha256::new_with_prefix(config));
    if found == expected {
        return Ok(());
    }
    let what = format!("{} of {image}", crate::console::printable(name));
    Err(SourceError::WrongDigest { what, expected, found, removed: false })
}
