//! Bringing a root file system's archive into the VM.
//!
//! The archive is a tar file, plain or compressed; which of them is decided by its first bytes, never by its name. It
//! is decompressed here and unpacked in the VM, by mini-init, which has the rights that owners, device nodes and
//! capabilities want. On the way its headers are followed, so that a file that is no archive, or was cut off, is told
//! with the place where that shows.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use undercroft_protocol::command::{Command, DiskAddress, Done, Import, Imported};

use crate::{
    digest::Digest,
    door::Expected,
    error::{Error, Result},
    guest::{Guest, wrong},
    tar_walk::{TarError, TarWalk},
};

/// Bytes decompressed at a time.
const CHUNK: usize = 256 << 10;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);

/// Why an archive cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It has no bytes.
    #[error("{} is empty: expected a tar archive of a root file system", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// It is something else.
    #[error(
        "{} is not a tar archive ({format}): expected a root file system as `docker export` or mmdebstrap write it, \
         plain or compressed with gzip, xz, zstd or bzip2",
        path.display()
    )]
    NotTar {
        /// Which.
        path: PathBuf,
        /// What its first bytes say.
        format: Format,
    },
    /// It ends too early.
    #[error(
        "{} was cut off: it ends at byte {at}, in the middle of {}; get it again",
        path.display(), if entry.is_empty() { "its headers" } else { entry }
    )]
    CutOff {
        /// Which.
        path: PathBuf,
        /// The offset in the file as it is, in bytes.
        at: u64,
        /// The archive entry that is not whole.
        entry: String,
    },
    /// It is damaged.
    #[error("{} is damaged near byte {at}: {message}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The offset in the file as it is, in bytes.
        at: u64,
        /// What does not fit.
        message: String,
    },
}

/// How a file is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "not compressed",
            Self::Gzip => "compressed with gzip",
            Self::Xz => "compressed with xz",
            Self::Zstd => "compressed with zstd",
            Self::Bzip2 => "compressed with bzip2",
        })
    }
}

impl Format {
    /// What a file begins like.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A frame, or a skippable one in front of it (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// What reads the content of something that is compressed so.
    pub(crate) fn decoder<'a>(
        self,
        bytes: impl BufRead + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(bytes),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(bytes)),
            Self::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(bytes)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(bytes)),
        })
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the archive file read.
    pub read: u64,
    /// Its length in bytes; `None` for what comes through a pipe.
    pub total: Option<u64>,
    /// Archive entries that the guest has unpacked.
    pub entries: u64,
}

/// An archive whose beginning was looked at.
pub struct Archive {
    path: PathBuf,
    total: Option<u64>,
    incoming: Arc<Mutex<Incoming>>,
    format: Format,
    content: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("path", &self.path)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Archive {
    /// Opens an archive, and looks whether it begins like one.
    pub fn open(path: &Path) -> std::result::Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if about.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Self::begin(path, Box::new(file), Some(about.len()), None)
    }

    /// Takes an archive that comes through a pipe and can be read only once: it is hashed on the way. `name` is for people.
    pub fn stream(name: &Path, bytes: Box<dyn Read + Send>) -> std::result::Result<Self, ArchiveError> {
        Self::begin(name, bytes, None, Some(Sha256::new()))
    }

