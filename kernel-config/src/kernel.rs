//! What a kernel consists of, and its manifest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, cache, tuned};

const MANIFEST: &str = "manifest.json";
/// The configuration that it was built with, where that is known.
pub(crate) const CONFIG: &str = "config";

/// Where a kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A Linux distribution ships it.
    Stock,
    /// Ours, built from the fragments.
    Tuned,
    /// Somebody named a file.
    Given,
}

/// How this kernel is best told which devices there are; the names are those of the VMM's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Description {
    /// ACPI tables: what distributions' kernels understand.
    Acpi,
    /// A flattened device tree.
    DeviceTree,
    /// `virtio_mmio.device=` parameters.
    CommandLine,
}

/// A kernel that is ready to boot. Its paths lie in one directory of the cache and are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// A vmlinux (ELF): what was compressed has been decompressed.
    pub image: PathBuf,
    /// What `uname -r` will say.
    pub release: String,
    /// Where it comes from.
    pub kind: Kind,
    /// The same for people: a package and its version, a source and its fragments' digest, a path.
    pub origin: String,
    /// Modules for [`initramfs::build`](crate::initramfs::build), decompressed, in the order to load them in.
    pub initramfs_modules: Vec<PathBuf>,
    /// A read-only ext4 image with `lib/modules/RELEASE`: modules decompressed, indexes in depmod's text formats.
    pub modules_disk: Option<PathBuf>,
    /// How it wants the machine described.
    pub description: Description,
    /// Parameters that this kernel boots faster with on any machine; may be empty. See also
    /// [`command_line_for`](Self::command_line_for).
    pub command_line: String,
    /// Ticks that it counts in a second (its `CONFIG_HZ`), where its configuration is known. Like the next it is found out when
    /// the kernel is loaded, and no part of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_hz: Option<u32>,
    /// Whether it is known to have virtio-mem, built in or as a module in the initramfs: it can boot with little memory and
    /// grow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub grows: bool,
}

impl Kernel {
    /// The kernel whose manifest lies in this directory.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(MANIFEST);
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        let mut kernel: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::io("understand", &path)(std::io::Error::from(e)))?;
        kernel.each_path(|path| *path = directory.join(&*path));
        let config = fs::read_to_string(directory.join(CONFIG)).unwrap_or_default();
        kernel.timer_hz = timer_hz(&config);
        kernel.grows = config.lines().any(|line| line == "CONFIG_VIRTIO_MEM=y")
            || kernel.initramfs_modules.iter().any(|path| path.to_string_lossy().ends_with("virtio_mem.ko"));
        if kernel.kind == Kind::Tuned {
            kernel.description = tuned::DESCRIPTION;
            kernel.command_line = tuned::COMMAND_LINE.into();
        }
        Ok(kernel)
    }

    /// [`command_line`](Self::command_line), and what else suits a machine of this size.
    ///
    /// Of several CPUs only the first is started; the others are mini-init's to start, when the host has been greeted.
    /// `lock` prefixes stay as they are: with one CPU running, patching them away would cost 5 million instructions, and
    /// patching them back as many when the next one starts. A kernel that somebody ships is told so only where it
    /// saves the second time.
    ///
    /// A tuned kernel with more than 3 GiB at boot is told to clear no 64 MiB of bounce buffers, which virtio devices that
    /// reach all memory never use (24 million).
    pub fn command_line_for(&self, cpus: u8, memory_mib: u64) -> String {
        let mut line = self.command_line.clone();
        let mut add = |parameter: &str| {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(parameter);
        };
        if cpus > 1 {
            add("maxcpus=1");
        }
        if cpus > 1 || self.kind == Kind::Tuned {
            add("noreplace-smp");
        }
        if memory_mib > 3072 && self.kind == Kind::Tuned {
            add("swiotlb=noforce");
        }
        line
    }

    /// Writes the manifest, in which paths are relative to the directory: it may be renamed.
    pub(crate) fn save(mut self, directory: &Path) -> Result<(), Error> {
        self.each_path(|path| {
            if let Ok(relative) = path.strip_prefix(directory) {
                *path = relative.to_owned();
            }
        });
        let path = directory.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&self)
            .map_err(|e| Error::io("describe the kernel in", &path)(std::io::Error::from(e)))?;
        text.push(b'\n');
        cache::write(&path, &text)
    }

    fn each_path(&mut self, change: impl Fn(&mut PathBuf)) {
        change(&mut self.image);
        self.initramfs_modules.iter_mut().for_each(&change);
        self.modules_disk.iter_mut().for_each(&change);
    }
}

/// What a kernel's configuration says of its timer.
fn timer_hz(config: &str) -> Option<u32> {
    config.lines().find_map(|line| line.strip_prefix("CONFIG_HZ="))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_suit_the_machines_size() {
        let mut kernel = Kernel {
            image: PathBuf::new(),
            release: String::new(),
            kind: Kind::Tuned,
            origin: String::new(),
            initramfs_modules: Vec::new(),
            modules_disk: None,
            description: Description::CommandLine,
            command_line: "quick".into(),
            timer_hz: None,
            grows: false,
        };
        assert_eq!(kernel.command_line_for(1, 512), "quick noreplace-smp");
        assert_eq!(kernel.command_line_for(2, 4096), "quick maxcpus=1 noreplace-smp swiotlb=noforce");
        kernel.kind = Kind::Stock;
        kernel.command_line.clear();
        assert_eq!(kernel.command_line_for(1, 8192), "");
        assert_eq!(kernel.command_line_for(4, 8192), "maxcpus=1 noreplace-smp");
    }

    #[test]
    fn a_manifest_survives_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let before = dir.path().join("before");
        fs::create_dir(&before).unwrap();
        let kernel = Kernel {
            image: before.join("vmlinux"),
            release: "6.12".into(),
            kind: Kind::Stock,
            origin: "somewhere".into(),
            initramfs_modules: vec![before.join("modules/ext4.ko")],
            modules_disk: Some(before.join("modules.ext4")),
            description: Description::Acpi,
            command_line: String::new(),
            timer_hz: None,
            grows: false,
        };
        kernel.save(&before).unwrap();
        fs::write(before.join(CONFIG), "# CONFIG_HZ_100 is not set\nCONFIG_HZ_250=y\nCONFIG_HZ=250\n")
            .unwrap();
        let after = dir.path().join("after");
        fs::rename(&before, &after).unwrap();
        let loaded = Kernel::load(&after).unwrap();
        assert_eq!(loaded.image, after.join("vmlinux"));
        assert_eq!(loaded.initramfs_modules, [after.join("modules/ext4.ko")]);
        assert_eq!(loaded.modules_disk, Some(after.join("modules.ext4")));
        assert_eq!((loaded.timer_hz, loaded.grows), (Some(250), false));
        fs::write(after.join(CONFIG), "CONFIG_VIRTIO_MEM=y\n").unwrap();
        assert!(Kernel::load(&after).unwrap().grows);
    }
}
