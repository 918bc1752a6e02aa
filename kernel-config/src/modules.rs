//! A kernel's modules: found, decompressed, put in order, and described for whoever loads them in the guest.
//!
//! The indexes that `depmod` would write are made here from what the modules say of themselves, so that no kmod is
//! needed on the host, and so that they are the same everywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Error, compression,
    modinfo::{self, ModInfo},
};

/// What the utility VM cannot do without before it has its modules disk, as modules or built in.
const NEEDED: &[&str] =
    &["virtio_mmio", "virtio_blk", "ext4", "virtio_scsi", "sd_mod", "vmw_vsock_virtio_transport", "overlay"];

/// What it loads early if there is such a module.
const WELCOME: &[&str] = &["virtio_rng", "virtio_balloon", "virtio_mem", "virtio_console", "pvpanic_mmio"];

/// Where a distribution's kernel has the modules that a guest without hardware can have a use for; the rest (thousands
/// of drivers) does not go onto the modules disk unless one of these depends on it.
const USEFUL: &[&str] = &[
    "kernel/arch/",
    "kernel/block/",
    "kernel/crypto/",
    "kernel/fs/",
    "kernel/kernel/",
    "kernel/lib/",
    "kernel/mm/",
    "kernel/net/",
    "kernel/security/",
    "kernel/virt/",
    "kernel/drivers/block/",
    "kernel/drivers/char/hw_random/",
    "kernel/drivers/char/virtio_console",
    "kernel/drivers/dax/",
    "kernel/drivers/md/",
    "kernel/drivers/misc/pvpanic/",
    "kernel/drivers/net/",
    "kernel/drivers/nvdimm/",
    "kernel/drivers/scsi/sd_mod",
    "kernel/drivers/scsi/sg.",
    "kernel/drivers/scsi/sr_mod",
    "kernel/drivers/scsi/virtio_scsi",
    "kernel/drivers/target/",
    "kernel/drivers/vhost/",
    "kernel/drivers/virtio/",
];

/// Folders of those that hold drivers for hardware after all.
const USELESS: &[&str] = &[
    "kernel/net/bluetooth/",
    "kernel/net/mac80211/",
    "kernel/net/wireless/",
    "kernel/drivers/block/drbd/",
    "kernel/drivers/net/arcnet/",
    "kernel/drivers/net/can/",
    "kernel/drivers/net/dsa/",
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/fddi/",
    "kernel/drivers/net/hyperv/",
    "kernel/drivers/net/ieee802154/",
    "kernel/drivers/net/mdio/",
    "kernel/drivers/net/pcs/",
    "kernel/drivers/net/phy/",
    "kernel/drivers/net/usb/",
    "kernel/drivers/net/wan/",
    "kernel/drivers/net/wireless/",
    "kernel/drivers/net/wwan/",
];

/// Aliases that modules themselves lack: `ip link add type bridge` also loads br_netfilter, which Docker and Kubernetes
/// load by hand where they may; no program in a distribution may. It depends on bridge, so it brings it.
const MORE_ALIASES: &[(&str, &str)] = &[("rtnl_link_bridge", "br_netfilter")];

/// Which of a tree's modules go onto the modules disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All: the kernel was configured for this machine.
    All,
    /// Those that a guest without hardware can have a use for, and what they depend on.
    Useful,
}

/// A module's name as `lsmod` shows it: the file's without its endings, `-` as `_`.
fn name_of(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".gz" | ".zst").then(|| stem.replace('-', "_"))
}

/// One module: where it lies below its tree, decompressed or not.
struct Module {
    /// Below `lib/modules/RELEASE`, with its compression's ending.
    path: PathBuf,
}

/// The modules below one `lib/modules/RELEASE`.
pub(crate) struct Tree {
    root: PathBuf,
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    builtin_aliases: BTreeSet<String>,
}

