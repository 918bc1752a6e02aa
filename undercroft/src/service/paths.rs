//! Where the service keeps what: the XDG base directories (freedesktop.org, XDG Base Directory Specification 0.8).

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

use super::error::ServiceError;

/// The folders and files of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The socket and the lock: `$XDG_RUNTIME_DIR/undercroft`, this user's alone.
    pub runtime: PathBuf,
    /// Distributions: `$XDG_DATA_HOME/undercroft`.
    pub data: PathBuf,
    /// Logs: `$XDG_STATE_HOME/undercroft`.
    pub state: PathBuf,
    /// What can be made again: `$XDG_CACHE_HOME/undercroft`.
    pub cache: PathBuf,
    /// Where the host's configuration file may be, see [`configuration`](Self::configuration).
    pub configurations: Vec<PathBuf>,
}

impl Paths {
    /// The parts that were [brought](super::bring) by an archive.
    pub fn parts(&self) -> PathBuf {
        self.data.join("parts")
    }

    /// This user's, from the environment.
    pub fn of_user() -> Result<Self> {
        Self::from(|name| std::env::var_os(name), rustix::process::geteuid().as_raw())
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Self> {
        // The specification: a path that is not absolute is to be ignored.
        let given = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = given("HOME").ok_or(ServiceError::NoHome);
        let place = |name: &str, below: &str| match given(name) {
            Some(path) => Ok(path.join("undercroft")),
            None => home
                .as_ref()
                .map(|home| home.join(below).join("undercroft"))
                .map_err(|_| ServiceError::NoHome),
        };
        let runtime = match given("XDG_RUNTIME_DIR") {
            Some(path) => path.join("undercroft"),
            None => PathBuf::from(format!("/tmp/undercroft-{uid}")),
        };
        let mut configurations = vec![place("XDG_CONFIG_HOME", ".config")?.join(".wslconfig")];
        configurations.extend(home.as_ref().ok().map(|home| home.join(".wslconfig")));
        Ok(Self {
            runtime,
            data: place("XDG_DATA_HOME", ".local/share")?,
            state: place("XDG_STATE_HOME", ".local/state")?,
            cache: place("XDG_CACHE_HOME", ".cache")?,
            configurations,
        })
    }

    /// The host's configuration file: the first one that is there now, and where one would be if none is. It may come, or go, while
    /// the service runs.
    pub fn configuration(&self) -> &Path {
        let there = self.configurations.iter().find(|path| path.exists());
        there.or(self.configurations.first()).map_or(Path::new(".wslconfig"), PathBuf::as_path)
    }

    /// Makes the folders; the runtime one must be this user's own.
    pub fn make(&self) -> Result<()> {
        for folder in [&self.runtime, &self.data, &self.state, &self.cache] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|source| Error::File { what: "create", path: folder.clone(), source })?;
        }
        let about = fs::symlink_metadata(&self.runtime);
        let about =
            about.map_err(|source| Error::File { what: "look at", path: self.runtime.clone(), source })?;
        let own = about.is_dir() && about.uid() == rustix::process::geteuid().as_raw();
        if own && about.mode() & 0o077 == 0 {
            Ok(())
        } else {
            Err(ServiceError::NotPrivate(self.runtime.clone()).into())
        }
    }

    /// The service's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("service.sock")
    }

    /// Who serves holds a lock on it.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("service.lock")
    }

    /// What the service says, for people.
    pub fn log(&self) -> PathBuf {
        self.state.join("service.log")
    }

    /// What the guest's console says.
    pub fn console(&self) -> PathBuf {
        self.state.join("console.log")
    }
}

#[cfg(test)]
impl Paths {
    /// All of them in one folder, and there.
    pub(super) fn below(folder: &Path) -> Self {
        let below = |name: &str| folder.join(name);
        let paths = Self {
            runtime: below("run"),
            data: below("data"),
            state: below("state"),
            cache: below("cache"),
            configurations: vec![below(".wslconfig"), below("home.wslconfig")],
        };
        paths.make().unwrap();
        paths
    }
}

/// Renames a file to `NAME.1`, so that a new one begins and the last one is kept.
pub(super) fn rotate(path: &Path) {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    // Most often there is none.
    let _ = fs::rename(path, old);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_specification() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), OsString::from(v))).collect();
            Paths::from(|name| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()), 12)
        };
        let plain = of(&[("HOME", "/home/a")]).unwrap();
        assert_eq!(plain.data, Path::new("/home/a/.local/share/undercroft"));
        assert_eq!(plain.socket(), Path::new("/tmp/undercroft-12/service.sock"));
        assert_eq!(plain.configuration(), Path::new("/home/a/.config/undercroft/.wslconfig"));
        let given =
            of(&[("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/12"), ("XDG_DATA_HOME", "data")])
                .unwrap();
        assert_eq!(given.runtime, Path::new("/run/user/12/undercroft"));
        assert_eq!(given.data, plain.data, "a relative path is no place");
        assert!(of(&[]).is_err());
    }
}
