//! Lists of distributions, in the format that WSL's own has: `DistributionInfo.json`.
//!
//! Format: the repository microsoft/WSL, `distributions/DistributionInfo.json` and its schema, of WSL 2.6. Of the two lists in
//! it `ModernDistributions` is read; `Distributions` names packages of a shop of Windows programs. A list is a claim of
//! whoever wrote it: fields that are not known are passed over, an entry that makes no sense is an error when it is used,
//! and does not hide the others.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{
    error::{Result, SourceError},
    http::{Client, shown},
    oci::Architecture,
    progress::{Phase, Watch},
};
use crate::{console::printable, digest::Digest};

/// Where WSL's own list is.
pub const STANDARD: &str =
    "https://raw.githubusercontent.com/microsoft/WSL/master/distributions/DistributionInfo.json";
/// The longest list, in bytes: WSL's has some 30 000.
const LONGEST: u64 = 4 << 20;
/// The most entries in a list.
const MOST: usize = 10_000;
/// The longest name and address, in bytes.
const LONGEST_NAME: usize = 256;
const LONGEST_URL: usize = 4096;

/// Which lists there are, by their addresses (`http://`, `https://`, `file://`) or paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lists {
    main: String,
    more: Vec<String>,
}

impl Default for Lists {
    fn default() -> Self {
        Self::new(None, Vec::new())
    }
}

impl Lists {
    /// `instead` takes the place of [`STANDARD`]; `more` come besides, and what one of them names is taken from there.
    pub fn new(instead: Option<String>, more: Vec<String>) -> Self {
        Self { main: instead.unwrap_or_else(|| STANDARD.into()), more }
    }

    pub(super) fn read(&self, client: &Client, watch: &mut Watch<'_>) -> Result<Catalogue> {
        let places = self.more.iter().chain([&self.main]);
        let lists = places.map(|place| List::read(place, client, watch)).collect::<Result<_>>()?;
        Ok(Catalogue { lists })
    }
}

/// Everything that can be installed by name.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Those that come besides first.
    lists: Vec<List>,
}

/// One list.
#[derive(Debug, Clone)]
struct List {
    from: String,
    default: Option<String>,
    entries: Vec<Entry>,
}

/// One distribution of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called: `Debian`, `Ubuntu-24.04`.
    pub name: String,
    /// The same for people: `Debian GNU/Linux`.
    pub friendly_name: String,
    /// What it is one of: `Ubuntu`.
    pub flavour: String,
    /// Whether the flavour's name means this one.
    pub is_default: bool,
    amd64: std::result::Result<Package, String>,
    arm64: std::result::Result<Package, String>,
}

/// A distribution's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// `http://`, `https://` or `file://`.
    pub url: String,
    /// What it must be.
    pub digest: Digest,
}

impl Entry {
    /// Its file for a kind of machine, or why there is none.
    pub fn package(&self, architecture: Architecture) -> std::result::Result<&Package, &str> {
        let package = match architecture {
            Architecture::Amd64 => &self.amd64,
            Architecture::Arm64 => &self.arm64,
        };
        package.as_ref().map_err(String::as_str)
    }
}

impl Catalogue {
    /// What there is for a kind of machine, in the lists' order; each name once.
    pub fn list(&self, architecture: Architecture) -> Vec<&Entry> {
        let mut listed: Vec<&Entry> = Vec::new();
        for entry in self.lists.iter().flat_map(|list| &list.entries) {
            let known = listed.iter().any(|other| other.name.eq_ignore_ascii_case(&entry.name));
            if !known && entry.package(architecture).is_ok() {
                listed.push(entry);
            }
        }
        listed
    }

    /// What is installed when no name is given: the main list's default, or that of the first list that has one.
    pub fn default_name(&self) -> Option<&str> {
        let main = self.lists.last().and_then(|list| list.default.as_deref());
        main.or_else(|| self.lists.iter().find_map(|list| list.default.as_deref()))
    }

