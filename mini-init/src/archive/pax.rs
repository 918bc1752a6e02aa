//! Extended headers: records that say what does not fit into a header.

use super::sparse::PaxSparse;

/// What the records of extended headers say about an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) modified: Option<(i64, u32)>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) lists: Vec<(bool, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Extended {
    /// Reads records, `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let wrong = || "a record of an extended header is not as long as it says".to_owned();
            // Some tools pad the last with zeros.
            if records.iter().all(|b| *b == 0) {
                break;
            }
            let space = records.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
            let length = std::str::from_utf8(&records[..space]).ok().and_then(|n| n.parse::<usize>().ok());
            let length = length.filter(|l| *l > space + 1 && *l <= records.len()).ok_or_else(wrong)?;
            let (record, rest) = records.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals =
                record.iter().position(|b| *b == b'=').ok_or("a record of an extended header has no `=`")?;
            self.take(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let text = || std::str::from_utf8(value).map_err(|_| wrong(key, value));
        match key {
            b"path" => self.path = string(key, value)?,
            b"linkpath" => self.target = string(key, value)?,
            b"size" => self.size = unset_or(value, || text()?.parse().map_err(|_| wrong(key, value)))?,
            b"uid" => self.uid = unset_or(value, || text()?.parse().map_err(|_| wrong(key, value)))?,
            b"gid" => self.gid = unset_or(value, || text()?.parse().map_err(|_| wrong(key, value)))?,
            b"mtime" => self.modified = unset_or(value, || time(text()?).ok_or_else(|| wrong(key, value)))?,
            b"SCHILY.acl.access" => self.lists.push((false, value.to_vec())),
            b"SCHILY.acl.default" => self.lists.push((true, value.to_vec())),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(&unescaped(name), value);
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    // The same in other letters: percent-encoded name, base64 value. SCHILY's stands beside it.
                    let _ = name;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
                // Others (atime, comment, charset, vendors') say nothing that is kept here.
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) {
        self.attributes.retain(|(other, _)| other != name);
        self.attributes.push((name.to_vec(), value.to_vec()));
    }

    /// Lets what a later header says go before what this says.
    pub(super) fn add(&mut self, later: Self) {
        let Self { path, target, size, uid, gid, modified, attributes, lists, sparse } = later;
        self.path = path.or(self.path.take());
        self.target = target.or(self.target.take());
        self.size = size.or(self.size);
        self.uid = uid.or(self.uid);
        self.gid = gid.or(self.gid);
        self.modified = modified.or(self.modified);
        for (name, value) in attributes {
            self.attribute(&name, &value);
        }
        if !lists.is_empty() {
            self.lists = lists;
        }
        if sparse.is_any() {
            self.sparse = sparse;
        }
    }
}

/// GNU tar writes what would end a key, and what it writes that with, as `%3D` and `%25`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        (rest, _) = match rest {
            [b'%', b'2', b'5', after @ ..] => (after, plain.push(b'%')),
            [b'%', b'3', b'D', after @ ..] => (after, plain.push(b'=')),
            _ => (after, plain.push(*first)),
        };
    }
    plain
}

fn wrong(key: &[u8], value: &[u8]) -> String {
    let (key, value) = (super::printable(key), super::printable(value));
    format!("the record {key} of an extended header has a value that makes no sense, {value:?}")
}

/// An empty value takes back what was said before.
fn unset_or<T>(value: &[u8], parse: impl FnOnce() -> Result<T, String>) -> Result<Option<T>, String> {
    if value.is_empty() { Ok(None) } else { parse().map(Some) }
}

fn string(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if value.contains(&0) { Err(wrong(key, value)) } else { unset_or(value, || Ok(value.to_vec())) }
}

/// Seconds with a fraction: `-1.25` is a second and a quarter before 1970.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds_on_both_sides_of_1970() {
        assert_eq!(time("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time("5.5"), Some((5, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time("x"), None);
        assert_eq!(time("1.+5"), None);
    }

    #[test]
    fn names_of_attributes_are_what_gnu_tar_meant() {
        assert_eq!(unescaped(b"user.a%3Db%25c%d%2"), b"user.a=b%c%d%2");
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        for records in ["5 a=b\n", "99 path=x\n", "0 \n", "x", "9 path=x"] {
            assert!(Extended::default().read(records.as_bytes()).is_err(), "{records:?}");
        }
        let mut extended = Extended::default();
        extended.read(b"10 path=x\n12 uid=1000\n").unwrap();
        assert_eq!((extended.path.as_deref(), extended.uid), (Some(&b"x"[..]), Some(1000)));
    }
}
