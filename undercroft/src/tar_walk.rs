//! Following the headers of a tar archive as it streams by.
//!
//! Layout: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" and "GNU Extensions to the
//! Archive Format". Only what decides where the next header stands is read: type, size, checksum, the `size` record of
//! an extended header and the continuation blocks of GNU sparse files. Names and all else are the guest's to judge.

const BLOCK: usize = 512;
/// The longest extended header, and the longest file, that is looked into, in bytes; a longer one is passed over.
const LONGEST: usize = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarError {
    /// It ends before its end marker.
    CutOff {
        /// The entry in whose middle it ends.
        entry: String,
    },
    /// A header that is none.
    Damaged { offset: u64, message: String },
}

/// Where in the archive the reader is.
#[derive(Debug, Default)]
pub(crate) struct TarWalk {
    offset: u64,
    header: Vec<u8>,
    state: State,
    entry: String,
    /// The size that an extended header gave the next entry.
    size: Option<u64>,
    extended: Option<Vec<u8>>,
    zero_blocks: u32,
    sought: Option<&'static str>,
    /// The content of the file that is sought, as far as it has gone by.
    found: Option<Vec<u8>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    /// More blocks of a GNU sparse map, then this many bytes of data.
    Sparse { data: u64 },
    /// This many bytes up to the next header, this many of them content.
    Data { left: u64, content: u64 },
    /// After the two zero blocks.
    End,
}

impl TarWalk {
    /// The name of the entry at hand.
    pub(crate) fn entry(&self) -> String {
        self.entry.clone()
    }

    /// Keeps the content of a regular file on its way, if it is not too long: `etc/passwd`.
    pub(crate) fn seeking(path: &'static str) -> Self {
        Self { sought: Some(path), ..Self::default() }
    }

    /// The content of the file that was sought, once all of it has gone by.
    pub(crate) fn found(&mut self) -> Option<Vec<u8>> {
        let whole = !matches!(self.state, State::Data { .. });
        self.found.take_if(|_| whole)
    }

    /// Follows the next bytes; gives how many of them belong to the archive (all, or those up to the end marker's
    /// end).
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<usize, TarError> {
        let before = bytes.len();
        while !bytes.is_empty() {
            let used = match self.state {
                State::End => break,
                State::Data { left, content } => {
                    let used = left.min(bytes.len() as u64);
                    for kept in [&mut self.extended, &mut self.found].into_iter().flatten() {
                        let wanted = content.min(used) as usize;
                        kept.extend_from_slice(&bytes[..wanted]);
                    }
                    self.state = State::Data { left: left - used, content: content.saturating_sub(used) };
                    if left == used {
                        self.state = State::Header;
                        self.read_extended();
                    }
                    used as usize
                }
                State::Header | State::Sparse { .. } => {
                    let used = (BLOCK - self.header.len()).min(bytes.len());
                    self.header.extend_from_slice(&bytes[..used]);
                    if self.header.len() == BLOCK {
                        let block = std::mem::take(&mut self.header);
                        self.block(&block, self.offset + used as u64 - BLOCK as u64)?;
                    }
                    used
                }
            };
            self.offset += used as u64;
            bytes = &bytes[used..];
        }
        Ok(before - bytes.len())
    }

    /// The stream has ended.
    pub(crate) fn end(&self) -> Result<(), TarError> {
        match self.state {
            State::End => Ok(()),
            // One zero block instead of two: written by old tools, and nothing is missing.
            State::Header if self.zero_blocks == 1 && self.header.is_empty() => Ok(()),
            _ => Err(TarError::CutOff { entry: self.entry() }),
        }
    }

    fn block(&mut self, block: &[u8], offset: u64) -> Result<(), TarError> {
        if let State::Sparse { data } = self.state {
            // The map goes on where its last byte before the padding says so.
            if block[504] == 0 {
                self.state = data_of(data);
            }
            return Ok(());
        }
        if block.iter().all(|&b| b == 0) {
            self.zero_blocks += 1;
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(());
        }
        self.zero_blocks = 0;
        let damaged = |message: &str| TarError::Damaged { offset, message: message.into() };
        let kind = is_header(block)
            .ok_or_else(|| damaged("expected the header of an entry, and its checksum is wrong"))?;
        let own = number(&block[124..136]).ok_or_else(|| damaged("an entry's size is not a number"))?;
        self.entry = name(block);
        let extended = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let size = match kind {
            // Links, devices, directories and fifos have no content, whatever their size field says.
            b'1'..=b'6' => 0,
            _ if extended => own,
            _ => self.size.unwrap_or(own),
        };
        if !extended {
            self.size = None;
        }
        // 2^62: no file is longer, and the padding below cannot overflow.
        if size > 1 << 62 {
            return Err(damaged("an entry's size is absurd"));
        }
        let short = size as usize <= LONGEST;
        self.extended = (kind == b'x' && short).then(Vec::new);
        let regular = matches!(kind, b'0' | 0);
        let path = self.entry.trim_start_matches(['.', '/']);
        self.found = (regular && short && self.sought == Some(path)).then(Vec::new);
        let old_gnu_sparse = kind == b'S' && block[482] != 0;
        self.state = if old_gnu_sparse { State::Sparse { data: size } } else { data_of(size) };
        Ok(())
    }

    /// Takes the size from an extended header that has gone by: records of `LENGTH KEY=VALUE\n`.
    fn read_extended(&mut self) {
        let Some(records) = self.extended.take() else { return };
        let mut rest: &[u8] = &records;
        while let Some(space) = rest.iter().position(|&b| b == b' ') {
            let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) = length.and_then(|length| rest.get(space + 1..length)) else { return };
            if let Some(value) = record.strip_prefix(b"size=") {
                let value = value.strip_suffix(b"\n").unwrap_or(value);
                self.size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            }
            let Some(next) = rest.get(space + 1 + record.len()..) else { return };
            rest = next;
        }
    }
}

fn data_of(size: u64) -> State {
    if size == 0 {
        State::Header
    } else {
        State::Data { left: size.next_multiple_of(BLOCK as u64), content: size }
    }
}

/// The type of the entry, if the block's checksum is right: the sum of its bytes, those of the checksum taken as spaces.
pub(crate) fn is_header(block: &[u8]) -> Option<u8> {
    if block.len() != BLOCK {
        return None;
    }
    let stated = number(&block[148..156])?;
    let outside = |(i, _): &(usize, &u8)| !(148..156).contains(i);
    let unsigned: u64 =
        block.iter().enumerate().filter(outside).map(|(_, &b)| u64::from(b)).sum::<u64>() + 8 * 32;
    // Some old tools summed signed bytes.
    let signed: i64 =
        block.iter().enumerate().filter(outside).map(|(_, &b)| i64::from(b as i8)).sum::<i64>() + 8 * 32;
    (stated == unsigned || i64::try_from(stated) == Ok(signed)).then_some(block[156])
}

/// A number field: octal digits in spaces and zeros, or GNU's base 256 where the first bit is set.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let mut value = u64::from(first & 0x3f);
        for &byte in rest {
            value = value.checked_mul(256)?.checked_add(u64::from(byte))?;
        }
        return (first & 0x40 == 0).then_some(value);
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// An entry's name, for people.
fn name(block: &[u8]) -> String {
    let until_zero = |field: &[u8]| {
        let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let (name, prefix) = (until_zero(&block[..100]), until_zero(&block[345..500]));
    let ustar = &block[257..263] == b"ustar\0";
    let whole = if ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name };
    crate::console::printable(&whole)
}
