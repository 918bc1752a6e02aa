//! Taking a distribution's root file system out of the VM.
//!
//! mini-init mounts the root, packs it, and streams a tar archive; here it is followed as an import is ([`TarWalk`]), since
//! what a guest sends is a claim, then compressed and written. Only mini-init's reply says that it was all. A file that is
//! to have its name only when it is whole is a [`NewFile`]; a disk with all of the files on it is an [`image`].

mod image;
mod new_file;
mod sink;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use undercroft_protocol::{
    Token,
    command::{Command, Done, Export, Exported, Root},
};

use crate::{
    board::Board,
    door::Expected,
    error::{Error, Result},
    guest::{Guest, Pending, wrong},
    import::ArchiveError,
    tar_walk::{TarError, TarWalk},
};
pub(crate) use image::{Image, image};
pub use new_file::NewFile;
use sink::Sink;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);
const WHAT: &str = "export the root file system";

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952, level 6.
    Gzip,
    /// The .xz file format, level 6.
    Xz,
    /// RFC 8878, level 3.
    Zstd,
}

impl Compression {
    /// What a file's name asks for: `.tar.gz` or `.tgz`, `.tar.xz` or `.txz`, `.tar.zst` or `.tzst`; else nothing.
    pub fn of_name(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_ascii_lowercase();
        let ends = |ends: [&str; 2]| ends.iter().any(|end| name.ends_with(end.as_bytes()));
        match () {
            () if ends([".gz", ".tgz"]) => Self::Gzip,
            () if ends([".xz", ".txz"]) => Self::Xz,
            () if ends([".zst", ".tzst"]) => Self::Zstd,
            () => Self::None,
        }
    }
}

/// Where an archive is to be written to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// A file or a pipe, opened for writing. It is written to from its place on.
    pub file: &'a File,
    /// What people call it.
    pub name: &'a Path,
    /// How it is compressed.
    pub compression: Compression,
}

/// How far an export is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exporting {
    /// Archive entries that the guest has packed; 0 for what is copied.
    pub entries: u64,
    /// Bytes of archive, or of disk, that have been read.
    pub read: u64,
    /// About how many there will be; it may be some more or less. 0 while nobody knows.
    pub about: u64,
    /// Bytes that have been written.
    pub written: u64,
}

/// Who is told about progress, and may end it.
type Tell<'a> = dyn FnMut(Exporting) -> Result<()> + 'a;

/// Tells about progress now and then; shared by who reads and who writes.
struct Teller<'a> {
    tell: &'a mut Tell<'a>,
    so_far: Exporting,
    told: Option<Instant>,
    /// The error that ended it.
    stopped: Option<Error>,
}

impl Teller<'_> {
    /// Tells if it is time to. False if it is to end.
    fn go_on(&mut self) -> bool {
        if self.stopped.is_none() && self.told.is_none_or(|at| at.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            self.stopped = (self.tell)(self.so_far).err();
        }
        self.stopped.is_none()
    }
}

/// Keeps a place for what is told of one export.
struct Told<'a> {
    board: &'a Board,
    token: Token,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.board.lock().exports.remove(&self.token);
    }
}

/// Exports to a file. The disks are the guest's no more when this returns, whatever came of it.
pub(crate) fn export(guest: &Guest, root: &Root, to: &Target<'_>, tell: &mut Tell<'_>) -> Result<Exported> {
    let board = &guest.board;
    let expected = Expected::new(board)?;
    let token = expected.token();
    board.update(|state| state.exports.insert(token, (0, 0)));
    let told = Told { board, token };
    let pending = guest.send(Command::Export(Export { root: root.clone(), archive: token }))?;
    // mini-init may refuse the disks before it opens the stream; of a small archive it may say that it is done before the
    // stream has come in.
    let stream: UnixStream = board.wait("mini-init's archive", Some(guest.limit(60)), |state| {
        expected.take(state).map(Ok).or_else(|| pending.refusal(WHAT, state).map(Err))
    })?;
    let teller = RefCell::new(Teller { tell, so_far: Exporting::default(), told: None, stopped: None });
    let copied = copy(&told, &stream, to, &teller);
    let mut teller = teller.into_inner();
    if copied.is_err() {
        // It may be gone already.
        let _ = stream.shutdown(Shutdown::Both);
    }
    drop(stream);
    let outcome = finish(guest, &pending, &mut teller, copied.is_ok());
    match (copied, outcome) {
        (_, Err(ended @ Error::Ended(_))) => Err(ended),
        (Err(Ended::Here(error)), _) => Err(error),
        // mini-init knows why its archive is none.
        (_, Err(error)) => Err(error),
        (Err(Ended::Claim(error)), Ok(_)) => Err(error.into()),
        (Ok(()), Ok(exported)) => {
            // Once more, for who waits for the end of it.
            (teller.tell)(teller.so_far)?;
            Ok(exported)
        }
    }
}

/// Waits for what mini-init says. It unmounts first, so this waits even if nobody wants the archive any more.
fn finish(guest: &Guest, pending: &Pending, teller: &mut Teller<'_>, whole: bool) -> Result<Exported> {
    let deadline = Instant::now() + guest.limit(60);
    loop {
        let done = match guest.board.wait(WHAT, Some(TELL), |state| pending.look(WHAT, state)) {
            Err(Error::Timeout { .. }) if Instant::now() < deadline => {
                if whole {
                    teller.go_on();
                }
                continue;
            }
            other => other?,
        };
        return match done {
            Done::Exported(exported) => teller.stopped.take().map_or(Ok(exported), Err),
            other => Err(wrong(WHAT, &other)),
        };
    }
}

/// Why an archive was not copied to its end.
enum Ended {
    /// The file, or who is told.
    Here(Error),
    /// What the guest sent.
    Claim(ArchiveError),
}

fn copy(
    told: &Told<'_>,
    mut stream: &UnixStream,
    to: &Target<'_>,
    teller: &RefCell<Teller<'_>>,
) -> std::result::Result<(), Ended> {
    let name = || Path::new("the archive from the virtual machine").to_owned();
    let claim = |offset: u64, error| {
        Ended::Claim(match error {
            TarError::CutOff { entry } => ArchiveError::CutOff { path: name(), at: offset, entry },
            TarError::Damaged { offset, message } => {
                ArchiveError::Damaged { path: name(), at: offset, message }
            }
        })
    };
    let written = |error: io::Error| {
        let stopped = teller.borrow_mut().stopped.take();
        Ended::Here(stopped.unwrap_or_else(|| sink::explain(to, error)))
    };
    let mut sink = Sink::new(to, teller).map_err(written)?;
    stream
        .set_read_timeout(Some(TELL))
        .map_err(|source| Ended::Here(Error::System { what: "read from the virtual machine", source }))?;
    let mut walk = TarWalk::default();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => 0,
                _ => return Err(Ended::Claim(ArchiveError::Read { path: name(), source: error })),
            },
        };
        let wanted = walk.feed(&buffer[..length]).map_err(|error| claim(offset, error))?;
        sink.write_all(&buffer[..wanted]).map_err(written)?;
        offset += length as u64;
        let (entries, about) = told.board.lock().exports.get(&told.token).copied().unwrap_or_default();
        let mut teller = teller.borrow_mut();
        teller.so_far = Exporting { entries, read: offset, about, ..teller.so_far };
        if !teller.go_on() {
            drop(teller);
            return Err(written(io::ErrorKind::Other.into()));
        }
    }
    walk.end().map_err(|error| claim(offset, error))?;
    sink.finish().map_err(written)
}
