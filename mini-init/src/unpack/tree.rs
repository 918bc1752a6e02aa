//! Names below a root, and the directories that they lead to.
//!
//! A name is checked as text, and then looked up by openat2(2) with `RESOLVE_IN_ROOT`: the kernel itself takes the root
//! as the bound, for `..` and for links, absolute ones too, whatever is swapped in meanwhile.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, mkdirat},
};

/// A name without `.`, `..`, empty parts and zero bytes; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(Vec<u8>);

/// Why a name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    /// It has a part that leads up.
    #[error("its name has `..` in it")]
    Up,
    /// It has a zero byte.
    #[error("its name has a zero byte in it")]
    Zero,
    /// It is longer than the kernel takes.
    #[error("its name is longer than {} bytes", libc::PATH_MAX)]
    Long,
}

impl Name {
    /// Takes a name as it stands in an archive. An absolute one is taken as below the root, as tar does.
    pub(super) fn check(name: &[u8]) -> Result<Self, NameError> {
        if name.contains(&0) {
            return Err(NameError::Zero);
        }
        if name.len() >= libc::PATH_MAX as usize {
            return Err(NameError::Long);
        }
        let mut clean: Vec<u8> = Vec::with_capacity(name.len());
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(NameError::Up),
                part => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                }
            }
        }
        Ok(Self(clean))
    }

    /// What it lies in and what it is called there; `None` for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None => Some((b"", &self.0)),
        }
    }

    /// As text.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes that it takes.
    pub(super) fn length(&self) -> usize {
        self.0.len() + size_of::<Self>()
    }
}

/// A root, and the directory that was used last in it: neighbours stand together in an archive.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    last: Option<(Vec<u8>, OwnedFd)>,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Tree {
    /// Opens the root.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { root: openat(AT_FDCWD, root, DIRECTORY, Mode::empty())?, last: None })
    }

    fn resolve(&self, path: &[u8], flags: OFlag, more: ResolveFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(flags)
            .mode(Mode::empty())
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | more);
        openat2(&self.root, path, how)
    }

    /// A directory that is there, by a name that may lead through links.
    pub(super) fn existing(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.resolve(path, DIRECTORY, ResolveFlag::empty())
    }

    /// As [`existing`](Self::existing); what is missing is made, with the mode that tar gives such directories.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if let Some((_, directory)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return directory.try_clone().map_err(|_| Errno::last());
        }
        let directory = match self.existing(path) {
            Err(Errno::ENOENT) => {
                // Part by part, each looked up anew from the root. A link that leads nowhere is not followed by mkdir,
                // which says EEXIST.
                let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
                for end in ends.chain([path.len()]) {
                    if matches!(self.existing(&path[..end]), Err(Errno::ENOENT)) {
                        let start = path[..end].iter().rposition(|b| *b == b'/');
                        let (above, last) = match start {
                            Some(slash) => (&path[..slash], &path[slash + 1..end]),
                            None => (&b""[..], &path[..end]),
                        };
                        mkdirat(self.existing(above)?, last, Mode::from_bits_truncate(0o755))?;
                    }
                }
                self.existing(path)?
            }
            other => other?,
        };
        let copy = directory.try_clone().map_err(|_| Errno::last())?;
        self.last = Some((path.to_vec(), copy));
        Ok(directory)
    }

    /// A file's first mebibyte; empty if it cannot be read.
    pub(super) fn small_file(&self, path: &str) -> Vec<u8> {
        use std::io::Read;
        let mut content = Vec::new();
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if let Ok(file) = self.resolve(path.as_bytes(), flags, ResolveFlag::empty()) {
            let _ = std::fs::File::from(file).take(1 << 20).read_to_end(&mut content);
        }
        content
    }

    /// Something was taken away: what is remembered may be reached by its name no more.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The directory of just this name, without a link at its end, open for changing its metadata.
    pub(super) fn own_directory(&self, name: &Name) -> Result<std::fs::File, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        self.resolve(name.bytes(), flags, ResolveFlag::empty()).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_tar_takes_them() {
        for (text, clean) in
            [("./etc/", "etc"), ("/a//b/./c", "a/b/c"), ("./", ""), ("a...", "a..."), ("..a", "..a")]
        {
            assert_eq!(Name::check(text.as_bytes()).unwrap().bytes(), clean.as_bytes(), "{text}");
        }
        for text in ["..", "a/../b", "/..", "a/.."] {
            assert_eq!(Name::check(text.as_bytes()), Err(NameError::Up), "{text}");
        }
        assert_eq!(Name::check(b"a\0b"), Err(NameError::Zero));
        assert_eq!(Name::check(&vec![b'a'; 5000]), Err(NameError::Long));
    }
}
