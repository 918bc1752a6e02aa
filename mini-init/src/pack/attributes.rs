//! Extended attributes and access control lists, as records.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

use super::header::Record;

/// The most bytes of one file's attributes: more than any file system of ours holds, and no reader need hold more.
const MOST: usize = 512 << 10;
/// The kernel's own limit of a list and of a value (linux/limits.h, XATTR_LIST_MAX and XATTR_SIZE_MAX).
const LONGEST: usize = 65536;

/// A file's attributes by name.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<Record>);

impl Attributes {
    /// Reads them through /proc, which leads to the very file that the descriptor holds, be it a link or a device.
    /// Overlayfs's own marks are kept only for `layers`: where a container engine stacks what is in this root.
    pub(super) fn of(file: &OwnedFd, layers: bool, warn: &mut dyn FnMut(String)) -> Result<Self, Errno> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut names = Vec::new();
        match grow(&mut names, |names| rustix::fs::listxattr(&path, names)) {
            // A file system without any.
            Err(Errno::NOTSUP) => return Ok(Self::default()),
            other => other?,
        }
        let mut found = Vec::new();
        let mut total = 0;
        for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let shown = crate::archive::printable(name);
            if name.starts_with(b"trusted.overlay.") && !layers {
                warn(format!("the attribute {shown} is left out"));
                continue;
            }
            let mut value = Vec::new();
            match grow(&mut value, |value| rustix::fs::getxattr(&path, name, value)) {
                // Listed, and not there: made up on reading, and empty.
                Err(Errno::NODATA) => continue,
                other => other?,
            }
            total += name.len() + value.len();
            if total > MOST {
                warn(format!("it has more than {MOST} bytes of attributes; {shown} is left out"));
                break;
            }
            found.push((name.to_vec(), value));
        }
        found.sort();
        Ok(Self(found))
    }

    /// As records. A list that is no list of this version's is an attribute like others.
    pub(super) fn into_records(self) -> impl Iterator<Item = Record> {
        self.0.into_iter().map(|(name, value)| {
            let list = match name.as_slice() {
                b"system.posix_acl_access" => Some(b"SCHILY.acl.access".as_slice()),
                b"system.posix_acl_default" => Some(b"SCHILY.acl.default".as_slice()),
                _ => None,
            };
            match list.zip(crate::unpack::acl_text(&value)) {
                Some((key, text)) => (key.to_vec(), text.into_bytes()),
                None => ([b"SCHILY.xattr.".as_slice(), &escaped(&name)].concat(), value),
            }
        })
    }
}

/// As GNU tar writes a name that has what ends a key.
fn escaped(name: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'=' => b"%3D".to_vec(),
        other => vec![*other],
    };
    name.iter().flat_map(escape).collect()
}

/// Calls with room for most, and with room for all if that was not enough.
fn grow(
    buffer: &mut Vec<u8>,
    mut call: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    for size in [1024, LONGEST] {
        buffer.resize(size, 0);
        match call(buffer) {
            Err(Errno::RANGE) if size < LONGEST => {}
            Err(error) => return Err(error),
            Ok(length) => {
                buffer.truncate(length);
                return Ok(());
            }
        }
    }
    Err(Errno::RANGE)
}
