//! The entries of a layer's tar, by their places in the file.
//!
//! Merging layers moves entries about and changes few of them, so what matters of one is where its header and its content
//! lie. Formats as in [`tar_walk`](crate::tar_walk), with GNU's long names and the records of extended headers that name
//! things.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::tar_walk::{is_header, number};

pub(super) const BLOCK: u64 = 512;
/// The longest extended header, in bytes; the same that the guest takes.
const LONGEST_EXTENDED: u64 = 4 << 20;

/// Some bytes of a file: a whole one, or an entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub(crate) file: Arc<File>,
    /// Of the file, for people.
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Region {
    pub(crate) fn whole(file: File, path: &Path) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), path: path.into(), offset: 0, length })
    }

    /// A part of it, if it is one.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Option<Self> {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.length);
        fits.then(|| Self { offset: self.offset + offset, length, ..self.clone() })
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + offset)
    }

    pub(crate) fn reader(&self) -> RegionReader {
        RegionReader { region: self.clone(), at: 0 }
    }
}

/// Reads a region from its beginning.
#[derive(Debug)]
pub(crate) struct RegionReader {
    region: Region,
    at: u64,
}

impl RegionReader {
    /// Goes on further behind.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes).min(self.region.length);
    }
}

impl Read for RegionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.region.length - self.at).min(buffer.len() as u64) as usize;
        let n = self.region.file.read_at(&mut buffer[..wanted], self.region.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    /// A device or a fifo.
    Node,
    Directory,
    /// A volume's label and the like: says nothing.
    Label,
    Unknown(u8),
}

/// A header that stands before an entry's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// The header's type: `x`, `L` or `K`.
    pub(super) kind: u8,
    /// Where its header is.
    pub(super) at: u64,
    /// Bytes of its content.
    pub(super) length: u64,
}

/// An entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) target: Vec<u8>,
    /// Where the first of its headers is.
    pub(super) start: u64,
    pub(super) before: Vec<Before>,
    /// Where its own header is.
    pub(super) header: u64,
    /// Where what follows that begins and ends, padding included.
    pub(crate) content: u64,
    pub(super) end: u64,
    /// Bytes of content.
    pub(crate) size: u64,
    /// The records of global headers before it.
    pub(super) globals: Option<Arc<[u8]>>,
}

/// What is wrong with a tar, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("cannot read it at byte {at}: {source}")]
    Read { at: u64, source: io::Error },
    #[error("it is no tar archive, or damaged, at byte {at}: {reason}")]
    Damaged { at: u64, reason: String },
}

/// Goes from entry to entry.
#[derive(Debug)]
pub(crate) struct Walk {
    region: Region,
    at: u64,
    globals: Option<Arc<[u8]>>,
}

impl Walk {
    pub(crate) fn new(region: Region) -> Self {
        Self { region, at: 0, globals: None }
    }

    /// Looks at one entry again.
    pub(super) fn again(region: &Region, start: u64, globals: Option<Arc<[u8]>>) -> Self {
        Self { region: region.clone(), at: start, globals }
    }

