//! Downloading a file, going on where a cut left it, and believing it only when its digest is right.
//!
//! A partial file has a note beside it: from where it came, the server's validator (RFC 9110, section 8.8) and what it should
//! be. The next try asks for the rest (`Range`, section 14.2) if the file is still the same (`If-Range`, section 13.1.5). A
//! server that answers with the whole file, as it may, starts it anew. Bytes whose digest is known beforehand are taken
//! as they lie there; others only as far as they were flushed, because nothing else would tell what a power cut did.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ureq::{Body, http::Response};

use super::{
    cache::{Cache, Kept},
    error::{Result, SourceError},
    http::{Client, header, reason, shown},
    progress::{Phase, Watch},
};
use crate::digest::Digest;

/// Bytes that are read and written at a time.
const CHUNK: usize = 256 << 10;
/// Bytes of a file without a known digest that a power cut may cost.
const FLUSH: u64 = 32 << 20;
/// The longest file, in bytes: no root file system is that long, and an endless answer ends.
const LONGEST: u64 = 1 << 40;

/// What is to be downloaded.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) url: String,
    /// Further headers: who asks.
    pub(super) headers: Vec<(&'static str, String)>,
    /// What it should be.
    pub(super) digest: Option<Digest>,
    /// How long it should be, in bytes.
    pub(super) size: Option<u64>,
    /// What it is, for people.
    pub(super) what: String,
}

/// What was downloaded.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) file: Kept,
    pub(super) digest: Digest,
}

/// What stands beside a partial file. Anybody may have written it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    version: u32,
    url: String,
    /// A strong `ETag`, or a `Last-Modified`.
    validator: Option<String>,
    digest: Option<Digest>,
    /// Bytes that were flushed to the disk.
    flushed: u64,
}

const VERSION: u32 = 1;

/// Downloads it, or finds that it is there.
pub(super) fn fetch(
    client: &Client,
    cache: &Cache,
    wanted: &Wanted,
    watch: &mut Watch<'_>,
) -> Result<Fetched> {
    let name = last_part(&wanted.url);
    if let Some(digest) = wanted.digest
        && let Some(file) = find(cache, &digest, &name, &wanted.what, watch)?
    {
        return Ok(Fetched { file, digest });
    }
    let key = match wanted.digest {
        Some(digest) => digest.to_string(),
        None => Digest::of(Sha256::new_with_prefix(&wanted.url)).to_string(),
    };
    let (path, file) = cache.partial(&key, &wanted.what, watch)?;
    // Somebody else may have had it, and be ready.
    if let Some(digest) = wanted.digest
        && let Some(kept) = find(cache, &digest, &name, &wanted.what, watch)?
    {
        let _ = fs::remove_file(path);
        return Ok(Fetched { file: kept, digest });
    }
    let note = path.with_extension("json");
    let mut download =
        Download { client, cache, wanted, path, note, file, hash: Sha256::new(), have: 0, in_parts: false };
    let digest = download.run(watch)?;
    let Download { path, note, file, .. } = download;
    let kept = cache.keep(&path, file, &digest, &name)?;
    let _ = fs::remove_file(note);
    Ok(Fetched { file: kept, digest })
}

/// A file of the cache that is what its name says.
pub(super) fn find(
    cache: &Cache,
    digest: &Digest,
    name: &str,
    what: &str,
    watch: &mut Watch<'_>,
) -> Result<Option<Kept>> {
    let Some(kept) = cache.kept(digest, name) else { return Ok(None) };
    let mut file = File::open(kept.path()).map_err(SourceError::file("open", kept.path()))?;
    let total = file.metadata().ok().map(|about| about.len());
    let mut hash = Sha256::new();
    read_all(&mut file, kept.path(), what, total, watch, |bytes| hash.update(bytes))?;
    if Digest::of(hash) == *digest {
        return Ok(Some(kept));
    }
    kept.discard();
    Ok(None)
}

/// Reads a file to its end; gives its length.
pub(super) fn read_all(
    from: &mut impl Read,
    path: &Path,
    what: &str,
    total: Option<u64>,
    watch: &mut Watch<'_>,
    mut take: impl FnMut(&[u8]),
) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut read = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(read),
            Ok(n) => {
                take(&buffer[..n]);
                read += n as u64;
                watch.step(Phase::Checking, what, read, total)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SourceError::file("read", path)(error)),
        }
    }
}

