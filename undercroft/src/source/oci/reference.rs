//! Names of images, and where they lead.
//!
//! Grammar: the module `reference` of the distribution project; paths and tags as the OCI Distribution Specification 1.1,
//! "Pulling manifests", has them. A name without a registry is Docker's: `debian` is `docker.io/library/debian:latest`.

use std::fmt;

use super::super::error::{Result, SourceError};
use super::document::parse_digest;
use crate::digest::Digest;

const DOCKER: &str = "docker.io";
/// Where Docker's registry answers.
const DOCKER_SERVER: &str = "registry-1.docker.io";
/// The longest name and tag, in bytes.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// An image of a registry. Displays as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name: `[REGISTRY[:PORT]/]PATH[:TAG][@sha256:DIGEST]`.
    pub fn parse(name: &str) -> Result<Self> {
        let wrong = |reason| SourceError::ImageName { name: name.into(), reason };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => {
                let digest = parse_digest(digest);
                (rest, Some(digest.ok_or_else(|| wrong("what follows @ is not sha256: and 64 digits"))?))
            }
            None => (name, None),
        };
        // A colon behind the last slash is a tag's; one before it is a port's.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].split_once(':') {
            Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("its tag has other characters than letters, digits, `_`, `.` and `-`"));
        }
        let (registry, path) = match path.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DOCKER, path),
        };
        let registry = if registry == "index.docker.io" { DOCKER } else { registry };
        if !is_host(registry) {
            return Err(wrong("its registry is no host"));
        }
        let official = registry == DOCKER && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(wrong("it has upper-case letters, and images have none"));
        }
        if repository.len() > LONGEST_NAME || !path.split('/').all(is_part) {
            return Err(wrong(
                "its path has other characters than a-z, 0-9, `.`, `_`, `-` and `/`, or an empty part",
            ));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".into()));
        Ok(Self { registry: registry.into(), repository, tag, digest })
    }

    /// Its registry, as people name it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Its path there.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest that it must have.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The host that answers.
    pub(super) fn server(&self) -> &str {
        if self.registry == DOCKER { DOCKER_SERVER } else { &self.registry }
    }

    /// What to ask for.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// What a distribution made from it could be called: `debian-12`.
    pub(crate) fn suggestion(&self) -> String {
        let last = self.repository.rsplit('/').next().unwrap_or_default();
        match self.tag.as_deref() {
            None | Some("latest") => last.into(),
            Some(tag) => format!("{last}-{tag}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, repository, tag, digest } = self;
        match (registry == DOCKER, repository.strip_prefix("library/")) {
            (true, Some(name)) => f.write_str(name)?,
            (true, None) => f.write_str(repository)?,
            (false, _) => write!(f, "{registry}/{repository}")?,
        }
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        digest.map_or(Ok(()), |digest| write!(f, "@sha256:{digest}"))
    }
}

fn is_host(registry: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
    registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') && registry.bytes().all(fits)
}

/// A first part is a host if it could not be a part of a path.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn is_part(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = part.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|&b| inner(b))
}

fn is_tag(tag: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=LONGEST_TAG).contains(&tag.len()) && tag.bytes().all(fits) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_where_they_lead_elsewhere() {
        for (name, registry, repository, wanted, shown) in [
            ("debian", "docker.io", "library/debian", "latest", "debian:latest"),
            ("debian:12", "docker.io", "library/debian", "12", "debian:12"),
            ("docker.io/me/x", "docker.io", "me/x", "latest", "me/x:latest"),
            ("index.docker.io/library/debian:12", "docker.io", "library/debian", "12", "debian:12"),
            ("ghcr.io/a/b-c/d_e:v1.0", "ghcr.io", "a/b-c/d_e", "v1.0", "ghcr.io/a/b-c/d_e:v1.0"),
            ("localhost/x", "localhost", "x", "latest", "localhost/x:latest"),
            ("host:5000/x/y", "host:5000", "x/y", "latest", "host:5000/x/y:latest"),
            ("[::1]:5000/x", "[::1]:5000", "x", "latest", "[::1]:5000/x:latest"),
        ] {
            let reference = Reference::parse(name).unwrap();
            assert_eq!(
                (reference.registry(), reference.repository(), &*reference.wanted(), &*reference.to_string()),
                (registry, repository, wanted, shown),
                "{name}"
            );
        }
        let digest = "0".repeat(64);
        let pinned = Reference::parse(&format!("host:5000/x:1@sha256:{digest}")).unwrap();
        assert_eq!(pinned.wanted(), format!("sha256:{digest}"));
        assert_eq!(pinned.suggestion(), "x-1");
        assert_eq!(Reference::parse("debian").unwrap().server(), DOCKER_SERVER);
        assert_eq!(Reference::parse("debian").unwrap().suggestion(), "debian");
    }

    #[test]
    fn what_is_no_name_is_told() {
        let long = "x".repeat(300);
        for bad in [
            "",
            "Debian",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:.x",
            "a b",
            "a@md5:0",
            "a@sha256:0",
            "../x",
            "x.y/..",
            &long,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        insta::assert_snapshot!(Reference::parse("Debian:12").unwrap_err(), @r#""Debian:12" is not the name of an image: it has upper-case letters, and images have none. Expected something like debian:12 or ghcr.io/owner/name@sha256:…"#);
    }
}