impl Tree {
    /// Reads the names below `root`, and which modules are built in.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let mut modules = BTreeMap::new();
        collect(root, Path::new("kernel"), &mut modules)?;
        let list = fs::read_to_string(root.join("modules.builtin"))
            .map_err(Error::io("read", root.join("modules.builtin")))?;
        let builtin = list.lines().filter_map(|line| name_of(Path::new(line))).collect();
        // "NAME.alias=PATTERN" strings that end in NUL; old kernels have no such file.
        let modinfo = fs::read(root.join("modules.builtin.modinfo")).unwrap_or_default();
        let builtin_aliases = modinfo
            .split(|&b| b == 0)
            .filter_map(|entry| str::from_utf8(entry).ok()?.split_once(".alias="))
            .map(|(_, alias)| alias.to_owned())
            .collect();
        Ok(Self { root: root.into(), modules, builtin, builtin_aliases })
    }

    /// Whether everything that the utility VM needs is here.
    pub(crate) fn suits(&self) -> Result<(), Error> {
        match NEEDED.iter().find(|name| !self.has(name)) {
            None => Ok(()),
            Some(name) => Err(Error::NoModule { module: (*name).into(), modules: self.root.clone() }),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }

    fn read(&self, module: &Module) -> Result<(Vec<u8>, ModInfo), Error> {
        let path = self.root.join(&module.path);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let object = compression::decompress(&path, bytes)?;
        let info = modinfo::read(&object).map_err(|problem| Error::Module { path, problem })?;
        Ok((object, info))
    }

    /// Writes what the utility VM needs early, decompressed, into `out` as `NAME.ko`; gives their paths back in an order
    /// in which each comes after what it depends on. Empty if all of it is built in.
    pub(crate) fn extract_early(&self, out: &Path) -> Result<Vec<PathBuf>, Error> {
        self.suits()?;
        let mut order = Vec::new();
        for name in NEEDED.iter().chain(WELCOME) {
            self.place(name, &mut order, &mut BTreeSet::new())?;
        }
        let mut paths = Vec::new();
        if !order.is_empty() {
            fs::create_dir_all(out).map_err(Error::io("create", out))?;
        }
        for (name, object) in order {
            let path = out.join(format!("{name}.ko"));
            fs::write(&path, object).map_err(Error::io("write", &path))?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Puts the module after all that it depends on; nothing if it is built in, absent, or there already.
    fn place(
        &self,
        name: &str,
        order: &mut Vec<(String, Vec<u8>)>,
        walked: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        let name = name.replace('-', "_");
        // `walked` ends cycles, which only damaged modules have.
        if order.iter().any(|(placed, _)| *placed == name) || !walked.insert(name.clone()) {
            return Ok(());
        }
        let Some(module) = self.modules.get(&name) else { return Ok(()) };
        let (object, info) = self.read(module)?;
        for wish in &info.pre {
            // A soft dependency may be an alias (ext4 asks for "crc32c"); built-in code satisfies most of them, and the
            // kernel asks for the rest itself once the modules disk is there.
            if !self.builtin_aliases.contains(wish) {
                self.place(wish, order, walked)?;
            }
        }
        for dependency in &info.depends {
            self.place(dependency, order, walked)?;
        }
        order.push((name, object));
        Ok(())
    }

    /// Fills `out` (a `lib/modules/RELEASE` to be) with modules, decompressed, and with the indexes
    /// `modules.dep`, `modules.alias`, `modules.softdep`, `modules.devname` and `modules.builtin` in depmod's text formats.
    pub(crate) fn install(&self, choice: Choice, out: &Path) -> Result<(), Error> {
        let mut installed: BTreeMap<String, (PathBuf, ModInfo)> = BTreeMap::new();
        let mut wanted: Vec<String> = self
            .modules
            .iter()
            .filter(|(_, m)| choice == Choice::All || is_useful(&m.path))
            .map(|(n, _)| n.clone())
            .collect();
        while let Some(name) = wanted.pop() {
            if installed.contains_key(&name) {
                continue;
            }
            let Some(module) = self.modules.get(&name) else { continue };
            let (object, info) = self.read(module)?;
            let path = decompressed(&module.path);
            let target = out.join(&path);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            fs::write(&target, object).map_err(Error::io("write", &target))?;
            wanted.extend(info.depends.iter().chain(&info.pre).map(|d| d.replace('-', "_")));
            installed.insert(name, (path, info));
        }
        fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let builtin: String = self.builtin.iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "kernel/{name}.ko");
            text
        });
        let softdep: String = installed
            .iter()
            .flat_map(|(name, (_, info))| info.softdeps.iter().map(move |s| format!("softdep {name} {s}\n")))
            .collect();
        let indexes = [
            ("modules.builtin", builtin),
            ("modules.dep", dep(&installed)),
            ("modules.alias", alias(&installed)),
            ("modules.softdep", softdep),
            ("modules.devname", devname(&installed)),
        ];
        for (name, text) in indexes {
            fs::write(out.join(name), text).map_err(Error::io("write", out.join(name)))?;
        }
        Ok(())
    }
}