    fn begin(
        path: &Path,
        bytes: Box<dyn Read + Send>,
        total: Option<u64>,
        hash: Option<Sha256>,
    ) -> std::result::Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Read { path: path.into(), source };
        let incoming = Arc::new(Mutex::new(Incoming { bytes, count: 0, ended: false, hash }));
        let mut first = Vec::new();
        Shared(incoming.clone()).take(16).read_to_end(&mut first).map_err(failed)?;
        if first.is_empty() {
            return Err(ArchiveError::Empty { path: path.into() });
        }
        let format = Format::of(&first);
        let whole = io::Cursor::new(first).chain(Shared(incoming.clone()));
        let whole = BufReader::with_capacity(CHUNK, whole);
        let content = format.decoder(whole).map_err(failed)?;
        let mut archive = Self { path: path.into(), total, incoming, format, content };
        let mut block = [0; 512];
        let have = archive.fill(&mut block)?;
        let not_tar = || ArchiveError::NotTar { path: path.into(), format };
        if have < block.len() {
            // Text that is shorter than a header is no archive that was cut off; compressed data may be one.
            return Err(match format {
                Format::Plain => not_tar(),
                _ => archive.cut_off(String::new()),
            });
        }
        if block.iter().any(|&b| b != 0) && crate::tar_walk::is_header(&block).is_none() {
            return Err(not_tar());
        }
        let rest = std::mem::replace(&mut archive.content, Box::new(io::empty()));
        archive.content = Box::new(io::Cursor::new(block).chain(rest));
        Ok(archive)
    }

    /// Bytes of a disk that has room for what it holds: twice its content and a gigabyte, where the content of something
    /// compressed is taken to be eight times as long; the default for a stream, whose length nobody knows. Every 128 MiB of
    /// a disk cost each mount of it, so that a base is made no larger than it may have to be.
    pub fn room(&self) -> u64 {
        const UNIT: u64 = 1 << 30;
        let Some(length) = self.total else { return crate::disk::DEFAULT_SIZE };
        let factor = if self.format == Format::Plain { 2 } else { 16 };
        length.saturating_mul(factor).div_ceil(UNIT).saturating_add(1).min(1 << 14) * UNIT
    }

    /// The content of a regular file in it (`etc/passwd`), if there is such a file and it is no longer than a megabyte. The
    /// archive is read up to it, or whole.
    pub fn file(mut self, path: &'static str) -> std::result::Result<Option<Vec<u8>>, ArchiveError> {
        let mut walk = TarWalk::seeking(path);
        let mut buffer = vec![0; CHUNK];
        loop {
            let have = self.fill(&mut buffer)?;
            for block in buffer[..have].chunks(512) {
                let used = walk.feed(block).map_err(|error| self.structure(error))?;
                if let Some(found) = walk.found() {
                    return Ok(Some(found));
                }
                if used < block.len() {
                    return Ok(None);
                }
            }
            if have < buffer.len() {
                return Ok(None);
            }
        }
    }

    /// Its bytes, decompressed.
    pub(crate) fn into_content(self) -> impl Read {
        self.content
    }

    /// How it is compressed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of the file that were read so far.
    fn at(&self) -> u64 {
        lock(&self.incoming).count
    }

    /// What tells the digest of a [`stream`](Self::stream) once it has been imported.
    pub(crate) fn tail(&self) -> Tail {
        Tail { path: self.path.clone(), incoming: self.incoming.clone() }
    }

    fn cut_off(&self, entry: String) -> ArchiveError {
        ArchiveError::CutOff { path: self.path.clone(), at: self.total.unwrap_or_else(|| self.at()), entry }
    }

    /// Reads until the buffer is full or the archive ends.
    fn fill(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, ArchiveError> {
        let mut have = 0;
        while have < buffer.len() {
            match self.content.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.explain(e)),
            }
        }
        Ok(have)
    }

    fn explain(&self, error: io::Error) -> ArchiveError {
        let path = self.path.clone();
        // A decompressor that fails once the whole file was read wanted more of it.
        let all_read = lock(&self.incoming).ended || self.total.is_some_and(|total| self.at() >= total);
        match (self.format, error.kind()) {
            (Format::Plain, _) => ArchiveError::Read { path, source: error },
            (_, io::ErrorKind::UnexpectedEof) => self.cut_off(String::new()),
            (_, io::ErrorKind::Other) if all_read => self.cut_off(String::new()),
            _ => ArchiveError::Damaged { path, at: self.at(), message: error.to_string() },
        }
    }

    /// Copies the archive, checking its structure on the way. `step` is called after each piece, and may stop it.
    fn copy(
        &mut self,
        to: &mut impl Write,
        mut step: impl FnMut(u64),
    ) -> std::result::Result<Copied, ArchiveError> {
        let mut walk = TarWalk::default();
        let mut buffer = vec![0; CHUNK];
        let mut outcome = Copied::All;
        loop {
            let have = self.fill(&mut buffer).map_err(|error| match error {
                ArchiveError::CutOff { .. } => self.cut_off(walk.entry()),
                other => other,
            })?;
            step(self.at());
            let wanted = walk.feed(&buffer[..have]).map_err(|error| self.structure(error))?;
            if outcome == Copied::All && to.write_all(&buffer[..wanted]).is_err() {
                // The guest has stopped reading: it says why. What it complains of may be what shows below.
                outcome = Copied::Refused;
            }
            if have < buffer.len() {
                break;
            }
        }
        walk.end().map_err(|error| self.structure(error))?;
        Ok(outcome)
    }

    fn structure(&self, error: TarError) -> ArchiveError {
        let path = self.path.clone();
        match error {
            TarError::CutOff { entry, .. } => self.cut_off(entry),
            TarError::Damaged { offset, message } => {
                // In a compressed file the reader's place is as near as one gets.
                let at = if self.format == Format::Plain { offset } else { self.at() };
                ArchiveError::Damaged { path, at, message }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    All,
    Refused,
}

/// The bytes of an archive as they are read, which the decompressor owns, and others look at.
struct Incoming {
    bytes: Box<dyn Read + Send>,
    count: u64,
    ended: bool,
    hash: Option<Sha256>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(buffer)?;
        self.count += n as u64;
        self.ended |= n == 0 && !buffer.is_empty();
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..n]);
        }
        Ok(n)
    }
}

