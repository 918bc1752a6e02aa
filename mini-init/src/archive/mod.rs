//! Reading tar archives as they stream by.
//!
//! An archive is a row of 512-byte blocks: for each entry a header ([`header`]), perhaps preceded by extended headers
//! ([`pax`]) or GNU's long names that say more about it, then its content, padded to a block. Files with holes have a map
//! of where their content belongs ([`sparse`]). Two blocks of zeros are the end.
//!
//! Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar manual, "Basic Tar Format",
//! "GNU Extensions to the Archive Format", "Storing Sparse Files". Every number in an archive is a claim: lengths are read
//! piece by piece, and nothing is allocated by one.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Read};

pub(crate) use header::Kind;
use header::{BLOCK, Header};
use pax::Extended;

/// The longest extended header or long name that is taken, in bytes: attributes of 64 KiB each and a path are far less.
const LONGEST_EXTENDED: u64 = 4 << 20;

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The first block is not a header.
    #[error("expected a tar archive, and its first 512 bytes are no tar header{hint}")]
    NotTar {
        /// What it is instead, if that can be told.
        hint: &'static str,
    },
    /// The end came before the end marker.
    #[error("the archive is cut off at byte {offset}, after {entry}: its end marker is missing")]
    CutOff {
        /// Bytes from the archive's start.
        offset: u64,
        /// The last entry, in people's words.
        entry: String,
    },
    /// Something in the middle is not as it must be.
    #[error("the archive is damaged at byte {offset}, after {entry}: {reason}")]
    Damaged {
        /// Bytes from the archive's start.
        offset: u64,
        /// The last entry, in people's words.
        entry: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Reading the stream failed.
    #[error("the archive could not be read after {offset} bytes: {source}")]
    Read {
        /// Bytes from the archive's start.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// What an archive says about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) name: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits, set-id bits and sticky bit.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification: seconds, which may be before 1970, and nanoseconds.
    pub(crate) modified: (i64, u32),
    /// Where a link points, or the name of the entry that a hard link is another name of.
    pub(crate) target: Vec<u8>,
    /// Bytes of the file, holes among them.
    pub(crate) size: u64,
    /// A device's numbers.
    pub(crate) device: (u32, u32),
    /// Extended attributes.
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists as text, and whether each is a directory's default.
    pub(crate) lists: Vec<(bool, Vec<u8>)>,
    /// Where the content belongs, as offset and length, if there are holes.
    pub(crate) map: Option<Vec<(u64, u64)>>,
}

/// An archive, and how far it has been read.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    stream: R,
    offset: u64,
    /// Bytes of the entry's content that are still to be read, and of padding behind them.
    content: u64,
    padding: u64,
    global: Extended,
    entry: String,
    entries: u64,
}

