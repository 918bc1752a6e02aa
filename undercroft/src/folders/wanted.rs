//! What the configuration wants of the host's folders.

use undercroft_config::value::Mount;

use super::{FolderOptions, OWNER, SharedFolder};
use crate::{Machine, Store, service::Settings};

/// The folders of all distributions; one that is not there yet may be installed while the machine runs.
pub(crate) fn wanted(settings: &Settings, store: &Store) -> FolderOptions {
    let mut shared = Vec::new();
    for name in settings.file.distributions() {
        let record = store.distribution(name).ok().flatten();
        let of = settings.of(name);
        for Mount { host, guest, read_only, line } in of.mounts {
            shared.push(SharedFolder {
                distribution: record.as_ref().map_or(name, |record| &record.name).into(),
                host: host.into(),
                guest,
                read_only,
                own_users: !of.shared_users,
                owner: record.as_ref().and_then(|record| record.settings.default_uid).unwrap_or(OWNER),
                origin: format!("{}:{line}", settings.file.path.display()),
            });
        }
    }
    FolderOptions { program: None, shared }
}

/// What of a distribution's is wanted now and was not when the machine started, a line each.
pub(crate) fn not_shared(machine: &Machine, name: &str, mounts: &[Mount]) -> Vec<String> {
    let there = machine.folders();
    let is_there = |mount: &&Mount| {
        there.iter().any(|status| {
            let folder = &status.folder;
            folder.distribution.eq_ignore_ascii_case(name)
                && (folder.host.as_os_str(), &folder.guest, folder.read_only)
                    == (mount.host.as_ref(), &mount.guest, mount.read_only)
        })
    };
    let missing = mounts.iter().filter(|mount| !is_there(mount));
    let line = |mount: &Mount| {
        format!(
            "{name} has no {}: {} is shared when the virtual machine is started next (`undercroft shutdown` stops it)",
            mount.guest, mount.host
        )
    };
    missing.map(line).collect()
}
