//! The documents of an image: indexes, manifests and configurations, as far as they matter here.
//!
//! Formats: OCI Image Format 1.1, "image-index.md", "manifest.md", "config.md", "descriptor.md"; Docker's "Image Manifest
//! Version 2, Schema 2", which differs in nothing but media types. All of it is a claim: what is read is limited in length
//! before it is parsed, and fields that are not named here are passed over.

use std::fmt;

use serde::Deserialize;

use super::super::error::{Result, SourceError};
use crate::digest::Digest;

/// The longest manifest or index, in bytes: what registries are asked to take (distribution specification 1.1, "Pushing
/// Manifests").
pub(crate) const LONGEST_MANIFEST: u64 = 4 << 20;
/// The longest configuration, in bytes.
pub(crate) const LONGEST_CONFIG: u64 = 8 << 20;
/// The most layers of an image: overlayfs takes 500, and Docker 127.
const MOST_LAYERS: usize = 1000;
/// The most entries of an index.
const MOST_ENTRIES: usize = 1000;
/// The annotation that gives an image of a layout its name ("annotations.md").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A kind of machine, in the words of images (Go's GOARCH) and of WSL's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
}

impl Architecture {
    /// The machine that this program is for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// As images say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Go's GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// Go's GOOS.
    #[serde(default)]
    pub os: String,
    /// A generation of the architecture: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    pub(crate) fn linux(architecture: Architecture) -> Self {
        Self { architecture: architecture.name().into(), os: "linux".into(), variant: None }
    }

    fn fits(&self, architecture: Architecture) -> bool {
        self.os == "linux" && self.architecture == architecture.name()
    }

    /// Whether it is an image at all: attestations beside images are of no platform.
    fn is_known(&self) -> bool {
        self.os != "unknown" && !self.os.is_empty()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match &self.variant {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        };
        f.write_str(&crate::console::printable(&text))
    }
}

/// What points to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Descriptor {
    /// One that nobody wrote down.
    pub(crate) fn new(digest: Digest, size: u64) -> Self {
        Self {
            media_type: String::new(),
            digest: format!("sha256:{digest}"),
            size,
            platform: None,
            annotations: None,
        }
    }

    /// The blob's digest: SHA-256 only, as everybody's are.
    pub(crate) fn digest(&self, image: &str) -> Result<Digest> {
        parse_digest(&self.digest).ok_or_else(|| {
            let shown = crate::console::printable(&self.digest);
            SourceError::image(image, format!("it names a blob by {shown:?}, and sha256:… was expected"))
        })
    }

    pub(crate) fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }

    /// Whether it points to an index, as far as it says.
    pub(crate) fn is_index(&self) -> bool {
        matches!(
            &*self.media_type,
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }
}

/// `sha256:` and 64 digits.
pub(crate) fn parse_digest(text: &str) -> Option<Digest> {
    text.strip_prefix("sha256:")?.parse().ok()
}

/// An index, a manifest, or something else.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// A document that was understood.
#[derive(Debug)]
pub(crate) enum Understood {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Understood {
    pub(crate) fn parse(image: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |reason: String| SourceError::image(image, reason);
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("its manifest or index is not what it should be: {error}")))?;
        match document {
            Document { manifests: Some(entries), .. } if entries.len() > MOST_ENTRIES => Err(wrong(format!(
                "its index has {} entries, and {MOST_ENTRIES} at most are taken",
                entries.len()
            ))),
            Document { manifests: Some(entries), .. } => Ok(Self::Index(entries)),
            Document { layers: Some(layers), .. } if layers.len() > MOST_LAYERS => {
                Err(wrong(format!("it has {} layers, and {MOST_LAYERS} at most are taken", layers.len())))
            }
            Document { config: Some(config), layers: Some(layers), .. } => {
                Ok(Self::Manifest { config, layers })
            }
            Document { schema_version: Some(1), .. } => {
                Err(wrong("it is of Docker's first format, which nobody has written since 2017".into()))
            }
            _ => Err(wrong(
                "it is neither an index nor a manifest: expected `manifests`, or `config` and `layers`"
                    .into(),
            )),
        }
    }
}

/// The entry of an index that is for such a machine.
pub(crate) fn choose<'a>(
    image: &str,
    entries: &'a [Descriptor],
    architecture: Architecture,
) -> Result<&'a Descriptor> {
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|p| p.fits(architecture));
    if let Some(entry) = entries.iter().find(fits) {
        return Ok(entry);
    }
    // What says nothing of its platform may be right: its configuration says it.
    let mut silent = entries.iter().filter(|entry| entry.platform.is_none());
    if let (Some(only), None) = (silent.next(), silent.next()) {
        return Ok(only);
    }
    let known = entries.iter().filter_map(|entry| entry.platform.clone()).filter(Platform::is_known);
    Err(SourceError::NoPlatform {
        image: image.into(),
        wanted: Platform::linux(architecture),
        offered: known.collect(),
    })
}

/// What an image says of how it is run. Distributions are run here, not programs, so most of it is for whom it may
/// concern; environment and user are of use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Where programs start; empty for `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// The program.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program where there is no entry point.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
}

/// Go writes `null` for an empty list.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: Option<RawRoot>,
}

#[derive(Debug, Deserialize)]
struct RawRoot {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// An image's configuration: how it is run, and the SHA-256 of each layer's tar as it is before compression.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(crate) run: ImageConfig,
    pub(crate) layers: Vec<Digest>,
}

impl Configuration {
    pub(crate) fn parse(
        image: &str,
        bytes: &[u8],
        layers: usize,
        architecture: Architecture,
    ) -> Result<Self> {
        let wrong = |reason: String| SourceError::image(image, reason);
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| wrong(format!("its configuration is not what it should be: {error}")))?;
        if !raw.platform.fits(architecture) {
            return Err(SourceError::NoPlatform {
                image: image.into(),
                wanted: Platform::linux(architecture),
                offered: vec![raw.platform],
            });
        }
        let ids = raw.rootfs.and_then(|root| root.diff_ids).unwrap_or_default();
        if ids.len() != layers {
            return Err(wrong(format!(
                "its configuration knows {} layers, and its manifest {layers}",
                ids.len()
            )));
        }
        let layers = ids.iter().map(|id| parse_digest(id)).collect::<Option<_>>();
        let layers =
            layers.ok_or_else(|| wrong("its configuration has a diff_id that is no sha256:…".into()))?;
        Ok(Self { run: raw.config.unwrap_or_default(), layers })
    }
}