impl<R: Read> Archive<R> {
    /// Starts at the archive's first byte.
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            offset: 0,
            content: 0,
            padding: 0,
            global: Extended::default(),
            entry: "its beginning".into(),
            entries: 0,
        }
    }

    /// Bytes read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, or `None` at the end marker. What was not read of the last entry's content is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.pass_over()?;
        let mut extended = Extended::default();
        let (mut long_name, mut long_target) = (None, None);
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind {
                Kind::Extended => {
                    extended.read(&self.small_content(header.size)?).map_err(|r| self.damaged(r))?
                }
                Kind::Global => {
                    let records = self.small_content(header.size)?;
                    let mut global = std::mem::take(&mut self.global);
                    let read = global.read(&records);
                    self.global = global;
                    read.map_err(|reason| self.damaged(reason))?;
                }
                Kind::LongName => long_name = Some(self.long_string(header.size)?),
                Kind::LongTarget => long_target = Some(self.long_string(header.size)?),
                _ => return self.entry(header, extended, long_name, long_target).map(Some),
            }
        }
    }

    /// Puts together what a header and those before it say.
    fn entry(
        &mut self,
        header: Header,
        own: Extended,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry, ArchiveError> {
        let mut extended = self.global.clone();
        extended.add(own);
        let mut entry = Entry {
            name: extended.path.or(long_name).unwrap_or(header.name),
            kind: header.kind,
            mode: header.mode & 0o7777,
            uid: extended.uid.unwrap_or(header.uid),
            gid: extended.gid.unwrap_or(header.gid),
            modified: extended.modified.unwrap_or((header.modified, 0)),
            target: extended.target.or(long_target).unwrap_or(header.target),
            size: 0,
            device: header.device,
            attributes: extended.attributes,
            lists: extended.lists,
            map: None,
        };
        self.entries += 1;
        self.entry = format!("entry {} ({})", self.entries, printable(&entry.name));
        let stored = if header.kind.has_content() { extended.size.unwrap_or(header.size) } else { 0 };
        if stored > i64::MAX as u64 {
            return Err(self.damaged(format!("a size of {stored} bytes is larger than any file")));
        }
        self.content = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        entry.size = stored;
        if let Some(name) = extended.sparse.name.clone() {
            entry.name = name;
        }
        if header.kind == Kind::GnuSparse {
            entry.kind = Kind::File;
            self.gnu_map(header.pieces, header.more_pieces, header.real_size, &mut entry)?;
        } else if header.kind == Kind::File && extended.sparse.is_any() {
            self.pax_map(&extended.sparse, &mut entry)?;
        } else if header.kind == Kind::File && entry.name.ends_with(b"/") {
            // Archives older than POSIX say it so.
            entry.kind = Kind::Directory;
        }
        Ok(entry)
    }

    /// A header block; `None` at the end marker.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let block = match self.block()? {
            // Two blocks of zeros are the end; one, and nothing behind it, is how old tools end an archive.
            Some(block) if is_zero(&block) => match self.block()? {
                None => return Ok(None),
                Some(block) if is_zero(&block) => return Ok(None),
                Some(block) => block,
            },
            Some(block) => block,
            None => return Err(self.cut_off()),
        };
        match Header::parse(&block) {
            Ok(header) => Ok(Some(header)),
            Err(_) if self.offset == BLOCK as u64 && !header::is_header(&block) => {
                Err(ArchiveError::NotTar { hint: header::hint(&block) })
            }
            Err(reason) => {
                self.offset -= BLOCK as u64;
                Err(self.damaged(reason.into()))
            }
        }
    }

    /// A whole block; `None` if the stream ends before its first byte.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.stream.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) if self.offset == 0 => return Err(ArchiveError::NotTar { hint: header::hint(&block) }),
                Ok(0) => return Err(self.cut_off()),
                Ok(length) => {
                    have += length;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    /// Reads from the content of the entry at hand; nothing at its end.
    pub(crate) fn content(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = self.content.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.read(wanted, buffer)?;
        self.content -= length as u64;
        Ok(length)
    }

    fn read(&mut self, wanted: usize, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.stream.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(self.cut_off()),
                Ok(length) => {
                    self.offset += length as u64;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
    }

    /// Goes to the next header.
    fn pass_over(&mut self) -> Result<(), ArchiveError> {
        let mut rest = [0; 8192];
        while self.content(&mut rest)? > 0 {}
        while self.padding > 0 {
            self.padding -= self.read(self.padding as usize, &mut rest)? as u64;
        }
        Ok(())
    }

    /// The whole content of an extended header.
    fn small_content(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > LONGEST_EXTENDED {
            return Err(
                self.damaged(format!("an extended header of {size} bytes is longer than {LONGEST_EXTENDED}"))
            );
        }
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        let mut whole = Vec::new();
        let mut part = [0; 4096];
        loop {
            match self.content(&mut part)? {
                0 => break,
                length => whole.extend_from_slice(&part[..length]),
            }
        }
        self.pass_over()?;
        Ok(whole)
    }

    /// GNU's long names end with a zero byte.
    fn long_string(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut string = self.small_content(size)?;
        if let Some(end) = string.iter().position(|b| *b == 0) {
            string.truncate(end);
        }
        Ok(string)
    }

    fn cut_off(&self) -> ArchiveError {
        ArchiveError::CutOff { offset: self.offset, entry: self.entry.clone() }
    }

    fn damaged(&self, reason: String) -> ArchiveError {
        ArchiveError::Damaged { offset: self.offset, entry: self.entry.clone(), reason }
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// A name from an archive as people may see it on a terminal.
pub(crate) fn printable(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(200).collect();
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
