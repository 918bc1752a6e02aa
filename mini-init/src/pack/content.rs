//! What is in a file: all of it, or what lies between its holes.
//!
//! Files with holes are in format 1.0 of GNU tar's (manual, "Storing Sparse Files"; "PAX Format, Version 1.0"): the map at
//! the head of the content, as lines of decimal numbers. A hole that is not a whole block of the importer's file system is
//! none there, so the map is one of blocks, whatever this file system's are.

use std::{io::Write, os::fd::OwnedFd};

use rustix::{
    fs::{SeekFrom, seek},
    io::{Errno, pread},
};

use super::{
    PackError, Packer,
    header::{BLOCK, Header, Record},
};

/// Bytes that are read and written at a time.
pub(super) const BUFFER: usize = 256 << 10;
/// Bytes of a block of the file systems that archives are unpacked into.
const GRANULE: u64 = 4096;
/// The most pieces of one file: a file with more is packed as if its blocks were larger. The importer takes sixteen times
/// as many.
const MOST_PIECES: usize = 1 << 16;

/// Where a file has content: offset and length of each piece, in order, none empty, all whole blocks but the file's last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Map {
    pieces: Vec<(u64, u64)>,
    size: u64,
}

impl Map {
    /// Asks the file system. A file of one block has no holes.
    pub(super) fn of(file: &OwnedFd, size: u64) -> Result<Self, Errno> {
        let mut map = Self { pieces: Vec::new(), size };
        if size <= GRANULE {
            map.pieces.extend((size > 0).then_some((0, size)));
            return Ok(map);
        }
        let (mut granule, mut at) = (GRANULE, 0);
        while at < size {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(error) => return Err(error),
            };
            let end = seek(file, SeekFrom::Hole(start))?;
            at = map.add(start, end, granule);
            if map.pieces.len() > MOST_PIECES {
                granule *= 2;
                let finer = std::mem::take(&mut map.pieces);
                for (start, length) in finer {
                    map.add(start, start + length, granule);
                }
            }
        }
        Ok(map)
    }

    /// Adds what begins after all that is there; gives where it ends.
    fn add(&mut self, start: u64, end: u64, granule: u64) -> u64 {
        let start = start / granule * granule;
        let end = end.checked_next_multiple_of(granule).unwrap_or(u64::MAX).min(self.size);
        match self.pieces.last_mut() {
            Some((first, length)) if start <= *first + *length => *length = end - *first,
            _ => self.pieces.push((start, end - start)),
        }
        end
    }

    fn has_holes(&self) -> bool {
        self.content() < self.size
    }

    fn content(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// As it stands at the head of the content.
    fn text(&self) -> Vec<u8> {
        // GNU tar ends a map at the file's end.
        let end = self.pieces.last().is_none_or(|(start, length)| start + length < self.size);
        let end = end.then_some((self.size, 0));
        let mut text = format!("{}\n", self.pieces.len() + usize::from(end.is_some())).into_bytes();
        for (start, length) in self.pieces.iter().copied().chain(end) {
            // Writing to memory does not fail.
            let _ = write!(text, "{start}\n{length}\n");
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        text
    }
}

impl<W: Write> Packer<'_, W> {
    /// A regular file's entry, with what is in it.
    pub(super) fn content(&mut self, file: &OwnedFd, head: &Header<'_>) -> Result<(), PackError> {
        let map = Map::of(file, head.size).map_err(self.failed("looking for its holes"))?;
        let mut written = map.content();
        if map.has_holes() {
            let text = map.text();
            written += text.len() as u64;
            let last = head.name.rsplit(|b| *b == b'/').next().unwrap_or_default();
            let mut stand_in = [b"./GNUSparseFile.0/", last].concat();
            stand_in.truncate(100);
            let mut records: Vec<Record> = vec![
                (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
                (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
                (b"GNU.sparse.name".to_vec(), head.name.to_vec()),
                (b"GNU.sparse.realsize".to_vec(), head.size.to_string().into_bytes()),
            ];
            records.extend(head.records.clone());
            self.entry(&Header { name: &stand_in, size: written, records, ..head.clone() })?;
            self.write(&text)?;
        } else {
            self.entry(head)?;
        }
        for &(start, length) in &map.pieces {
            self.piece(file, start, length)?;
        }
        let padding = (written.wrapping_neg() % BLOCK as u64) as usize;
        self.write(&[0; BLOCK][..padding])
    }

    fn piece(&mut self, file: &OwnedFd, mut at: u64, mut left: u64) -> Result<(), PackError> {
        while left > 0 {
            let wanted = left.min(BUFFER as u64) as usize;
            let length = match pread(file, &mut self.buffer[..wanted], at) {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::INTR) => continue,
                other => other.map_err(std::io::Error::from),
            };
            let length = length.map_err(self.failed("reading it"))?;
            self.to.write_all(&self.buffer[..length]).map_err(PackError::Stream)?;
            self.account.bytes += length as u64;
            (at, left) = (at + length as u64, left - length as u64);
            (self.progress)(self.account.entries);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_one_of_blocks() {
        let mut map = Map { pieces: Vec::new(), size: 100_000 };
        assert_eq!(map.add(5_000, 5_100, GRANULE), 8_192);
        assert_eq!(map.add(9_000, 9_001, GRANULE), 12_288);
        assert_eq!(map.add(99_000, 100_000, GRANULE), 100_000);
        assert_eq!(map.pieces, [(4_096, 8_192), (98_304, 1_696)]);
        assert!(map.has_holes());
        assert_eq!(&map.text()[..26], b"2\n4096\n8192\n98304\n1696\n\0\0\0");
        assert_eq!(map.text().len(), BLOCK);
        let hole = Map { pieces: Vec::new(), size: 8_192 };
        assert_eq!(&hole.text()[..9], b"1\n8192\n0\n");
    }
}
