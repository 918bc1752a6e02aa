//! Where artefacts live: outside the clone, one directory a thing, complete or not there at all.
//!
//! A thing is made under a name of its own next to its place and renamed when it is whole, under a lock (flock) on
//! `.KEY.lock`; so two programs never make it twice, and one that is killed leaves nothing that looks finished.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::Error;

/// The cache's directory: `$UNDERCROFT_CACHE`, else `$XDG_CACHE_HOME/undercroft`, else `~/.cache/undercroft`. Relative
/// values count as unset, as the XDG specification asks. The directory need not exist yet.
pub fn dir() -> Result<PathBuf, Error> {
    from(|name| std::env::var_os(name).map(PathBuf::from))
}

fn from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Error> {
    let absolute = |name: &str| variable(name).filter(|p| p.is_absolute());
    absolute("UNDERCROFT_CACHE")
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("undercroft")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/undercroft")))
        .ok_or(Error::NoCache)
}

/// The finished directory `KIND/KEY`, made by `make` if it is not there: it gets an empty directory to fill, which
/// becomes the finished one when it returns `Ok`, and is removed when it does not.
pub fn obtain(
    kind: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    obtain_in(&dir()?, kind, key, make)
}

fn obtain_in(
    cache: &Path,
    kind: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let parent = cache.join(kind);
    let finished = parent.join(key);
    if finished.is_dir() {
        return Ok(finished);
    }
    fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let _lock = lock(&parent.join(format!(".{key}.lock")))?;
    if finished.is_dir() {
        return Ok(finished); // another process made it while this one waited
    }
    let partial = parent.join(format!(".{key}.partial"));
    remove_all(&partial)?;
    fs::create_dir(&partial).map_err(Error::io("create", &partial))?;
    if let Err(error) = make(&partial) {
        // The first error is the one to tell; what cannot be removed now is removed by the next attempt.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    fs::rename(&partial, &finished).map_err(Error::io("rename to", &finished))?;
    Ok(finished)
}

/// Waits for the lock file, creating it; held until the value is dropped. The file stays: removing it would let two
/// processes hold two files of one name.
pub fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::Io {
        doing: "lock",
        path: path.into(),
        source: errno.into(),
    })
}

/// Removes a directory and what is in it; one that is not there is fine.
pub(crate) fn remove_all(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Writes a file as a whole or not at all: to a temporary name, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, bytes)
        .map_err(Error::io("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("rename to", path)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_absolute_variable_wins() {
        let look = |set: &'static [(&str, &str)]| {
            from(move |name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)))
        };
        assert_eq!(look(&[("UNDERCROFT_CACHE", "/c"), ("HOME", "/h")]).unwrap(), Path::new("/c"));
        assert_eq!(look(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]).unwrap(), Path::new("/x/undercroft"));
        assert_eq!(
            look(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.cache/undercroft")
        );
        assert!(matches!(look(&[]), Err(Error::NoCache)));
    }

    #[test]
    fn a_failure_leaves_nothing_and_success_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        let failed = obtain_in(cache.path(), "kernels", "k", |dir| {
            fs::write(dir.join("half"), "").unwrap();
            Err(Error::NoCache)
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(cache.path().join("kernels")).unwrap().count(), 1, "only the lock file");

        let made = obtain_in(cache.path(), "kernels", "k", |dir| {
            fs::write(dir.join("whole"), "").unwrap();
            Ok(())
        });
        assert!(made.unwrap().join("whole").exists());
        obtain_in(cache.path(), "kernels", "k", |_| panic!("made twice")).unwrap();
    }
}
