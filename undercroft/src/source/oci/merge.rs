//! Writing the merged tree as one tar.
//!
//! Directories come before what is in them, names in the order of their bytes: the same layers make the same file, byte for
//! byte, wherever they came from. An entry is copied as it stands, extended headers and all. Only where its name is another
//! now (it led through a link, or the name that had the content is gone) are its name's fields and records written anew.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{
    super::{
        cache::Cache,
        error::{Result, SourceError},
        progress::{Phase, Watch},
    },
    entries::{BLOCK, Entry, Region, Walk, parts, records_of},
    tree::{Inode, Node, Stored, Tree},
};
use crate::digest::Digest;

/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;
/// Records that are the name itself.
const NAMES: [&[u8]; 2] = [b"path", b"GNU.sparse.name"];

/// Writes the tree; gives the file's digest and length.
pub(super) fn write(
    image: &str,
    tree: &Tree,
    layers: &[Region],
    to: (&File, &Path),
    cache: &Cache,
    watch: &mut Watch<'_>,
) -> Result<(Digest, u64)> {
    let mut out = Out {
        image,
        tree,
        layers,
        path: to.1,
        cache,
        writer: BufWriter::with_capacity(CHUNK, to.0),
        hash: Sha256::new(),
        length: 0,
        first_names: BTreeMap::new(),
        buffer: vec![0; CHUNK],
    };
    out.directory(&tree.root, &mut Vec::new(), watch)?;
    out.bytes(&[0; 2 * BLOCK as usize])?;
    let written = out.writer.flush();
    written.map_err(|error| cache.write_failed(image, to.1, error))?;
    Ok((Digest::of(out.hash), out.length))
}

struct Out<'a> {
    image: &'a str,
    tree: &'a Tree,
    layers: &'a [Region],
    path: &'a Path,
    cache: &'a Cache,
    writer: BufWriter<&'a File>,
    hash: Sha256,
    length: u64,
    /// The name under which each file was written that may have another.
    first_names: BTreeMap<usize, Box<[u8]>>,
    buffer: Vec<u8>,
}