fn is_useful(path: &Path) -> bool {
    let path = path.to_str().unwrap_or_default();
    USEFUL.iter().any(|p| path.starts_with(p)) && !USELESS.iter().any(|p| path.starts_with(p))
}

/// The path without its compression's ending.
fn decompressed(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|e| e == "ko") { path.into() } else { path.with_extension("") }
}

fn collect(root: &Path, below: &Path, modules: &mut BTreeMap<String, Module>) -> Result<(), Error> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
        let entry = entry.map_err(Error::io("list", &directory))?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type().map_err(Error::io("look at", entry.path()))?;
        if kind.is_dir() {
            collect(root, &path, modules)?;
        } else if let Some(name) = name_of(&path) {
            modules.insert(name, Module { path });
        }
    }
    Ok(())
}

/// `PATH: DEPENDENCIES`, all of them, the direct and the indirect; whoever loads them begins at the end of the line.
fn dep(installed: &BTreeMap<String, (PathBuf, ModInfo)>) -> String {
    fn walk<'a>(
        name: &str,
        installed: &'a BTreeMap<String, (PathBuf, ModInfo)>,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a Path>,
    ) {
        let Some((name, (path, info))) = installed.get_key_value(name.replace('-', "_").as_str()) else {
            return;
        };
        if seen.insert(name) {
            for dependency in &info.depends {
                walk(dependency, installed, seen, order);
            }
            order.push(path);
        }
    }
    let mut text = String::new();
    for (name, (path, info)) in installed {
        let _ = write!(text, "{}:", path.display());
        let (mut seen, mut order) = (BTreeSet::from([name.as_str()]), Vec::new());
        for dependency in &info.depends {
            walk(dependency, installed, &mut seen, &mut order);
        }
        for dependency in order.iter().rev() {
            let _ = write!(text, " {}", dependency.display());
        }
        text.push('\n');
    }
    text
}

/// `alias PATTERN NAME`; in patterns `-` is `_` outside of brackets, as depmod has it.
fn alias(installed: &BTreeMap<String, (PathBuf, ModInfo)>) -> String {
    let mut text = String::new();
    for (name, (_, info)) in installed {
        for alias in &info.aliases {
            let mut bracket = false;
            let alias: String = alias
                .chars()
                .map(|c| {
                    match c {
                        '[' => bracket = true,
                        ']' => bracket = false,
                        '-' if !bracket => return '_',
                        _ => {}
                    }
                    c
                })
                .collect();
            let _ = writeln!(text, "alias {alias} {name}");
        }
    }
    for (alias, name) in MORE_ALIASES {
        if installed.contains_key(*name) {
            let _ = writeln!(text, "alias {alias} {name}");
        }
    }
    text
}