struct Download<'a> {
    client: &'a Client,
    cache: &'a Cache,
    wanted: &'a Wanted,
    path: PathBuf,
    note: PathBuf,
    file: File,
    hash: Sha256,
    /// Bytes that are in the file, and hashed.
    have: u64,
    /// They did not come in one piece.
    in_parts: bool,
}

impl Download<'_> {
    fn run(&mut self, watch: &mut Watch<'_>) -> Result<Digest> {
        let mut validator = self.resume(watch)?;
        let mut tries = self.client.retries;
        loop {
            let before = self.have;
            match self.attempt(validator.as_deref(), watch).and_then(|()| self.check()) {
                Ok(digest) => return Ok(digest),
                // It grew, and can go on: at once, as the next try would.
                Err(SourceError::Cut { .. }) if tries > 0 && self.have > before => {
                    tries -= 1;
                    validator = self.read_note().and_then(|note| note.validator);
                    if validator.is_none() && self.wanted.digest.is_none() {
                        self.restart()?;
                    }
                }
                // The parts do not fit together: another file by now, or what a power cut left. The whole may be right.
                Err(SourceError::WrongDigest { .. } | SourceError::WrongSize { .. }) if self.in_parts => {
                    self.restart()?;
                    validator = None;
                }
                Err(error) => {
                    if matches!(error, SourceError::WrongDigest { .. } | SourceError::WrongSize { .. }) {
                        self.remove();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Takes what an earlier try has left, as far as it can be used; gives its validator.
    fn resume(&mut self, watch: &mut Watch<'_>) -> Result<Option<String>> {
        let lies = self.file.metadata().map_err(SourceError::file("read", &self.path))?.len();
        let note = self.read_note().filter(|note| {
            note.version == VERSION && note.url == self.wanted.url && note.digest == self.wanted.digest
        });
        let (usable, validator) = match note {
            Some(note) if self.wanted.digest.is_some() => (lies, note.validator),
            Some(Note { validator: Some(validator), flushed, .. }) => (lies.min(flushed), Some(validator)),
            _ => (0, None),
        };
        let usable = if self.wanted.size.is_some_and(|size| usable > size) { 0 } else { usable };
        self.file.set_len(usable).map_err(SourceError::file("shorten", &self.path))?;
        let (mut hash, path) = (Sha256::new(), self.path.clone());
        self.file.rewind().map_err(SourceError::file("read", &path))?;
        let read = (&self.file).take(usable);
        let what = &self.wanted.what;
        self.have = read_all(&mut { read }, &path, what, Some(usable), watch, |bytes| hash.update(bytes))?;
        self.hash = hash;
        Ok(validator)
    }

    fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(SourceError::file("empty", &self.path))?;
        (self.have, self.hash, self.in_parts) = (0, Sha256::new(), false);
        Ok(())
    }

    /// Asks once, and takes what comes.
    fn attempt(&mut self, validator: Option<&str>, watch: &mut Watch<'_>) -> Result<()> {
        self.in_parts = self.have > 0;
        if self.have > 0 && self.wanted.size == Some(self.have) {
            return Ok(());
        }
        let mut headers = self.wanted.headers.clone();
        if self.have > 0 {
            headers.push(("range", format!("bytes={}-", self.have)));
            headers.extend(validator.map(|validator| ("if-range", validator.to_owned())));
        }
        watch.step(Phase::Asking, &self.wanted.what, self.have, self.wanted.size)?;
        let response = self.client.get(&self.wanted.url, &headers)?;
        let status = response.status().as_u16();
        let total = match status {
            200 => {
                // Another file than before, or a server that cannot do parts.
                self.restart()?;
                length(&response)
            }
            206 if self.have > 0 => match content_range(&response) {
                Some((start, total)) if start == self.have => {
                    total.or_else(|| length(&response).map(|rest| start.saturating_add(rest)))
                }
                _ => return self.anew(watch),
            },
            416 if self.have > 0 => {
                // Nothing is left to be had: all of it is here, or it is another file by now.
                if header(&response, "content-range") == Some(&format!("bytes */{}", self.have)) {
                    return Ok(());
                }
                return self.anew(watch);
            }
            _ => return Err(SourceError::Status { url: shown(&self.wanted.url), status }),
        };
        self.promised(total)?;
        if let Some(total) = total {
            self.cache.check_room(&self.wanted.what, total.saturating_sub(self.have))?;
        }
        let validator = validator_of(&response).or_else(|| {
            // A part's answer need not repeat it.
            (status == 206).then(|| validator.map(str::to_owned)).flatten()
        });
        self.write_note(validator.clone())?;
        self.take(response.into_body(), total, validator.as_ref(), watch)
    }

    fn anew(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        self.restart()?;
        self.attempt(None, watch)
    }

    /// Whether the length that a server names can be.
    fn promised(&self, total: Option<u64>) -> Result<()> {
        let limit = self.wanted.size.unwrap_or(LONGEST);
        match (total, self.wanted.size) {
            (Some(found), Some(expected)) if found != expected => {
                Err(SourceError::WrongSize { what: self.wanted.what.clone(), expected, found })
            }
            (Some(total), None) if total > limit => {
                Err(SourceError::TooLarge { what: self.wanted.what.clone(), limit })
            }
            _ => Ok(()),
        }
    }

    /// Writes what comes.
    fn take(
        &mut self,
        body: Body,
        total: Option<u64>,
        validator: Option<&String>,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        let limit = total.or(self.wanted.size).unwrap_or(LONGEST);
        let mut body = body.into_reader();
        let mut buffer = vec![0; CHUNK];
        let mut flushed = self.have;
        let ended = loop {
            if let Err(stop) = watch.step(Phase::Downloading, &self.wanted.what, self.have, total) {
                self.flush(validator)?;
                return Err(stop);
            }
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) if self.have + n as u64 > limit => {
                    self.remove();
                    return Err(SourceError::TooLarge { what: self.wanted.what.clone(), limit });
                }
                Ok(n) => self.write(&buffer[..n])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
            if self.wanted.digest.is_none() && self.have - flushed >= FLUSH {
                self.flush(validator)?;
                flushed = self.have;
            }
        };
        let whole = ended.is_none() && total.is_none_or(|total| total == self.have);
        if whole && !self.client.is_cancelled() {
            return Ok(());
        }
        self.flush(validator)?;
        if self.client.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let reason = ended.map_or_else(|| "the server ended the connection".into(), |error| reason(&error));
        Err(SourceError::Cut { url: shown(&self.wanted.url), have: self.have, total, reason })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let place = self.file.seek(SeekFrom::Start(self.have)).map(drop);
        let written = place.and_then(|()| self.file.write_all(bytes));
        written.map_err(|error| self.cache.write_failed(&self.wanted.what, &self.path, error))?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// All of it is here: is it what it should be?
    fn check(&self) -> Result<Digest> {
        let what = || self.wanted.what.clone();
        if let Some(expected) = self.wanted.size.filter(|&size| size != self.have) {
            return Err(SourceError::WrongSize { what: what(), expected, found: self.have });
        }
        let found = Digest::of(self.hash.clone());
        match self.wanted.digest {
            Some(expected) if expected != found => {
                Err(SourceError::WrongDigest { what: what(), expected, found, removed: true })
            }
            _ => Ok(found),
        }
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.note);
    }

    fn flush(&self, validator: Option<&String>) -> Result<()> {
        let synced = self.file.sync_data();
        synced.map_err(|error| self.cache.write_failed(&self.wanted.what, &self.path, error))?;
        self.write_note(validator.cloned())
    }

    fn read_note(&self) -> Option<Note> {
        let mut text = Vec::new();
        File::open(&self.note).ok()?.take(64 << 10).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write_note(&self, validator: Option<String>) -> Result<()> {
        let (url, digest, flushed) = (self.wanted.url.clone(), self.wanted.digest, self.have);
        let note = Note { version: VERSION, url, validator, digest, flushed };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        // Never half a note: one that is not whole could not be read, and the download would start anew.
        let new = self.note.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.note))
            .map_err(|error| self.cache.write_failed(&self.wanted.what, &self.note, error))
    }
}

/// What tells whether a file is still the same (RFC 9110, sections 8.8 and 13.1.5: a weak `ETag` does not).
fn validator_of(response: &Response<Body>) -> Option<String> {
    let strong = |tag: &&str| tag.starts_with('"') && tag.ends_with('"') && tag.len() >= 2;
    let tag = header(response, "etag").filter(strong);
    tag.or_else(|| header(response, "last-modified")).filter(|text| text.len() < 1024).map(str::to_owned)
}

fn length(response: &Response<Body>) -> Option<u64> {
    response.body().content_length()
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4): where the part starts, and how long the whole is.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(response, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

/// What a file is called at the end of an address.
pub(super) fn last_part(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}
