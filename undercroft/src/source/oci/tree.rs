//! What layers, one over the other, amount to: a tree of names, without any content.
//!
//! Rules: OCI Image Format 1.1, "layer.md", "Applying Changesets". An entry takes the place of what lower layers have under
//! its name, but a directory that comes over a directory leaves what is in it. `.wh.NAME` takes NAME away, and
//! `.wh..wh..opq` all that is in its directory: of lower layers only, in whatever order they stand in their own. A name may
//! lead through a link of a lower layer; it is followed within the tree.
//!
//! A file with several names is one *inode* here, so that names stay the same file across layers when one of them goes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::entries::{Entry, Kind, parts};
use crate::console::printable;

/// Before the name of what is taken away.
const WHITEOUT: &[u8] = b".wh.";
/// Takes away all that is in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Before the names of AUFS's own files, which are nobody's.
const AUFS: &[u8] = b".wh..wh.";
/// The deepest folder: several times what anybody has, and a depth that a thread's stack can follow.
const DEEPEST: usize = 512;
/// Links followed on the way to one name, as in Linux (MAXSYMLINKS).
const MOST_LINKS: u32 = 40;
/// Bytes that the tree may take: some three million files.
const MOST_HELD: usize = 768 << 20;
/// Bytes that an entry takes besides its name, about.
const EACH: usize = 200;
/// Warnings that are kept.
const MOST_WARNINGS: usize = 100;

/// Where an entry is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) layer: usize,
    pub(super) start: u64,
    pub(super) globals: Option<Arc<[u8]>>,
}

/// A name's file.
#[derive(Debug)]
pub(super) enum Node {
    Directory {
        children: BTreeMap<Box<[u8]>, Node>,
        /// `None` if no layer says anything of the directory itself.
        stored: Option<Stored>,
        layer: usize,
    },
    Other {
        inode: usize,
        layer: usize,
    },
}

/// A file.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) stored: Stored,
    /// Where it points, if it is a symbolic link.
    link: Option<Box<[u8]>>,
    /// It had several names, some of which may be gone.
    pub(super) has_names: bool,
}

/// A name that was looked up: what it is in the tree, links followed but for the last part's.
type Found = Vec<Box<[u8]>>;

/// More than can be held.
#[derive(Debug, thiserror::Error)]
#[error("it has more files than {} MiB of names can hold", MOST_HELD >> 20)]
pub(super) struct TooMuch;

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Node,
    pub(super) inodes: Vec<Inode>,
    pub(super) warnings: Vec<String>,
    held: usize,
}

impl Node {
    fn directory(layer: usize, stored: Option<Stored>) -> Self {
        Self::Directory { children: BTreeMap::new(), stored, layer }
    }

    /// Takes away what lower layers have; tells whether anything stays.
    fn strip(&mut self, above: usize) -> bool {
        match self {
            Self::Other { layer, .. } => *layer == above,
            Self::Directory { children, stored, layer } => {
                children.retain(|_, child| child.strip(above));
                let own = *layer == above;
                if !own {
                    *stored = None;
                    *layer = above;
                }
                own || !children.is_empty()
            }
        }
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { root: Node::directory(0, None), inodes: Vec::new(), warnings: Vec::new(), held: 0 }
    }

    /// Applies an entry of a layer; layers come from the lowest to the highest.
    pub(super) fn apply(&mut self, layer: usize, entry: &Entry) -> Result<(), TooMuch> {
        if entry.kind == Kind::Label {
            return Ok(());
        }
        let Some(path) = parts(&entry.name) else {
            self.warn(&entry.name, "its name leads out of the image");
            return Ok(());
        };
        let Some((&last, above)) = path.split_last() else {
            if entry.kind == Kind::Directory
                && let Node::Directory { stored, .. } = &mut self.root
            {
                *stored = Some(stored_of(layer, entry));
            }
            return Ok(());
        };
        if above.iter().any(|part| part.starts_with(AUFS)) {
            return Ok(());
        }
        let Some(place) = self.resolve(above) else {
            self.warn(&entry.name, "its name leads too deep, or through links that go in circles");
            return Ok(());
        };
        if last == OPAQUE {
            self.opaque(layer, &place);
        } else if last.starts_with(AUFS) {
        } else if let Some(name) = last.strip_prefix(WHITEOUT) {
            self.whiteout(layer, &place, name);
        } else {
            return self.put(layer, entry, &place, last);
        }
        Ok(())
    }

