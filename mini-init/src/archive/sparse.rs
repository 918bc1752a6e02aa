//! Files with holes: where their content belongs.
//!
//! GNU tar has written four formats: in the header itself (`S`), and three in pax records: 0.0 (a record for each offset
//! and length), 0.1 (all of them in one record), 1.0 (at the head of the content, as lines of decimal numbers).

use std::io::Read;

use super::{Archive, ArchiveError, Entry, header, header::BLOCK};

/// The most pieces of one file: a map in memory of 16 MiB.
const MOST_PIECES: usize = 1 << 20;

/// What pax records say about holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    real_size: Option<u64>,
    map: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

impl PaxSparse {
    /// Whether anything was said.
    pub(super) fn is_any(&self) -> bool {
        self.major.is_some() || self.map.is_some() || self.real_size.is_some()
    }

    /// Takes a record `GNU.sparse.KEY`.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let wrong = || format!("a record about holes makes no sense, {:?}", super::printable(value));
        let number = || decimal(value).ok_or_else(wrong);
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = Some(number()?),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"map" => {
                let numbers = value.split(|b| *b == b',').map(decimal).collect::<Option<Vec<u64>>>();
                let numbers = numbers.filter(|n| n.len() % 2 == 0).ok_or_else(wrong)?;
                self.map = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
            }
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or_else(wrong)?;
                self.map.get_or_insert_default().push((offset, number()?));
            }
            _ => {}
        }
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl<R: Read> Archive<R> {
    /// The map of GNU's old format: four pieces in the header, the others in blocks behind it.
    pub(super) fn gnu_map(
        &mut self,
        mut map: Vec<(u64, u64)>,
        mut more: bool,
        size: u64,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        while more {
            let block = self.block()?.ok_or_else(|| self.cut_off())?;
            let (pieces, further) = header::more_pieces(&block)
                .ok_or_else(|| self.damaged("a map of holes makes no sense".into()))?;
            map.extend(pieces);
            more = further;
            if map.len() > MOST_PIECES {
                return Err(self.damaged(format!("a file has more than {MOST_PIECES} pieces between holes")));
            }
        }
        self.set_map(map, size, entry)
    }

    /// The map of pax records, or of the content's head.
    pub(super) fn pax_map(&mut self, sparse: &PaxSparse, entry: &mut Entry) -> Result<(), ArchiveError> {
        let map = match (&sparse.map, sparse.major) {
            (_, Some(1)) => self.map_in_content()?,
            (Some(map), _) => map.clone(),
            (None, _) => return Err(self.damaged("a file has holes, and no map of them".into())),
        };
        self.set_map(map, sparse.real_size.unwrap_or(entry.size), entry)
    }

    /// Format 1.0: the number of pieces, then offset and length of each, a line each, padded to a block.
    fn map_in_content(&mut self) -> Result<Vec<(u64, u64)>, ArchiveError> {
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = None;
        loop {
            let mut block = [0; BLOCK];
            let mut have = 0;
            while have < BLOCK {
                match self.content(&mut block[have..])? {
                    0 => return Err(self.damaged("a map of holes is longer than the content".into())),
                    length => have += length,
                }
            }
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
                match byte {
                    b'\n' => {
                        let number = decimal(&digits)
                            .ok_or_else(|| self.damaged("a map of holes makes no sense".into()))?;
                        digits.clear();
                        match wanted {
                            Some(_) => numbers.push(number),
                            None if number > MOST_PIECES as u64 => {
                                return Err(self.damaged(format!("a file has {number} pieces between holes")));
                            }
                            None => wanted = Some(2 * number as usize),
                        }
                    }
                    byte if digits.len() < 20 => digits.push(byte),
                    _ => return Err(self.damaged("a map of holes makes no sense".into())),
                }
            }
            if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                return Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
            }
        }
    }

    /// Checks a map against the file's size and the content's: pieces in order, inside the file, and all of the content.
    fn set_map(&mut self, map: Vec<(u64, u64)>, size: u64, entry: &mut Entry) -> Result<(), ArchiveError> {
        let mut end = 0;
        let mut content: u64 = 0;
        for &(offset, length) in &map {
            let piece_end = offset.checked_add(length).filter(|e| *e <= size && offset >= end);
            end = piece_end.ok_or_else(|| self.damaged("a map of holes reaches beyond its file".into()))?;
            content += length;
        }
        if content != self.content || size > i64::MAX as u64 {
            return Err(self.damaged("a map of holes does not fit the content".into()));
        }
        entry.size = size;
        entry.map = Some(map);
        Ok(())
    }
}