struct Shared(Arc<Mutex<Incoming>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        lock(&self.0).read(buffer)
    }
}

fn lock(incoming: &Mutex<Incoming>) -> MutexGuard<'_, Incoming> {
    incoming.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left of a stream when its archive has ended.
pub(crate) struct Tail {
    path: PathBuf,
    incoming: Arc<Mutex<Incoming>>,
}

impl Tail {
    /// Reads the stream to its end; `None` if it was not hashed.
    pub(crate) fn digest(self) -> std::result::Result<Option<Digest>, ArchiveError> {
        let mut incoming = lock(&self.incoming);
        io::copy(&mut *incoming, &mut io::sink())
            .map_err(|source| ArchiveError::Read { path: self.path.clone(), source })?;
        Ok(incoming.hash.take().map(Digest::of))
    }
}

pub(crate) fn import(
    guest: &Guest,
    disk: DiskAddress,
    mut archive: Archive,
    mut progress: impl FnMut(Progress),
) -> Result<Imported> {
    let board = &guest.board;
    board.update(|state| state.import = (0, 0));
    let expected = Expected::new(board)?;
    let pending = guest.send(Command::Import(Import { disk, archive: expected.token() }))?;
    // mini-init may refuse the disk before it asks for the archive.
    let stream = board.wait("mini-init's request for the archive", Some(guest.limit(30)), |state| {
        match pending.look("import the archive", state) {
            Some(Ok(done)) => Some(Err(wrong("import the archive", &done))),
            Some(Err(error)) => Some(Err(error)),
            None => expected.take(state).map(Ok),
        }
    });
    let mut stream: UnixStream = stream?;
    let total = archive.total;
    let mut told: Option<Instant> = None;
    let mut tell = |read: u64, force: bool| {
        if force || told.is_none_or(|at| at.elapsed() >= TELL) {
            told = Some(Instant::now());
            progress(Progress { read, total, entries: board.lock().import.0 });
        }
    };
    let copied = archive.copy(&mut stream, |read| tell(read, false));
    let closed = match copied {
        Ok(Copied::All) => stream.shutdown(Shutdown::Write),
        // A broken archive must not look like a whole one that ends here.
        Ok(Copied::Refused) | Err(_) => stream.shutdown(Shutdown::Both),
    };
    if let Err(error) = closed {
        // The guest hung up first: its answer says why.
        debug_assert_ne!(error.kind(), io::ErrorKind::InvalidInput);
    }
    // Unpacking goes on while the last megabytes are on their way and the disk is flushed: no limit but the machine's.
    let outcome = loop {
        match board.wait("the import", Some(TELL), |state| pending.look("import the archive", state)) {
            Err(Error::Timeout { .. }) => tell(archive.at(), true),
            other => break other,
        }
    };
    tell(archive.at(), true);
    match (copied, outcome) {
        (_, Err(ended @ Error::Ended(_))) => Err(ended),
        (Err(archive), _) => Err(archive.into()),
        (Ok(_), Ok(Done::Imported(imported))) => Ok(imported),
        (Ok(_), Ok(other)) => Err(wrong("import the archive", &other)),
        (Ok(_), Err(error)) => Err(error),
    }
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
