//! Writing headers: a ustar block, and before it an extended one for what its fields cannot hold.
//!
//! POSIX.1-2017, pax, "ustar Header Block" and "pax Extended Header". What libarchive and star write into records beyond
//! that: `SCHILY.xattr.NAME`, `SCHILY.acl.access`.

use std::io::Write;

use rustix::fs::{Stat, major, minor};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;
/// What is written for an extended header's own name, which nobody looks at.
const EXTENDED_NAME: &[u8] = b"././@PaxHeader";

/// A record of an extended header.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// An entry's header.
#[derive(Debug, Clone)]
pub(super) struct Header<'a> {
    pub(super) name: &'a [u8],
    /// The type flag.
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, u32),
    pub(super) target: &'a [u8],
    /// Bytes of content.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) records: Vec<Record>,
}

impl<'a> Header<'a> {
    /// What stat(2) says.
    pub(super) fn of(name: &'a [u8], kind: u8, about: &Stat) -> Self {
        let is_device = matches!(kind, b'3' | b'4');
        Self {
            name,
            kind,
            mode: about.st_mode & 0o7777,
            uid: about.st_uid,
            gid: about.st_gid,
            // Another name of a file says nothing of it that was not said.
            modified: (about.st_mtime, if kind == b'1' { 0 } else { about.st_mtime_nsec as u32 }),
            target: b"",
            size: if kind == b'0' { about.st_size as u64 } else { 0 },
            device: if is_device { (major(about.st_rdev), minor(about.st_rdev)) } else { (0, 0) },
            records: Vec::new(),
        }
    }

    /// Adds attributes.
    pub(super) fn with(mut self, attributes: super::Attributes) -> Self {
        self.records.extend(attributes.into_records());
        self
    }

    /// The blocks of the header, without content.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut block = self.block(&mut records);
        finish(&mut block);
        for (key, value) in &self.records {
            record(&mut records, key, value);
        }
        if records.is_empty() {
            return block.to_vec();
        }
        let mut extended = [0; BLOCK];
        text(&mut extended[..100], EXTENDED_NAME);
        octal(&mut extended[100..108], 0o644);
        for field in [108..116, 116..124, 136..148] {
            octal(&mut extended[field], 0);
        }
        octal(&mut extended[124..136], records.len() as u64);
        extended[156] = b'x';
        finish(&mut extended);
        records.resize(records.len().next_multiple_of(BLOCK), 0);
        [&extended[..], &records, &block].concat()
    }

    /// The block, but for what is the same in all of them. What does not fit into it becomes a record.
    fn block(&self, records: &mut Vec<u8>) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let binary = [self.name, self.target].iter().any(|name| std::str::from_utf8(name).is_err());
        let long = self.name.len() > 100 || self.target.len() > 100;
        if binary && long {
            record(records, b"hdrcharset", b"BINARY");
        }
        if !text(&mut block[..100], self.name) {
            record(records, b"path", self.name);
        }
        if !text(&mut block[157..257], self.target) {
            record(records, b"linkpath", self.target);
        }
        octal(&mut block[100..108], self.mode.into());
        for (field, key, value) in [
            (108..116, "uid", u64::from(self.uid)),
            (116..124, "gid", u64::from(self.gid)),
            (124..136, "size", self.size),
        ] {
            if !octal(&mut block[field], value) {
                record(records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.modified;
        let whole = u64::try_from(seconds).is_ok_and(|seconds| octal(&mut block[136..148], seconds));
        if !whole {
            octal(&mut block[136..148], 0);
        }
        if !whole || nanoseconds > 0 {
            record(records, b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        block[156] = self.kind;
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        block
    }
}

/// Magic number, version and checksum.
fn finish(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
}

/// Writes text into a field, as much of it as fits; false if that is not all.
fn text(field: &mut [u8], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    length == text.len()
}

/// Writes a number into a field, as octal digits and a zero byte; zero, and false, if it is too large.
fn octal(field: &mut [u8], value: u64) -> bool {
    let width = field.len() - 1;
    let fits = value >> (3 * width) == 0;
    let digits = format!("{:0width$o}", if fits { value } else { 0 });
    field[..width].copy_from_slice(digits.as_bytes());
    fits
}

/// Adds `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record, its own digits too.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    // Writing to memory does not fail.
    let _ = write!(records, "{length} ");
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds with a fraction; before 1970 both count downwards.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, fraction) = match nanoseconds {
        0 => ("", seconds.to_string(), 0),
        n if seconds < 0 => ("-", (seconds + 1).unsigned_abs().to_string(), 1_000_000_000 - n),
        n => ("", seconds.to_string(), n),
    };
    if fraction == 0 {
        return whole;
    }
    let digits = format!("{fraction:09}");
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_counts_itself() {
        for value in ["", "x", &"x".repeat(86), &"x".repeat(87), &"x".repeat(88), &"x".repeat(9_984)] {
            let mut records = Vec::new();
            record(&mut records, b"comment", value.as_bytes());
            let length: usize =
                std::str::from_utf8(&records).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, records.len());
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        assert_eq!(time(1_700_000_000, 123_456_789), "1700000000.123456789");
        assert_eq!(time(5, 500_000_000), "5.5");
        assert_eq!(time(-2, 750_000_000), "-1.25");
        assert_eq!(time(-1, 750_000_000), "-0.25");
        assert_eq!(time(-7, 0), "-7");
    }
}
