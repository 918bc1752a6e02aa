//! A distribution as it is named on the command line, and what it is called in the cache's store.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use undercroft::{Digest, KnownFile, Store, store};

use super::bar::Bar;

/// `NAME=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, archive) =
            text.split_once('=').ok_or("expected NAME=FILE, as in deb=bookworm.tar".to_owned())?;
        store::check_name(name).map_err(|error| error.to_string())?;
        Ok(Self { name: name.into(), archive: archive.into() })
    }
}

/// A distribution, which may have to be made from the archive first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) name: String,
    /// Its name in the store: there is one for each name and archive, so that a newer archive makes a new distribution, and
    /// the old one's files are still there for the old archive.
    pub(crate) stored: String,
    pub(crate) archive: PathBuf,
    pub(crate) digest: Digest,
}

/// Finds out what an archive is.
pub(crate) fn prepare(named: &Named, flat: bool, store: &Path) -> anyhow::Result<Distribution> {
    let archive = fs::canonicalize(&named.archive)
        .with_context(|| format!("cannot find {}", named.archive.display()))?;
    let mut bar = Bar::new("reading", &named.name, &archive);
    let known = KnownFile::read(&archive, Some(&Store::digests_in(store)), |read, total| {
        bar.show(read, Some(total));
    })?;
    bar.end();
    let digest = known.digest();
    let stored = stored(&named.name, digest, flat);
    Ok(Distribution { name: named.name.clone(), stored, archive, digest })
}

fn stored(name: &str, digest: Digest, flat: bool) -> String {
    // Within the length of a name.
    format!("{name:.220}-{}{}", digest.short(), if flat { "-flat" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_may_be() {
        let named: Named = "deb=a/b=c.tar".parse().unwrap();
        assert_eq!(named, Named { name: "deb".into(), archive: "a/b=c.tar".into() });
        for bad in ["deb", "=x.tar", "a b=x", "..=x", "a/b=x"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_name_can_be_stored() {
        let digest: Digest = "ab".repeat(32).parse().unwrap();
        assert_eq!(stored("deb", digest, false), "deb-abababababab");
        let long: Named = format!("{}=x", "x".repeat(256)).parse().unwrap();
        store::check_name(&stored(&long.name, digest, true)).unwrap();
    }
}
