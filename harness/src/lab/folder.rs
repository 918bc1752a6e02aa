//! Where a lab lives on the host, and what tells one lab from another.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use undercroft_kernel_config::cache;

use super::LabError;
use crate::guest;

/// The folder of all labs of this user: below `$XDG_RUNTIME_DIR`, else below the cache; nobody else may enter it.
pub(super) fn labs() -> Result<PathBuf, LabError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_dir());
    let folder = match runtime {
        Some(runtime) => runtime.join("undercroft-lab"),
        None => cache::dir()?.join("lab/run"),
    };
    make_private(&folder)?;
    Ok(folder)
}

/// Makes a folder that only its owner may enter.
pub(super) fn make_private(folder: &Path) -> Result<(), LabError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(LabError::at(format!("making {}", folder.display())))?;
    let owner = fs::metadata(folder).map_err(LabError::at(format!("looking at {}", folder.display())))?.uid();
    if owner != nix::unistd::getuid().as_raw() {
        let error = std::io::Error::other(format!("it belongs to user {owner}"));
        return Err(LabError::at(format!("using {}", folder.display()))(error));
    }
    Ok(())
}

/// The folders that can be written to in the lab: the work tree, cargo's target directory, the cache, and those named in
/// `UNDERCROFT_LAB_WRITABLE` (separated by colons). They exist, and none is below another.
pub(super) fn writable() -> Result<Vec<PathBuf>, LabError> {
    let cache = cache::dir()?;
    fs::create_dir_all(&cache).map_err(LabError::at(format!("making {}", cache.display())))?;
    let mut folders = vec![guest::workspace(), guest::target(), cache];
    if let Some(more) = std::env::var_os("UNDERCROFT_LAB_WRITABLE") {
        folders.extend(std::env::split_paths(&more));
    }
    let exist = folders.iter().filter_map(|f| fs::canonicalize(f).ok()).collect();
    Ok(outermost(exist))
}

fn outermost(mut folders: Vec<PathBuf>) -> Vec<PathBuf> {
    folders.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for folder in folders {
        if !kept.iter().any(|k| folder.starts_with(k)) {
            kept.push(folder);
        }
    }
    kept
}

/// A short digest of all that makes a lab what it is.
pub(super) fn identity(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_below_another_is_not_mounted_twice() {
        let folders = ["/w/target", "/c", "/w", "/wide", "/w"].map(PathBuf::from).to_vec();
        assert_eq!(outermost(folders), ["/c", "/w", "/wide"].map(PathBuf::from));
    }

    #[test]
    fn the_identity_knows_where_a_part_ends() {
        assert_ne!(identity(&[b"ab", b"c"]), identity(&[b"a", b"bc"]));
        assert_eq!(identity(&[b"ab"]).len(), 16);
    }
}