/// `NAME PATH cMAJOR:MINOR`: device nodes whose opening loads a module, for who wants them to be there before.
fn devname(installed: &BTreeMap<String, (PathBuf, ModInfo)>) -> String {
    let mut text = String::new();
    for (name, (_, info)) in installed {
        let find = |start: &str| info.aliases.iter().find_map(|a| a.strip_prefix(start));
        let number = find("char-major-").map(|n| ('c', n)).or_else(|| find("block-major-").map(|n| ('b', n)));
        let (Some(path), Some((kind, number))) = (find("devname:"), number) else { continue };
        if let Some((major, minor)) = number.split_once('-').filter(|(_, minor)| *minor != "*") {
            let _ = writeln!(text, "{name} {path} {kind}{major}:{minor}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modinfo::tests::object;

    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kernel")).unwrap();
        fs::write(root.path().join("modules.builtin"), builtin).unwrap();
        for (path, modinfo) in modules {
            let path = root.path().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let object = object(modinfo);
            let gz = path.extension().is_some_and(|e| e == "zst");
            fs::write(&path, if gz { zstd::encode_all(&object[..], 1).unwrap() } else { object }).unwrap();
        }
        root
    }

    fn debian_like() -> tempfile::TempDir {
        tree(
            &[
                ("drivers/virtio/virtio_mmio.ko", "license=GPL\0"),
                ("drivers/block/virtio_blk.ko.zst", "depends=\0"),
                ("drivers/scsi/virtio_scsi.ko", "depends=scsi_mod\0"),
                ("drivers/scsi/scsi_mod.ko", "depends=scsi_common\0"),
                ("drivers/scsi/scsi_common.ko", "x=\0"),
                ("drivers/scsi/sd_mod.ko", "depends=scsi_mod,scsi_common\0"),
                ("drivers/scsi/st.ko", "depends=scsi_mod\0"),
                ("drivers/char/hw_random/virtio-rng.ko", "alias=virtio:d00000004v*\0"),
                ("net/vmw_vsock/vmw_vsock_virtio_transport.ko", "depends=vsock\0"),
                ("net/vmw_vsock/vsock.ko", "alias=net-pf-40\0"),
                ("net/bridge/bridge.ko", "alias=rtnl-link-bridge\0"),
                ("net/bridge/br_netfilter.ko", "depends=bridge\0"),
                ("drivers/vhost/vhost_net.ko", "alias=devname:vhost-net\0alias=char-major-10-238\0"),
                ("fs/overlayfs/overlay.ko", "alias=fs-overlay\0softdep=pre: nothing\0"),
            ],
            "kernel/fs/ext4/ext4.ko\n",
        )
    }

    #[test]
    fn each_comes_after_what_it_depends_on() {
        let root = debian_like();
        let out = tempfile::tempdir().unwrap();
        let order = Tree::open(root.path()).unwrap().extract_early(out.path()).unwrap();
        let names: Vec<_> = order.iter().map(|p| p.file_stem().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "virtio_mmio",
                "virtio_blk",
                "scsi_common",
                "scsi_mod",
                "virtio_scsi",
                "sd_mod",
                "vsock",
                "vmw_vsock_virtio_transport",
                "overlay",
                "virtio_rng"
            ]
        );
        assert!(fs::read(&order[1]).unwrap().starts_with(b"\x7fELF"), "decompressed");
    }

    #[test]
    fn the_indexes_are_depmods() {
        let root = debian_like();
        let out = tempfile::tempdir().unwrap();
        Tree::open(root.path()).unwrap().install(Choice::Useful, out.path()).unwrap();
        let dep = fs::read_to_string(out.path().join("modules.dep")).unwrap();
        let line = "kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko \
                    kernel/drivers/scsi/scsi_common.ko\n";
        assert!(dep.contains(line), "{dep}");
        assert!(!dep.contains("st.ko"), "a tape drive is of no use: {dep}");
        let alias = fs::read_to_string(out.path().join("modules.alias")).unwrap();
        assert!(alias.contains("alias net_pf_40 vsock\n") && alias.contains("alias fs_overlay overlay\n"));
        assert!(alias.contains("alias rtnl_link_bridge br_netfilter\n"), "{alias}");
        let devname = fs::read_to_string(out.path().join("modules.devname")).unwrap();
        assert_eq!(devname, "vhost_net vhost-net c10:238\n");
        assert!(out.path().join("kernel/drivers/block/virtio_blk.ko").exists());
    }

    #[test]
    fn a_kernel_that_lacks_something_does_not_suit() {
        let root = tree(&[("fs/ext4/ext4.ko", "x=\0")], "kernel/drivers/virtio/virtio_mmio.ko\n");
        let lacks = Tree::open(root.path()).unwrap().suits();
        assert!(matches!(lacks, Err(Error::NoModule { module, .. }) if module == "virtio_blk"));
    }

    #[test]
    fn a_cycle_ends() {
        let root = tree(&[("fs/a.ko", "depends=b\0"), ("fs/b.ko", "depends=a\0")], "");
        let out = tempfile::tempdir().unwrap();
        Tree::open(root.path()).unwrap().install(Choice::Useful, out.path()).unwrap();
    }
}