impl Out<'_> {
    /// Writes a directory and what is in it. As deep as the tree, which is bounded.
    fn directory(&mut self, node: &Node, path: &mut Vec<u8>, watch: &mut Watch<'_>) -> Result<()> {
        let Node::Directory { children, stored, .. } = node else { return Ok(()) };
        match stored {
            Some(stored) => self.stored(stored, path, watch)?,
            None if path.is_empty() => {}
            None => self.implied(path)?,
        }
        for (name, child) in children {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            match child {
                Node::Directory { .. } => self.directory(child, path, watch)?,
                Node::Other { inode, .. } => self.file(*inode, path, watch)?,
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn file(&mut self, inode: usize, path: &[u8], watch: &mut Watch<'_>) -> Result<()> {
        let Inode { stored, has_names, .. } = &self.tree.inodes[inode];
        if let Some(first) = self.first_names.get(&inode).cloned() {
            return self.hard_link(stored, path, &first);
        }
        if *has_names {
            self.first_names.insert(inode, path.into());
        }
        self.stored(stored, path, watch)
    }

    /// Copies an entry of a layer.
    // Its room on the stack is not to be that of each folder above it; the same for the next but one.
    #[inline(never)]
    fn stored(&mut self, stored: &Stored, path: &[u8], watch: &mut Watch<'_>) -> Result<()> {
        let (entry, layer) = self.look(stored)?;
        let same = parts(&entry.name).is_some_and(|parts| parts.join(&b'/') == path);
        if same && entry.globals.is_none() {
            self.copy(&layer, entry.start, entry.end)?;
        } else {
            self.renamed(&entry, &layer, path)?;
        }
        watch.step(Phase::Merging, self.image, self.length, None)
    }

    fn look(&self, stored: &Stored) -> Result<(Entry, Region)> {
        let layer = self.layers[stored.layer].clone();
        let found = Walk::again(&layer, stored.start, stored.globals.clone()).next();
        let gone = |reason: String| SourceError::image(self.image, reason);
        let entry = found.map_err(|error| gone(format!("a layer was changed meanwhile: {error}")))?;
        let entry = entry.ok_or_else(|| gone("a layer was changed meanwhile".into()))?;
        Ok((entry, layer))
    }

    /// Copies an entry under another name, or one that global headers say more about.
    fn renamed(&mut self, entry: &Entry, layer: &Region, path: &[u8]) -> Result<()> {
        let mut header = [0; BLOCK as usize];
        self.read(layer, entry.header, &mut header)?;
        let mut records = Vec::new();
        let mut extended = entry.globals.is_some();
        keep_records(entry.globals.as_deref().unwrap_or_default(), &mut records);
        for before in &entry.before {
            match before.kind {
                b'x' => {
                    let mut content = vec![0; before.length as usize];
                    self.read(layer, before.at + BLOCK, &mut content)?;
                    keep_records(&content, &mut records);
                    extended = true;
                }
                // The name is another; where a link points is not.
                b'L' => {}
                _ => {
                    let end = before.at + BLOCK + before.length.next_multiple_of(BLOCK);
                    self.copy(layer, before.at, end)?;
                }
            }
        }
        let path = if header[156] == b'5' || entry.name.ends_with(b"/") {
            [if path.is_empty() { b"." } else { path }, b"/"].concat()
        } else {
            path.to_vec()
        };
        if extended {
            record(b"path", &path, &mut records);
            self.special(b'x', &records)?;
        }
        self.named(&mut header, &path, !extended)?;
        self.bytes(&header)?;
        self.copy(layer, entry.header + BLOCK, entry.end)
    }

    /// A further name of a file that was written.
    fn hard_link(&mut self, stored: &Stored, path: &[u8], first: &[u8]) -> Result<()> {
        let (entry, layer) = self.look(stored)?;
        let mut original = [0; BLOCK as usize];
        self.read(&layer, entry.header, &mut original)?;
        let mut header = blank();
        // Mode, owner, group; and the time behind the size.
        header[100..124].copy_from_slice(&original[100..124]);
        header[136..148].copy_from_slice(&original[136..148]);
        header[156] = b'1';
        if first.len() > 100 {
            self.special(b'K', &[first, b"\0"].concat())?;
        }
        let shown = first.len().min(100);
        header[157..157 + shown].copy_from_slice(&first[..shown]);
        self.named(&mut header, path, true)?;
        self.bytes(&header)
    }

    /// A directory that only shows in the names of what is in it.
    #[inline(never)]
    fn implied(&mut self, path: &[u8]) -> Result<()> {
        let mut header = blank();
        header[100..107].copy_from_slice(b"0000755");
        header[156] = b'5';
        self.named(&mut header, &[path, b"/"].concat(), true)?;
        self.bytes(&header)
    }

    /// Puts a name into a header, in front of it what does not fit, and the checksum right.
    fn named(&mut self, header: &mut [u8; BLOCK as usize], path: &[u8], long: bool) -> Result<()> {
        if long && path.len() > 100 {
            self.special(b'L', &[path, b"\0"].concat())?;
        }
        header[..100].fill(0);
        let shown = path.len().min(100);
        header[..shown].copy_from_slice(&path[..shown]);
        if &header[257..263] == b"ustar\0" {
            header[345..500].fill(0);
        }
        seal(header);
        Ok(())
    }

    /// A header that says more about the next one.
    fn special(&mut self, kind: u8, content: &[u8]) -> Result<()> {
        let mut header = blank();
        header[..13].copy_from_slice(b"././@LongLink");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        seal(&mut header);
        self.bytes(&header)?;
        self.bytes(content)?;
        let padding = content.len().next_multiple_of(BLOCK as usize) - content.len();
        self.bytes(&[0; BLOCK as usize][..padding])
    }

    fn copy(&mut self, layer: &Region, mut at: u64, end: u64) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        while at < end {
            let wanted = (end - at).min(CHUNK as u64) as usize;
            self.read(layer, at, &mut buffer[..wanted])?;
            self.bytes(&buffer[..wanted])?;
            at += wanted as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn read(&self, layer: &Region, at: u64, buffer: &mut [u8]) -> Result<()> {
        let read = layer.read_at(buffer, at);
        read.map_err(|source: io::Error| SourceError::File { what: "read", path: layer.path.clone(), source })
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.writer.write_all(bytes);
        written.map_err(|error| self.cache.write_failed(self.image, self.path, error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Takes records over, but for those of the name. They were read before, so that none is damaged.
fn keep_records(from: &[u8], to: &mut Vec<u8>) {
    for (key, value) in records_of(from).filter_map(std::result::Result::ok) {
        if !NAMES.contains(&key) {
            record(key, value, to);
        }
    }
}

/// Adds a record, whose length counts its own digits too.
fn record(key: &[u8], value: &[u8], to: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        to.extend_from_slice(part);
    }
}

/// A header of the ustar format with every number zero.
fn blank() -> [u8; BLOCK as usize] {
    let mut header = [0; BLOCK as usize];
    header[257..265].copy_from_slice(b"ustar\x0000");
    for (at, digits) in [(100, 7), (108, 7), (116, 7), (124, 11), (136, 11)] {
        header[at..at + digits].fill(b'0');
    }
    header
}

/// Puts the checksum right.
fn seal(header: &mut [u8; BLOCK as usize]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
