//! Folders of the host's: a virtio-fs device each, mounted for one distribution.
//!
//! Owners in them are made to fit by the process that serves them: it knows the distribution's range. (A mount of virtiofs can be
//! idmapped from Linux 6.12 on only, and not with every server.) The kernel asks for its driver by the file system's name.

use undercroft_protocol::command::{FOLDERS_MAX, Folder};

use super::kernel::{Attributes, Kernel};

/// Mounts those that can be had, and tells which by number; of the others it is told why.
pub(super) fn mount<K: Kernel>(
    kernel: &mut K,
    folders: &[Folder],
    warn: &mut dyn FnMut(String),
) -> (Vec<K::Tree>, Vec<u8>) {
    let (mut trees, mut which) = (Vec::new(), Vec::new());
    for (number, Folder { tag, place, read_only }) in (0_u8..).zip(folders.iter().take(FOLDERS_MAX)) {
        let mut forbid = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
        if *read_only {
            forbid |= Attributes::MOUNT_ATTR_RDONLY;
        }
        match kernel.file_system("virtiofs", &[("source", tag)], forbid) {
            Ok(tree) => {
                trees.push(tree);
                which.push(number);
            }
            Err(error) => warn(format!("{place}, a folder of the host's, cannot be had: {error}")),
        }
    }
    if folders.len() > FOLDERS_MAX {
        warn(format!("{} folders of the host's are more than {FOLDERS_MAX}", folders.len()));
    }
    (trees, which)
}

#[cfg(test)]
mod tests {
    use super::{super::kernel::recording::Recording, *};

    #[test]
    fn what_cannot_be_had_is_told_and_the_rest_is_had() {
        let folder = |tag: &str| Folder { tag: tag.into(), place: format!("/{tag}"), read_only: false };
        let mut kernel = Recording { missing: vec!["virtiofs source=b"], ..Recording::default() };
        let mut warnings = Vec::new();
        let folders = ["a", "b", "c"].map(folder);
        let (trees, which) = mount(&mut kernel, &folders, &mut |warning| warnings.push(warning));
        assert_eq!((trees.len(), which), (2, vec![0, 2]));
        assert!(warnings.len() == 1 && warnings[0].starts_with("/b, a folder"), "{warnings:?}");
    }
}
