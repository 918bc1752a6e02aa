//! What a file is, whatever it is called: its SHA-256, and a memory that spares reading it again.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Bytes hashed at a time.
const CHUNK: usize = 1 << 20;
/// A file that changed this recently may change again without its times telling: file systems' clocks tick slowly.
const SETTLED: Duration = Duration::from_secs(2);

/// A SHA-256 (FIPS 180-4). Displays as 64 lower-case hexadecimal digits, and is read from just those.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a SHA-256, 64 lower-case hexadecimal digits")]
pub struct NoDigest;

impl Digest {
    /// What was hashed.
    pub(crate) fn of(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// Its first digits: enough to tell one from another in a name.
    pub fn short(&self) -> String {
        self.to_string()[..12].into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> std::result::Result<Self, NoDigest> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(NoDigest);
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or(NoDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> std::result::Result<Self, NoDigest> {
        text.parse()
    }
}

/// What of a file changes when its content does (stat(2)): device, inode, length, and the times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(about: &Metadata) -> Self {
        Self {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }

    fn key(&self) -> String {
        let Self { device, inode, length, modified, changed } = self;
        format!("{device}-{inode}-{length}-{}.{}-{}.{}", modified.0, modified.1, changed.0, changed.1)
    }

    /// Whether a later change would show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = u64::try_from(self.changed.0.max(self.modified.0)).unwrap_or(0);
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(last).is_ok_and(|age| age > SETTLED)
    }
}

/// A file and its digest.
#[derive(Debug, Clone)]
pub struct KnownFile {
    path: PathBuf,
    digest: Digest,
    identity: Identity,
}

impl KnownFile {
    /// Reads the whole file, unless `memory` (a folder, made if need be) still knows it. `progress` is told how many bytes
    /// were read, and of how many.
    pub fn read(path: &Path, memory: Option<&Path>, progress: impl FnMut(u64, u64)) -> Result<Self> {
        Self::read_at(SystemTime::now(), path, memory, progress)
    }

    fn read_at(
        now: SystemTime,
        path: &Path,
        memory: Option<&Path>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        let failed = |source| Error::File { what: "read", path: path.into(), source };
        let mut file = File::open(path).map_err(failed)?;
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        let known = |digest| Self { path: path.into(), digest, identity: identity.clone() };
        let remembered = memory.map(|memory| memory.join(identity.key()));
        let recalled = remembered.as_deref().and_then(|path| recall(path).ok().flatten());
        if let Some(digest) = recalled {
            return Ok(known(digest));
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut read = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hash.update(&buffer[..n]);
                    read += n as u64;
                    progress(read, identity.length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let known = known(Digest::of(hash));
        known.check()?;
        if let (Some(path), Some(memory)) = (remembered, memory)
            && identity.is_settled(now)
        {
            // It is only remembered for speed.
            let _ = fs::create_dir_all(memory).and_then(|()| fs::write(path, known.digest.to_string()));
        }
        Ok(known)
    }

    /// A file whose digest somebody has found out just now.
    pub fn told(path: &Path, digest: Digest) -> Result<Self> {
        let about =
            fs::metadata(path).map_err(|source| Error::File { what: "read", path: path.into(), source })?;
        Ok(Self { path: path.into(), digest, identity: Identity::of(&about) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether it is what it was when it was read.
    pub(crate) fn check(&self) -> Result<()> {
        let path = || self.path.clone();
        let about =
            fs::metadata(&self.path).map_err(|source| Error::File { what: "read", path: path(), source })?;
        if Identity::of(&about) == self.identity { Ok(()) } else { Err(Error::Changed { path: path() }) }
    }
}

/// What a memory says, which anybody may have written.
fn recall(path: &Path) -> io::Result<Option<Digest>> {
    let mut text = String::new();
    File::open(path)?.take(65).read_to_string(&mut text)?;
    Ok(text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let mut told = Vec::new();
        let known = KnownFile::read(&path, None, |read, total| told.push((read, total))).unwrap();
        assert_eq!(known.digest().to_string(), ABC);
        assert_eq!(told, [(3, 3)]);
        assert_eq!(ABC.parse(), Ok(known.digest()));
        for bad in ["", "ba78", &ABC.to_uppercase(), &format!("{ABC}0"), &ABC.replace('b', "x")] {
            assert_eq!(bad.parse::<Digest>(), Err(NoDigest), "{bad}");
        }
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, memory) = (folder.path().join("abc"), folder.path().join("memory"));
        let fresh = SystemTime::UNIX_EPOCH;
        let settled = SystemTime::now() + 10 * SETTLED;
        let read = |now| {
            let mut bytes = 0;
            let known = KnownFile::read_at(now, &path, Some(&memory), |read, _| bytes = read).unwrap();
            (known.digest().to_string(), bytes)
        };
        fs::write(&path, "abc").unwrap();
        assert_eq!(read(fresh), (ABC.into(), 3));
        assert_eq!(read(settled), (ABC.into(), 3), "it was too fresh to be remembered");
        assert_eq!(read(settled), (ABC.into(), 0));
        let remembered = fs::read_dir(&memory).unwrap().next().unwrap().unwrap().path();
        fs::write(remembered, "nonsense").unwrap();
        assert_eq!(read(settled), (ABC.into(), 3), "a memory is a claim");
        fs::write(&path, "abd").unwrap();
        assert_ne!(read(settled).0, ABC);
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let known = KnownFile::read(&path, None, |_, _| ()).unwrap();
        known.check().unwrap();
        fs::write(&path, "abcd").unwrap();
        assert!(matches!(known.check(), Err(Error::Changed { .. })));
    }
}
