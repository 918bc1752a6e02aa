//! A stock kernel: the host's own, or Debian's for clouds.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{
    Description, Error, Kernel, Kind, apt, cache, kernel,
    modules::{Choice, Tree},
    modules_disk, payload, release,
};

/// Which of Debian's packages: 6.12 is the LTS that Debian 13 and Debian 12's backports and security archives have.
const PACKAGE: &str = r"^linux-image-6\.12\.[^ ]*-cloud-amd64-unsigned$";

/// Ends the names of cache entries; changes when what is in them does, so that old ones are made anew.
const LAYOUT: &str = "-3";

/// Kernels older than this lack what mini-init builds on (mount_setattr with idmapped mounts of ext4, cgroup.kill).
const OLDEST: &str = "6.1";

/// The stock kernel: the host's own from `/boot` if it is readable and has, as modules or built in, all that the utility
/// VM needs; else the newest of Debian's 6.12 cloud kernels in the cache; else the one that apt offers. Either is
/// unpacked once and cached.
pub fn stock() -> Result<Kernel, Error> {
    match (host(), newest_cached()) {
        (Some((image, modules)), _) => host_kernel(&image, &modules),
        (None, Some(directory)) => Kernel::load(&directory),
        (None, None) => debian(),
    }
}

/// As [`stock`], but apt is asked whether there is a newer one: a second's work, for who asks for it.
pub fn newest_stock() -> Result<Kernel, Error> {
    match host() {
        Some((image, modules)) => host_kernel(&image, &modules),
        None => debian(),
    }
}

/// The host's running kernel, or else its newest, with its modules.
fn host() -> Option<(PathBuf, PathBuf)> {
    let running = nix::sys::utsname::uname().ok()?.release().to_str()?.to_owned();
    let mut releases: Vec<String> = fs::read_dir("/lib/modules")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    releases.sort_by(|a, b| apt::natural(b, a));
    releases.sort_by_key(|r| *r != running); // stable: the running one first, then the newest
    releases.iter().find_map(|release| {
        let modules = Path::new("/lib/modules").join(release);
        let images = [Path::new("/boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|path| fs::File::open(path).is_ok())?;
        let new_enough = apt::natural(release, OLDEST).is_ge();
        (new_enough && Tree::open(&modules).ok()?.suits().is_ok()).then_some((image, modules))
    })
}

fn host_kernel(image: &Path, modules: &Path) -> Result<Kernel, Error> {
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = format!("host-{release}-{}{LAYOUT}", &digest(image)?[..12]);
    let directory = cache::obtain("kernels", &key, |dir| {
        assemble(dir, image, Some((modules, &release)), Kind::Stock, &format!("this machine's {release}"))?;
        // Not every distribution puts it there.
        let _ = fs::copy(format!("/boot/config-{release}"), dir.join(kernel::CONFIG));
        Ok(())
    })?;
    Kernel::load(&directory)
}

fn debian() -> Result<Kernel, Error> {
    let package = match apt::newest(PACKAGE, "linux-image-6.12.*-cloud-amd64-unsigned") {
        Ok(package) => package,
        // Without apt's lists, what was fetched before is still good.
        Err(error) => return newest_cached().map_or(Err(error), |dir| Kernel::load(&dir)),
    };
    let directory = cache::obtain("kernels", &(package.key() + LAYOUT), |dir| {
        let scratch = dir.join("scratch");
        fs::create_dir(&scratch).map_err(Error::io("create", &scratch))?;
        let root = apt::unpack(&package, &scratch)?;
        let missing = |expected: &str| Error::Package { path: root.clone(), expected: expected.into() };
        let boot = root.join("boot");
        let image = only(&boot, "vmlinuz-").ok_or_else(|| missing("boot/vmlinuz-*"))?;
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .iter()
            .find_map(|dir| only(dir, ""))
            .ok_or_else(|| missing("lib/modules/*"))?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let origin = format!("{} {}", package.name, package.version);
        assemble(dir, &image, Some((&modules, &release)), Kind::Stock, &origin)?;
        let config = boot.join(format!("config-{release}"));
        if config.exists() {
            fs::copy(&config, dir.join(kernel::CONFIG)).map_err(Error::io("copy", &config))?;
        }
        cache::remove_all(&scratch)
    })?;
    Kernel::load(&directory)
}

/// The newest Debian kernel in the cache.
fn newest_cached() -> Option<PathBuf> {
    let kernels = cache::dir().ok()?.join("kernels");
    let names = fs::read_dir(&kernels).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let newest = names
        .filter(|n| n.starts_with("linux-image-") && n.ends_with(LAYOUT))
        .max_by(|a, b| apt::natural(a, b))?;
    Some(kernels.join(newest))
}

/// The one entry whose name starts so.
fn only(directory: &Path, start: &str) -> Option<PathBuf> {
    let mut names = fs::read_dir(directory).ok()?.filter_map(|e| Some(e.ok()?.path()));
    names.find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)))
}

