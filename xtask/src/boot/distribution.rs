//! A distribution as it is named on the command line, and its disk in the cache.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 256 || !name.chars().all(fits) || matches!(name, "." | "..") {
            return Err(format!("{name:?} is no name: letters, digits, '.', '_' and '-', at most 256"));
        }
        Ok(Self { name: name.into(), archive: archive.into() })
    }
}

/// A distribution and its disk, which may have to be made from the archive first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Distribution {
    pub(crate) name: String,
    pub(crate) disk: PathBuf,
    pub(crate) archive: PathBuf,
}

/// Who holds this is the only one that uses the disk.
pub(crate) type Lock = Flock<File>;

/// Finds or names the disk of an archive: one for each name and content.
pub(crate) fn prepare(named: &Named, cache: &Path) -> anyhow::Result<(Distribution, Lock)> {
    let archive = fs::canonicalize(&named.archive)
        .with_context(|| format!("cannot find {}", named.archive.display()))?;
    let directory = cache.join("distros");
    fs::create_dir_all(directory.join("digests"))
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let digest = digest(&archive, &directory.join("digests"))?;
    let key = format!("{}-{}", named.name, &digest[..16]);
    let lock_path = directory.join(format!(".{key}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .with_context(|| format!("cannot open {}", lock_path.display()))?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "{} is in use by another `cargo xtask boot`: end that one, or give the archive another name (--distro NAME={})",
            named.name,
            archive.display()
        ),
        Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
    };
    let disk = directory.join(format!("{key}.ext4"));
    Ok((Distribution { name: named.name.clone(), disk, archive }, lock))
}

/// The SHA-256 of a file, in hexadecimal; remembered as long as the file's identity, length and time are the same.
fn digest(path: &Path, memory: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let about = file.metadata().with_context(cannot)?;
    let identity =
        format!("{}-{}-{}-{}.{}", about.dev(), about.ino(), about.len(), about.mtime(), about.mtime_nsec());
    let remembered = memory.join(identity);
    if let Ok(digest) = fs::read_to_string(&remembered)
        && digest.len() == 64
    {
        return Ok(digest);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(cannot)? {
            0 => break,
            n => hash.write_all(&buffer[..n])?,
        }
    }
    let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // It is only remembered for speed.
    let _ = fs::write(&remembered, &digest);
    Ok(digest)
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
}