    fn put(&mut self, layer: usize, entry: &Entry, place: &Found, last: &[u8]) -> Result<(), TooMuch> {
        self.held += entry.name.len() + EACH;
        if self.held > MOST_HELD {
            return Err(TooMuch);
        }
        let inode = match entry.kind {
            Kind::Directory => None,
            Kind::HardLink => match self.linked(&entry.target) {
                // Another name of itself: it is there.
                Some((_, same)) if same == [place, &[last.into()][..]].concat() => return Ok(()),
                Some((inode, _)) => {
                    self.inodes[inode].has_names = true;
                    Some(inode)
                }
                None => {
                    let target = printable(&String::from_utf8_lossy(&entry.target));
                    self.warn(&entry.name, &format!("{target}, which it is another name of, is not there"));
                    return Ok(());
                }
            },
            Kind::File | Kind::SymbolicLink | Kind::Node => {
                let link = (entry.kind == Kind::SymbolicLink).then(|| entry.target.clone().into());
                self.held += entry.target.len();
                self.inodes.push(Inode { stored: stored_of(layer, entry), link, has_names: false });
                Some(self.inodes.len() - 1)
            }
            Kind::Unknown(kind) => {
                let kind = char::from(kind).escape_default();
                self.warn(&entry.name, &format!("it is of the kind `{kind}`, which no file has"));
                return Ok(());
            }
            Kind::Label => return Ok(()),
        };
        let Some(directory) = self.make(layer, place) else {
            self.warn(&entry.name, "what it is to lie in is no directory");
            return Ok(());
        };
        match (inode, directory.get_mut(last)) {
            (None, Some(Node::Directory { stored, layer: of, .. })) => {
                *stored = Some(stored_of(layer, entry));
                *of = layer;
            }
            (None, _) => {
                directory.insert(last.into(), Node::directory(layer, Some(stored_of(layer, entry))));
            }
            (Some(inode), _) => {
                directory.insert(last.into(), Node::Other { inode, layer });
            }
        }
        Ok(())
    }

    fn opaque(&mut self, layer: usize, place: &Found) {
        if let Some(Node::Directory { children, .. }) = self.node_mut(place) {
            children.retain(|_, child| child.strip(layer));
        }
    }

    fn whiteout(&mut self, layer: usize, place: &Found, name: &[u8]) {
        if let Some(Node::Directory { children, .. }) = self.node_mut(place)
            && let Some(node) = children.get_mut(name)
            && !node.strip(layer)
        {
            children.remove(name);
        }
    }

    /// The file that a hard link names, and what it is called in the tree.
    fn linked(&self, target: &[u8]) -> Option<(usize, Found)> {
        let path = parts(target)?;
        let (&last, above) = path.split_last()?;
        let mut place = self.resolve(above)?;
        place.push(last.into());
        match self.node(&place)? {
            Node::Other { inode, .. } => Some((*inode, place)),
            Node::Directory { .. } => None,
        }
    }

    /// Follows links in a name of directories, which need not be there; `None` if they go in circles, or too deep.
    fn resolve(&self, path: &[&[u8]]) -> Option<Found> {
        let mut rest: VecDeque<Box<[u8]>> = path.iter().map(|&part| part.into()).collect();
        let (mut found, mut links) = (Found::new(), 0);
        while let Some(part) = rest.pop_front() {
            if &*part == b".." {
                found.pop();
                continue;
            }
            found.push(part);
            if found.len() > DEEPEST {
                return None;
            }
            let Some(Node::Other { inode, .. }) = self.node(&found) else { continue };
            let Some(target) = &self.inodes[*inode].link else { continue };
            links += 1;
            if links > MOST_LINKS || target.len() > 4096 {
                return None;
            }
            found.pop();
            if target.first() == Some(&b'/') {
                found.clear();
            }
            let parts = target.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
            for part in parts.collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part.into());
            }
        }
        Some(found)
    }

    fn node(&self, place: &Found) -> Option<&Node> {
        place.iter().try_fold(&self.root, |node, part| match node {
            Node::Directory { children, .. } => children.get(part),
            Node::Other { .. } => None,
        })
    }

    fn node_mut(&mut self, place: &Found) -> Option<&mut Node> {
        place.iter().try_fold(&mut self.root, |node, part| match node {
            Node::Directory { children, .. } => children.get_mut(part),
            Node::Other { .. } => None,
        })
    }

    /// What is in a directory, which is made if it is not there; a lower layer's file gives way. `None` if a file of the
    /// same layer is in the way.
    fn make(&mut self, layer: usize, place: &Found) -> Option<&mut BTreeMap<Box<[u8]>, Node>> {
        let mut node = &mut self.root;
        for part in place {
            let Node::Directory { children, .. } = node else { return None };
            let missing = !children.contains_key(part);
            self.held += if missing { part.len() + EACH } else { 0 };
            let child = children.entry(part.clone()).or_insert_with(|| Node::directory(layer, None));
            if matches!(child, Node::Other { layer: of, .. } if *of < layer) {
                *child = Node::directory(layer, None);
            }
            node = child;
        }
        match node {
            Node::Directory { children, .. } => Some(children),
            Node::Other { .. } => None,
        }
    }

    fn warn(&mut self, name: &[u8], text: &str) {
        if self.warnings.len() < MOST_WARNINGS {
            let name: String = printable(&String::from_utf8_lossy(name)).chars().take(200).collect();
            self.warnings.push(format!("{name}: {text}; left out"));
        }
    }
}

fn stored_of(layer: usize, entry: &Entry) -> Stored {
    Stored { layer, start: entry.start, globals: entry.globals.clone() }
}