/// Fills a cache entry from an image and its modules.
fn assemble(
    dir: &Path,
    image: &Path,
    modules: Option<(&Path, &str)>,
    kind: Kind,
    origin: &str,
) -> Result<(), Error> {
    let bytes = fs::read(image).map_err(Error::io("read", image))?;
    let vmlinux = payload::vmlinux(image, bytes)?;
    let path = dir.join("vmlinux");
    fs::write(&path, &vmlinux).map_err(Error::io("write", &path))?;
    let mut kernel = Kernel {
        image: path,
        release: String::new(),
        kind,
        origin: origin.into(),
        initramfs_modules: Vec::new(),
        modules_disk: None,
        description: Description::Acpi,
        command_line: String::new(),
        timer_hz: None,
        grows: false,
    };
    match modules {
        Some((modules, release)) => {
            let tree = Tree::open(modules)?;
            kernel.release = release.into();
            kernel.initramfs_modules = tree.extract_early(&dir.join("modules"))?;
            let disk = dir.join("modules.ext4");
            modules_disk::make(&tree, Choice::Useful, release, &disk)?;
            kernel.modules_disk = Some(disk);
        }
        None => kernel.release = release::of_vmlinux(&vmlinux).unwrap_or_default(),
    }
    kernel.save(dir)
}

/// A kernel that somebody names: a vmlinux or a bzImage.
///
/// If it lies in a directory with our `manifest.json` (`kernels/ID/vmlinux` in the cache), that is what it is. Else its
/// modules are looked for in `../lib/modules/RELEASE` (an unpacked package) and `/lib/modules/RELEASE`; without them it
/// must have built in what it needs.
pub fn given(path: &Path) -> Result<Kernel, Error> {
    let image = fs::canonicalize(path).map_err(Error::io("open", path))?;
    if let Some(ours) = image.parent().and_then(|dir| Kernel::load(dir).ok()).filter(|k| k.image == image) {
        return Ok(ours);
    }
    let bytes = fs::read(&image).map_err(Error::io("read", &image))?;
    let release = match release::of_bzimage(&bytes) {
        Some(release) => release,
        None => release::of_vmlinux(&payload::vmlinux(&image, bytes)?).unwrap_or_default(),
    };
    let beside = image.parent().and_then(Path::parent).map(|p| p.join("lib/modules").join(&release));
    let modules = [beside, Some(Path::new("/lib/modules").join(&release))]
        .into_iter()
        .flatten()
        .filter(|_| !release.is_empty())
        .find(|dir| Tree::open(dir).is_ok_and(|tree| tree.suits().is_ok()));
    let key = format!("given-{}{LAYOUT}", &digest(&image)?[..16]);
    let directory = cache::obtain("kernels", &key, |dir| {
        let modules = modules.as_deref().map(|m| (m, release.as_str()));
        assemble(dir, &image, modules, Kind::Given, &image.display().to_string())
    })?;
    Kernel::load(&directory)
}

/// A file's sha256 in hexadecimal.
pub(crate) fn digest(path: &Path) -> Result<String, Error> {
    let mut file = fs::File::open(path).map_err(Error::io("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
