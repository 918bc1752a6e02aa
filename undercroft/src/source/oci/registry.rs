//! Images of registries: OCI Distribution Specification 1.1, "Pulling manifests" and "Pulling blobs".
//!
//! Only what is asked for by digest is believed as it is; a tag is a registry's word, and the manifest's digest is what
//! everything below hangs from. Registries on this machine are asked in the clear, others encrypted, unless somebody says
//! otherwise.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use ureq::http::{Response, Uri};

use super::{
    super::{
        cache::Cache,
        error::{Result, SourceError},
        fetch::{Wanted, fetch},
        http::{Client, Small, header, is_loopback},
        progress::{Phase, Watch},
    },
    Architecture, Layers, Opened, Reference,
    auth::{self, Challenge},
    document::{Configuration, Descriptor, LONGEST_CONFIG, LONGEST_MANIFEST, parse_digest},
    entries::Region,
    layer::Blob,
};
use crate::digest::Digest;

/// What is understood, for `Accept`.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";

/// How registries are asked.
pub(crate) struct Access<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a Cache,
    /// Files that may know passwords.
    pub(crate) passwords: &'a [PathBuf],
    /// In the clear, wherever it is.
    pub(crate) clear_text: bool,
    pub(crate) architecture: Architecture,
}

/// Finds an image in its registry, and reads everything but the layers.
pub(crate) fn open<'a>(
    reference: &Reference,
    access: &'a Access<'a>,
    watch: &mut Watch<'_>,
) -> Result<Opened<'a>> {
    let mut registry = Registry::new(reference, access)?;
    let name = reference.to_string();
    watch.step(Phase::Asking, &name, 0, None)?;
    let top = registry.manifest(&reference.wanted(), reference.digest())?;
    let top_digest = Digest::of(Sha256::new_with_prefix(&top));
    let first = Descriptor::new(top_digest, top.len() as u64);
    let resolved = super::resolve(&name, first, access.architecture, &mut |descriptor| {
        let digest = descriptor.digest(&name)?;
        if digest == top_digest {
            return Ok(top.clone());
        }
        watch.step(Phase::Asking, &name, 0, None)?;
        registry.manifest(&format!("sha256:{digest}"), Some(digest))
    })?;
    let config = registry.config(&resolved.config)?;
    let config = Configuration::parse(&name, &config, resolved.layers.len(), access.architecture)?;
    let layers = Box::new(Remote { registry, layers: resolved.layers });
    Ok(Opened { name, config, suggestion: Some(reference.suggestion()), layers })
}

/// An image's repository, and what it has to be told.
struct Registry<'a> {
    access: &'a Access<'a>,
    /// The image, for people.
    image: String,
    /// The registry, for people.
    host: String,
    /// `https://HOST/v2/PATH`.
    base: String,
    scope: String,
    password: Option<String>,
    authorization: Option<String>,
}