    /// The distribution of that name, or the default one of that flavour; upper and lower case are the same. Also where it
    /// is listed.
    pub fn find(&self, name: &str) -> Result<(&Entry, &str)> {
        for list in &self.lists {
            let mut flavour =
                list.entries.iter().filter(|entry| entry.flavour.eq_ignore_ascii_case(name)).peekable();
            if flavour.peek().is_some() {
                // A flavour of one needs no default.
                let all: Vec<_> = flavour.collect();
                let chosen = all.iter().find(|entry| entry.is_default).or(match &all[..] {
                    [only] => Some(only),
                    _ => None,
                });
                return chosen.map(|entry| (*entry, &*list.from)).ok_or_else(|| {
                    let names: Vec<_> = all.iter().take(10).map(|entry| &*entry.name).collect();
                    let reason = format!("none of it is the default; name one of {}", names.join(", "));
                    SourceError::Listed { name: name.into(), from: list.from.clone(), reason }
                });
            }
            if let Some(entry) = list.entries.iter().find(|entry| entry.name.eq_ignore_ascii_case(name)) {
                return Ok((entry, &list.from));
            }
        }
        Err(SourceError::NoSuchName {
            name: name.into(),
            near: self.near(name),
            from: self.lists.iter().map(|list| list.from.clone()).collect(),
        })
    }

    /// Up to three names that are like one that is not there.
    fn near(&self, name: &str) -> Vec<String> {
        /// Jaro and Winkler's measure from which two names look alike to people: one letter in six.
        const ALIKE: f64 = 0.8;
        let wanted = name.to_lowercase();
        let mut scored: Vec<(f64, &str)> = Vec::new();
        for entry in self.lists.iter().flat_map(|list| &list.entries) {
            for known in [&*entry.flavour, &*entry.name] {
                let lower = known.to_lowercase();
                let part = !wanted.is_empty() && (lower.contains(&wanted) || wanted.contains(&lower));
                let score = strsim::jaro_winkler(&wanted, &lower).max(if part { ALIKE } else { 0.0 });
                let new = !scored.iter().any(|(_, other)| other.eq_ignore_ascii_case(known));
                if score >= ALIKE && new {
                    scored.push((score, known));
                }
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
    }
}

impl List {
    fn read(place: &str, client: &Client, watch: &mut Watch<'_>) -> Result<Self> {
        let shown = shown(place);
        watch.step(Phase::Asking, &shown, 0, None)?;
        let what = format!("the list {shown}");
        let bytes = match Place::of(place)? {
            Place::Web(url) => {
                let answer = client.get_small(&url, &[], LONGEST, &what)?;
                if answer.status != 200 {
                    return Err(SourceError::Status { url: shown, status: answer.status });
                }
                answer.bytes
            }
            Place::File(path) => read_small(&path, LONGEST, &what)?,
        };
        Self::parse(&shown, &bytes)
    }

    fn parse(from: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |reason| SourceError::List { from: from.into(), reason };
        // Files made on Windows may begin with a byte-order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let raw: RawList = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let Some(flavours) = raw.flavours else {
            return Err(wrong("it has no ModernDistributions".into()));
        };
        let mut entries = Vec::new();
        for (flavour, raw) in flavours.0 {
            for raw in raw {
                if entries.len() == MOST {
                    return Err(wrong(format!("it has more than {MOST} entries")));
                }
                // One that is no object of the right fields does not hide the others.
                let raw = serde_json::from_value(raw).ok();
                entries.extend(raw.and_then(|raw| Entry::of(&flavour, raw)));
            }
        }
        let default = raw.default.filter(|name| is_name(name));
        Ok(Self { from: from.into(), default, entries })
    }
}

impl Entry {
    /// `None` for what has no name that anybody could type.
    fn of(flavour: &str, raw: RawEntry) -> Option<Self> {
        let name = raw.name.filter(|name| is_name(name))?;
        let friendly = raw.friendly_name.map(|text| printable(&text)).filter(|text| !text.is_empty());
        Some(Self {
            friendly_name: friendly.unwrap_or_else(|| name.clone()),
            flavour: if is_name(flavour) { flavour.into() } else { name.clone() },
            is_default: raw.default == Some(true),
            amd64: package(raw.amd64, "Amd64Url"),
            arm64: package(raw.arm64, "Arm64Url"),
            name,
        })
    }
}

fn package(raw: Option<RawPackage>, field: &str) -> std::result::Result<Package, String> {
    let raw = raw.ok_or_else(|| format!("it has no {field}: it is not there for this machine"))?;
    let url = raw.url.ok_or_else(|| format!("its {field} has no Url"))?;
    let known = ["http://", "https://", "file://"].iter().any(|scheme| url.starts_with(scheme));
    if !known || url.len() > LONGEST_URL || url.bytes().any(|b| b.is_ascii_control()) {
        return Err(format!("its {field} has a Url that is none: {:?}", printable(&url)));
    }
    let text = raw.sha256.ok_or_else(|| format!("its {field} has no Sha256, so that nobody can check it"))?;
    let digest = digest(&text).ok_or_else(|| {
        format!("its {field} has a Sha256 that is none (64 hexadecimal digits): {:?}", printable(&text))
    })?;
    Ok(Package { url, digest })
}

/// A SHA-256 as lists have it: in upper or lower case, with or without `0x`.
pub(super) fn digest(text: &str) -> Option<Digest> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    digits.to_ascii_lowercase().parse().ok()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= LONGEST_NAME && !name.chars().any(|c| c.is_control() || c == '/')
}