    /// Bytes that were gone by.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The next entry; `None` at the end, which the archive's digest vouches for, marker or not.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut start = self.at;
        let (mut before, mut records) = (Vec::new(), Records::default());
        if let Some(globals) = &self.globals {
            records.read(globals).map_err(|reason| TarError::Damaged { at: start, reason })?;
        }
        let (mut long_name, mut long_target) = (None, None);
        loop {
            let at = self.at;
            let Some(block) = self.block()? else {
                return match before.is_empty() {
                    true => Ok(None),
                    false => Err(self.damaged(at, "it ends after an extended header")),
                };
            };
            let kind =
                is_header(&block).ok_or_else(|| self.damaged(at, "expected the header of an entry"))?;
            let size = number(&block[124..136]).ok_or_else(|| self.damaged(at, "a size is not a number"))?;
            match kind {
                b'x' | b'g' | b'L' | b'K' => {
                    let content = self.small(at, size)?;
                    match kind {
                        b'x' => records.read(&content).map_err(|reason| TarError::Damaged { at, reason })?,
                        b'L' => long_name = Some(until_zero(&content)),
                        b'K' => long_target = Some(until_zero(&content)),
                        _ if !before.is_empty() => {
                            return Err(self.damaged(at, "a global header stands between those of an entry"));
                        }
                        _ => {
                            let all = [self.globals.as_deref().unwrap_or_default(), &content].concat();
                            if all.len() as u64 > LONGEST_EXTENDED {
                                return Err(self.damaged(at, "its global headers are too long"));
                            }
                            records.read(&content).map_err(|reason| TarError::Damaged { at, reason })?;
                            self.globals = Some(all.into());
                            start = self.at;
                            continue;
                        }
                    }
                    before.push(Before { kind, at, length: size });
                }
                _ => {
                    let named = Named { records, long_name, long_target };
                    return self.entry(start, before, at, &block, size, named).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        start: u64,
        before: Vec<Before>,
        header: u64,
        block: &[u8],
        own_size: u64,
        named: Named,
    ) -> Result<Entry, TarError> {
        let Named { records, long_name, long_target } = named;
        let name = records.sparse_name.or(records.path).or(long_name).unwrap_or_else(|| header_name(block));
        let target = records.target.or(long_target).unwrap_or_else(|| until_zero(&block[157..257]));
        let kind = match block[156] {
            b'0' | 0 | b'7' | b'S' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' | b'4' | b'6' => Kind::Node,
            b'5' => Kind::Directory,
            b'V' => Kind::Label,
            other => Kind::Unknown(other),
        };
        // Links, devices, directories and fifos have none, whatever the field says.
        let size = match block[156] {
            b'1'..=b'6' => 0,
            _ => records.size.unwrap_or(own_size),
        };
        if block[156] == b'S' && block[482] != 0 {
            while self.block()?.ok_or_else(|| self.damaged(header, "a map of holes is cut off"))?[504] != 0 {}
        }
        let content = self.at;
        let end = content.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
        let end = end.filter(|&end| end <= self.region.length).ok_or_else(|| {
            let name = crate::console::printable(&String::from_utf8_lossy(&name));
            self.damaged(header, &format!("{name} has {size} bytes, and the archive ends before"))
        })?;
        self.at = end;
        let globals = self.globals.clone();
        Ok(Entry { name, kind, target, start, before, header, content, end, size, globals })
    }

    /// The next block that is not all zeros; `None` at the end or at the end marker.
    fn block(&mut self) -> Result<Option<[u8; BLOCK as usize]>, TarError> {
        let mut block = [0; BLOCK as usize];
        // One block of zeros and something behind it is no end.
        for _ in 0..2 {
            if self.at >= self.region.length {
                return Ok(None);
            }
            if self.region.length - self.at < BLOCK {
                return Err(self.damaged(self.at, "it ends in the middle of a block"));
            }
            let at = self.at;
            self.region.read_at(&mut block, at).map_err(|source| TarError::Read { at, source })?;
            self.at += BLOCK;
            if block.iter().any(|&b| b != 0) {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn small(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > LONGEST_EXTENDED || size > self.region.length - self.at {
            return Err(self.damaged(at, &format!("an extended header of {size} bytes is too long")));
        }
        let mut content = vec![0; size as usize];
        let from = self.at;
        self.region.read_at(&mut content, from).map_err(|source| TarError::Read { at: from, source })?;
        self.at += size.next_multiple_of(BLOCK);
        Ok(content)
    }

    fn damaged(&self, at: u64, reason: &str) -> TarError {
        TarError::Damaged { at, reason: reason.into() }
    }
}

struct Named {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_target: Option<Vec<u8>>,
}

/// The records of extended headers that say where things are and what they are called.
#[derive(Debug, Default)]
struct Records {
    path: Option<Vec<u8>>,
    sparse_name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Records {
    fn read(&mut self, records: &[u8]) -> Result<(), String> {
        for record in records_of(records) {
            let (key, value) = record?;
            let text = (!value.is_empty()).then(|| value.to_vec());
            match key {
                b"path" => self.path = text,
                b"linkpath" => self.target = text,
                b"GNU.sparse.name" => self.sparse_name = text,
                b"size" => {
                    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.size = match text {
                        None => None,
                        Some(_) => {
                            Some(number.ok_or("the record `size` of an extended header is no number")?)
                        }
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The records of an extended header: `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
pub(super) fn records_of(mut rest: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), String>> {
    std::iter::from_fn(move || {
        // Some tools pad the last with zeros.
        if rest.iter().all(|&b| b == 0) {
            return None;
        }
        let parse = |bytes: &'_ [u8]| -> Option<(usize, usize, usize)> {
            let space = bytes.iter().position(|&b| b == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|&b| b == b'=')?;
            Some((space + 1, equals, length))
        };
        let Some((start, equals, length)) = parse(rest) else {
            rest = &[];
            return Some(Err("a record of an extended header is not as long as it says".into()));
        };
        let record = &rest[start..length - 1];
        rest = &rest[length..];
        Some(Ok((&record[..equals], &record[equals + 1..])))
    })
}

fn header_name(block: &[u8]) -> Vec<u8> {
    let (name, prefix) = (until_zero(&block[..100]), until_zero(&block[345..500]));
    // GNU's archives have other fields where POSIX has the prefix.
    if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
        [&prefix[..], b"/", &name].concat()
    } else {
        name
    }
}

pub(super) fn until_zero(field: &[u8]) -> Vec<u8> {
    field.split(|&b| b == 0).next().unwrap_or_default().to_vec()
}

/// The parts of a name; `None` if it leads up, or has a zero byte. An absolute one is taken as below the root.
pub(crate) fn parts(name: &[u8]) -> Option<Vec<&[u8]>> {
    let parts: Vec<_> = name.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let bad = parts.contains(&&b".."[..]) || name.contains(&0);
    (!bad).then_some(parts)
}