impl<'a> Registry<'a> {
    fn new(reference: &Reference, access: &'a Access<'a>) -> Result<Self> {
        let server = reference.server();
        let uri: Option<Uri> = format!("https://{server}/").parse().ok();
        let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty())).ok_or(
            SourceError::ImageName { name: reference.to_string(), reason: "its registry is no host" },
        )?;
        let scheme = if access.clear_text || is_loopback(&uri) { "http" } else { "https" };
        Ok(Self {
            access,
            image: reference.to_string(),
            host: reference.registry().into(),
            base: format!("{scheme}://{server}/v2/{}", reference.repository()),
            scope: format!("repository:{}:pull", reference.repository()),
            password: auth::password(access.passwords, reference.registry()),
            authorization: None,
        })
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        self.authorization.iter().map(|value| ("authorization", value.clone())).collect()
    }

    /// Asks for something small; if the registry wants to know who asks, once more with an answer to that.
    fn small(&mut self, path: &str, accept: Option<&str>, limit: u64, what: &str) -> Result<Small> {
        let url = format!("{}/{path}", self.base);
        let mut answered = false;
        loop {
            let mut headers = self.headers();
            headers.extend(accept.map(|accept| ("accept", accept.to_owned())));
            let answer = self.access.client.get_small(&url, &headers, limit, what)?;
            match answer.status {
                200 => return Ok(answer),
                401 if !answered => {
                    answered = true;
                    self.authorize(&answer.response)?;
                }
                status => return Err(self.refused(status, &url)),
            }
        }
    }

    /// Answers a challenge.
    fn authorize<B>(&mut self, answer: &Response<B>) -> Result<()> {
        let challenge = Challenge::of(answer);
        let clear_text = self.base.starts_with("http:");
        self.authorization = match (challenge, &self.password) {
            (Some(Challenge::Bearer { realm, service, scope }), password) => {
                let scope = scope.unwrap_or_else(|| self.scope.clone());
                let asked = (&*realm, service.as_deref(), &*scope);
                Some(auth::token(self.access.client, &self.host, asked, password.as_ref(), clear_text)?)
            }
            (Some(Challenge::Basic), Some(password)) => Some(password.clone()),
            _ => return Err(self.refused(401, "")),
        };
        Ok(())
    }

    fn refused(&self, status: u16, url: &str) -> SourceError {
        let registry = self.host.clone();
        let reason = match status {
            401 | 403 => format!(
                "does not give out {} (it answered {status}): there is no such image, or it is not for everybody; \
                 `docker login {registry}` puts a password into ~/.docker/config.json, where it is found",
                self.image
            ),
            404 => format!("has no image {}: check its name and its tag", self.image),
            429 => format!(
                "was asked too often (it answered 429): wait a while, or `docker login {registry}` for a larger share"
            ),
            _ => return SourceError::Status { url: url.into(), status },
        };
        SourceError::Registry { registry, reason }
    }

    fn manifest(&mut self, wanted: &str, digest: Option<Digest>) -> Result<Vec<u8>> {
        let what = format!("the manifest of {}", self.image);
        let answer = self.small(&format!("manifests/{wanted}"), Some(ACCEPT), LONGEST_MANIFEST, &what)?;
        // A registry that says what it sent is held to that.
        let said = header(&answer.response, "docker-content-digest").and_then(parse_digest);
        check(what, &answer.bytes, digest.or(said))?;
        Ok(answer.bytes)
    }

    fn config(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest(&self.image)?;
        let what = format!("the configuration of {}", self.image);
        let answer = self.small(&format!("blobs/sha256:{digest}"), None, LONGEST_CONFIG, &what)?;
        check(what, &answer.bytes, Some(digest))?;
        Ok(answer.bytes)
    }

    fn blob(&mut self, descriptor: &Descriptor, watch: &mut Watch<'_>) -> Result<Blob> {
        let digest = descriptor.digest(&self.image)?;
        let url = format!("{}/blobs/sha256:{digest}", self.base);
        let mut renewed = false;
        loop {
            let wanted = Wanted {
                url: url.clone(),
                headers: self.headers(),
                digest: Some(digest),
                size: Some(descriptor.size),
                what: self.image.clone(),
            };
            match fetch(self.access.client, self.access.cache, &wanted, watch) {
                Ok(fetched) => {
                    let path = fetched.file.path();
                    let file = std::fs::File::open(path).map_err(SourceError::file("open", path))?;
                    let region = Region::whole(file, path).map_err(SourceError::file("read", path))?;
                    return Ok(Blob { region, digest: None, kept: Some(fetched.file) });
                }
                // Tokens last some minutes, and a layer may take longer to come.
                Err(SourceError::Status { status: 401, .. }) if !renewed => {
                    renewed = true;
                    let answer = self.access.client.get(&url, &[])?;
                    self.authorize(&answer)?;
                }
                Err(SourceError::Status { status, url }) => return Err(self.refused(status, &url)),
                Err(error) => return Err(error),
            }
        }
    }
}

fn check(what: String, bytes: &[u8], expected: Option<Digest>) -> Result<()> {
    let found = Digest::of(Sha256::new_with_prefix(bytes));
    match expected {
        Some(expected) if expected != found => {
            Err(SourceError::WrongDigest { what, expected, found, removed: false })
        }
        _ => Ok(()),
    }
}

/// The layers of an image in a registry.
struct Remote<'a> {
    registry: Registry<'a>,
    layers: Vec<Descriptor>,
}

impl Layers for Remote<'_> {
    fn fetch(&mut self, watch: &mut Watch<'_>) -> Result<Vec<Blob>> {
        let whole = self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
        let mut before: u64 = 0;
        let mut blobs = Vec::new();
        for layer in &self.layers {
            watch.part_of(Some((before, whole)));
            blobs.push(self.registry.blob(layer, watch)?);
            before = before.saturating_add(layer.size);
        }
        Ok(blobs)
    }
}