/// Where a file is that an address or a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Web(String),
    File(PathBuf),
}

impl Place {
    pub(super) fn of(text: &str) -> Result<Self> {
        let scheme =
            |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if scheme("http://") || scheme("https://") {
            return Ok(Self::Web(text.into()));
        }
        if !scheme("file:") {
            return Ok(Self::File(text.into()));
        }
        // RFC 8089: `file:///path`, `file://localhost/path`, `file:/path`.
        let wrong = |reason: &str| SourceError::Text { text: text.into(), reason: reason.into() };
        let rest = &text["file:".len()..];
        let path = match rest.strip_prefix("//") {
            Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
            None => rest,
        };
        if !path.starts_with('/') {
            return Err(wrong("a file:// address needs the whole path, as in file:///home/me/debian.tar"));
        }
        let path = unescape(path).ok_or_else(|| wrong("its %-escapes make no sense"))?;
        Ok(Self::File(path))
    }
}

/// `%20` is a space (RFC 3986, section 2.1).
fn unescape(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|&byte| byte != 0)?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// A file of the host's that is not to be longer than that.
pub(super) fn read_small(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(SourceError::file("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(SourceError::file("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(SourceError::TooLarge { what: what.into(), limit });
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(expecting = "an object with ModernDistributions")]
struct RawList {
    #[serde(rename = "ModernDistributions")]
    flavours: Option<InOrder>,
    #[serde(rename = "Default")]
    default: Option<String>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "FriendlyName")]
    friendly_name: Option<String>,
    #[serde(rename = "Default")]
    default: Option<bool>,
    #[serde(rename = "Amd64Url")]
    amd64: Option<RawPackage>,
    #[serde(rename = "Arm64Url")]
    arm64: Option<RawPackage>,
}

#[derive(Deserialize)]
struct RawPackage {
    #[serde(rename = "Url")]
    url: Option<String>,
    #[serde(rename = "Sha256")]
    sha256: Option<String>,
}

/// A JSON object whose order is kept: the list is shown as its authors wrote it.
struct InOrder(Vec<(String, Vec<serde_json::Value>)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Flavours;
        impl<'de> Visitor<'de> for Flavours {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of flavours, each a list of distributions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<InOrder, A::Error> {
                let mut flavours = Vec::new();
                while let Some(flavour) = map.next_entry()? {
                    flavours.push(flavour);
                }
                Ok(InOrder(flavours))
            }
        }
        deserializer.deserialize_map(Flavours)
    }
}

#[cfg(test)]
#[path = "tests/manifest.rs"]
mod tests;
