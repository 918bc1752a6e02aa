//! What the configuration wants of the host's folders, and what somebody has asked for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use undercroft_config::Mount;

use super::{FolderOptions, FolderStatus, OWNER, SharedFolder};
use crate::{Machine, Store, service::Settings};

/// A folder that somebody asked for at the command line, until the machine stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) distribution: String,
    pub(crate) mount: Mount,
}

impl Asked {
    /// Whether both are seen at the same place.
    pub(crate) fn has_place_of(&self, other: &Self) -> bool {
        self.distribution.eq_ignore_ascii_case(&other.distribution) && self.mount.guest == other.mount.guest
    }
}

/// The folders of all distributions; one that is not there yet may be installed while the machine runs.
pub(crate) fn wanted(settings: &Settings, store: &Store, asked: &[Asked]) -> FolderOptions {
    let mut names: Vec<&str> = settings.file.distributions();
    names.extend(asked.iter().map(|asked| asked.distribution.as_str()));
    names.sort_unstable_by_key(|name| name.to_ascii_lowercase());
    names.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    let shared = names.into_iter().flat_map(|name| of(name, settings, store, asked)).collect();
    FolderOptions { program: None, shared }
}

/// One distribution's.
pub(crate) fn of(name: &str, settings: &Settings, store: &Store, asked: &[Asked]) -> Vec<SharedFolder> {
    let (of, record) = (settings.of(name), store.distribution(name).ok().flatten());
    let folder = |mount: Mount, origin: String| SharedFolder {
        distribution: record.as_ref().map_or(name, |record| &record.name).into(),
        host: mount.host.into(),
        guest: mount.guest,
        read_only: mount.read_only,
        own_users: !of.shared_users && record.as_ref().is_none_or(|record| record.settings.own_users),
        owner: record.as_ref().and_then(|record| record.settings.default_uid).unwrap_or(OWNER),
        origin,
    };
    let line = |mount: &Mount| format!("{}:{}", settings.file.path.display(), mount.line);
    let mut shared: Vec<_> = of.mounts.iter().map(|mount| folder(mount.clone(), line(mount))).collect();
    for Asked { distribution, mount } in asked {
        // What the file wants of it already comes first.
        if distribution.eq_ignore_ascii_case(name) && !shared.iter().any(|one| one.is(name, mount)) {
            shared.push(folder(mount.clone(), "--mount".into()));
        }
    }
    shared
}

impl SharedFolder {
    /// Whether this is what is meant.
    pub(crate) fn is(&self, name: &str, mount: &Mount) -> bool {
        self.distribution.eq_ignore_ascii_case(name)
            && (self.host.as_os_str(), &self.guest, self.read_only)
                == (mount.host.as_ref(), &mount.guest, mount.read_only)
    }

    /// Whether it is the same one, whoever wants it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.distribution.eq_ignore_ascii_case(&other.distribution)
            && (&self.host, &self.guest, self.read_only) == (&other.host, &other.guest, other.read_only)
    }
}

/// How it is with a folder of a running machine, if the machine was started with it.
pub(crate) fn status(machine: &Machine, name: &str, mount: &Mount) -> Option<FolderStatus> {
    machine.folders().into_iter().find(|status| !status.later && status.folder.is(name, mount))
}

/// Where a distribution sees a path of the host's, if one of its folders has it.
pub(crate) fn inside(machine: &Machine, name: &str, path: &Path) -> Option<PathBuf> {
    let seen = |status: FolderStatus| {
        let SharedFolder { distribution, host, guest, .. } = status.folder;
        let is_its = status.trouble.is_none() && distribution.eq_ignore_ascii_case(name);
        let host = is_its.then(|| fs::canonicalize(host).ok())??;
        let rest = path.strip_prefix(&host).ok()?;
        // Of folders within folders the innermost one.
        Some((host.as_os_str().len(), Path::new(&guest).components().chain(rest.components()).collect()))
    };
    machine.folders().into_iter().filter_map(seen).max_by_key(|(length, _)| *length).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_folders() {
        let asked = |distribution: &str, mount: &str| Asked {
            distribution: distribution.into(),
            mount: mount.parse().unwrap(),
        };
        let first = asked("deb", "/a:/src");
        assert!(first.has_place_of(&asked("Deb", "/b:/src:ro")));
        assert!(
            !first.has_place_of(&asked("deb", "/a:/src/a"))
                && !first.has_place_of(&asked("other", "/a:/src"))
        );
    }
}
