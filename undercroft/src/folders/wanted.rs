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

/// The folders of all distributions; one that is not there yet may be installed while the machine runs.
pub(crate) fn wanted(settings: &Settings, store: &Store, asked: &[Asked]) -> FolderOptions {
    let folder = |name: &str, mount: Mount, origin: String| {
        let record = store.distribution(name).ok().flatten();
        SharedFolder {
            distribution: record.as_ref().map_or(name, |record| &record.name).into(),
            host: mount.host.into(),
            guest: mount.guest,
            read_only: mount.read_only,
            own_users: !settings.of(name).shared_users,
            owner: record.as_ref().and_then(|record| record.settings.default_uid).unwrap_or(OWNER),
            origin,
        }
    };
    let mut shared = Vec::new();
    for name in settings.file.distributions() {
        for mount in settings.of(name).mounts {
            let origin = format!("{}:{}", settings.file.path.display(), mount.line);
            shared.push(folder(name, mount, origin));
        }
    }
    for Asked { distribution, mount } in asked.iter().cloned() {
        // What the file wants of it already comes first.
        if !shared.iter().any(|one| is(one, &distribution, &mount)) {
            shared.push(folder(&distribution, mount, "--mount".into()));
        }
    }
    FolderOptions { program: None, shared }
}

/// Whether this is what is meant.
fn is(folder: &SharedFolder, name: &str, mount: &Mount) -> bool {
    folder.distribution.eq_ignore_ascii_case(name)
        && (folder.host.as_os_str(), &folder.guest, folder.read_only)
            == (mount.host.as_ref(), &mount.guest, mount.read_only)
}

/// How it is with a folder of a running machine, if the machine was started with it.
pub(crate) fn status(machine: &Machine, name: &str, mount: &Mount) -> Option<FolderStatus> {
    machine.folders().into_iter().find(|status| is(&status.folder, name, mount))
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

/// What of a distribution's is wanted now and was not when the machine started, a line each.
pub(crate) fn not_shared(machine: &Machine, name: &str, mounts: &[Mount]) -> Vec<String> {
    let missing = mounts.iter().filter(|mount| status(machine, name, mount).is_none());
    let line = |mount: &Mount| {
        format!(
            "{name} has no {}: {} is shared when the virtual machine is started next (`undercroft shutdown` stops it)",
            mount.guest, mount.host
        )
    };
    missing.map(line).collect()
}
