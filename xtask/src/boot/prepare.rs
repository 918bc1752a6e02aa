//! The first step of a boot: everything that may need the network, a compiler or a minute.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use undercroft::machine_config;
use undercroft_harness::guest;
use undercroft_kernel_config::{self as kernel_config, Kernel, Kind, cache, initramfs};
use undercroft_vmm::MachineConfig;

use super::{
    Arguments, debian,
    distribution::{self, Distribution, Named},
    programs,
};
use crate::packages::{self, Group};

/// How many logs of guests' consoles are kept.
const LOGS: usize = 20;

/// What the second step needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) vmm: PathBuf,
    pub(crate) config: MachineConfig,
    pub(crate) modules_disk: Option<PathBuf>,
    /// Where distributions are kept.
    pub(crate) store: PathBuf,
    pub(crate) distributions: Vec<Distribution>,
    /// Whether those that are not there yet get everything on their own disk.
    pub(crate) flat: bool,
    /// Which of them the command runs in.
    pub(crate) chosen: usize,
    /// Program and arguments; empty for a login shell.
    pub(crate) command: Vec<Vec<u8>>,
    pub(crate) user: Option<String>,
    pub(crate) timeline: bool,
    pub(crate) console_log: PathBuf,
    /// How many times longer than on hardware things may take.
    pub(crate) patience: u32,
}

/// A plan, and the file that it was written to.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    written: Option<PathBuf>,
}

impl Prepared {
    /// Writes the plan to a file, which goes with this value.
    pub(crate) fn write_down(&mut self) -> anyhow::Result<PathBuf> {
        let path = cache::dir()?.join(format!("boot-{}.json", std::process::id()));
        fs::write(&path, serde_json::to_vec(&self.plan)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.written = Some(path.clone());
        Ok(path)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(path) = &self.written {
            // It is of no use to anybody else.
            let _ = fs::remove_file(path);
        }
    }
}

pub(crate) fn prepare(arguments: Arguments, in_lab: bool) -> anyhow::Result<Prepared> {
    let cache = cache::dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // First what the person may have got wrong, then what takes long.
    let (wanted, command) = split(arguments.command)?;
    let mut named = arguments.distributions;
    let unnamed = named.is_empty();
    let chosen = match &wanted {
        None => 0,
        Some(name) if unnamed && name == "debian" => 0,
        Some(name) => named.iter().position(|n| n.name == *name).with_context(|| {
            let names: Vec<_> = named.iter().map(|n| n.name.as_str()).collect();
            let names = if unnamed { "debian".into() } else { names.join(", ") };
            format!("-d {name}: expected one of {names}; others are named by --distro NAME=FILE")
        })?,
    };
    for (at, one) in named.iter().enumerate() {
        if named[..at].iter().any(|other| other.name.eq_ignore_ascii_case(&one.name)) {
            bail!("--distro {}: the name is taken twice", one.name);
        }
        undercroft::Archive::open(&one.archive)?;
    }
    let mut needed = vec![Group::Disk];
    needed.extend(stock_is_wanted(arguments.kernel.as_deref(), &cache).then_some(Group::StockKernel));
    needed.extend((unnamed && !debian::is_made(&cache, &debian::suite())).then_some(Group::Debian));
    needed.extend(in_lab.then_some(Group::Lab));
    packages::ensure_all(&needed)?;
    let kernel = kernel(arguments.kernel.as_deref(), &cache)?;
    if unnamed {
        named.push(Named { name: "debian".into(), archive: debian::archive(&cache, &debian::suite())? });
    }
    let store = cache.join("store");
    let prepared = named.iter().map(|one| distribution::prepare(one, arguments.flat, &store));
    let distributions = prepared.collect::<anyhow::Result<Vec<_>>>()?;
    tell_of_old_disks(&cache);
    let vmm = programs::vmm()?;
    let guest = guest::build()?;
    fs::create_dir_all(cache.join("initramfs"))?;
    let name = kernel.image.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let initramfs = cache.join("initramfs").join(format!("{name}-{}.cpio", kernel.release));
    initramfs::build(&guest.mini_init, &guest.init, &kernel.initramfs_modules, &initramfs)?;

    let cpus = arguments.cpus.unwrap_or_else(|| default_cpus(in_lab));
    let config =
        MachineConfig { initramfs: Some(initramfs), ..machine_config(&kernel, cpus, arguments.memory) };
    let plan = Plan {
        vmm,
        config,
        modules_disk: kernel.modules_disk,
        store,
        distributions,
        flat: arguments.flat,
        chosen,
        command: command.into_iter().map(OsString::into_vec).collect(),
        user: arguments.user,
        timeline: arguments.timeline,
        console_log: console_log(&cache)?,
        patience: if in_lab || undercroft_harness::lab::inside() { 20 } else { 1 },
    };
    Ok(Prepared { plan, written: None })
}

/// Earlier versions kept one disk for each name and archive, which nothing uses any more; what is in them is the person's.
fn tell_of_old_disks(cache: &Path) {
    let directory = cache.join("distros");
    let files = fs::read_dir(&directory).into_iter().flatten().flatten();
    let old = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "ext4")).count();
    if old > 0 {
        eprintln!(
            "note: {} has {old} disks (*.ext4) of an earlier version, which are not used any more",
            directory.display()
        );
    }
}

/// Takes a leading `-d NAME` off the command.
fn split(command: Vec<OsString>) -> anyhow::Result<(Option<String>, Vec<OsString>)> {
    let mut rest = command.into_iter().peekable();
    if rest.next_if(|first| first == "-d").is_none() {
        return Ok((None, rest.collect()));
    }
    let name = rest.next().context("-d: expected the name of a distribution after it")?;
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    Ok((Some(name), rest.collect()))
}

/// The guest's CPUs if nobody says: the lab has one to give.
fn default_cpus(in_lab: bool) -> u8 {
    let have = std::thread::available_parallelism().map_or(1, |n| n.get().min(8) as u8);
    if in_lab || undercroft_harness::lab::inside() { 1 } else { have }
}

fn kernel(wanted: Option<&Path>, cache: &Path) -> anyhow::Result<Kernel> {
    match wanted.map(|path| (path, path.to_str())) {
        Some((_, Some("stock"))) => stock(),
        Some((_, Some("tuned"))) => newest_tuned(cache).context(
            "there is no tuned kernel yet: build it with `cargo xtask kernel` (once; half an hour or so)",
        ),
        Some((path, _)) if !path.exists() => bail!(
            "--kernel {0}: there is no file {0}: expected stock, tuned, or the path of a vmlinux or bzImage",
            path.display()
        ),
        Some((path, _)) => Ok(kernel_config::given(path)?),
        None => match newest_tuned(cache) {
            Some(kernel) => Ok(kernel),
            None => {
                let kernel = stock()?;
                eprintln!(
                    "kernel: {} ({}); a faster one comes from `cargo xtask kernel`",
                    kernel.release, kernel.origin
                );
                Ok(kernel)
            }
        },
    }
}

fn stock_is_wanted(wanted: Option<&Path>, cache: &Path) -> bool {
    match wanted {
        Some(kernel) => kernel == Path::new("stock"),
        None => newest_tuned(cache).is_none(),
    }
}

pub(crate) fn stock() -> anyhow::Result<Kernel> {
    packages::ensure(Group::StockKernel)?;
    Ok(kernel_config::stock()?)
}

/// The tuned kernel that was built last.
fn newest_tuned(cache: &Path) -> Option<Kernel> {
    let directories = fs::read_dir(cache.join("kernels")).ok()?.flatten();
    let mut tuned: Vec<(SystemTime, Kernel)> = directories
        .filter(|entry| !entry.file_name().as_bytes().starts_with(b"."))
        .filter_map(|entry| {
            let kernel = Kernel::load(&entry.path()).ok().filter(|kernel| kernel.kind == Kind::Tuned)?;
            Some((fs::metadata(&kernel.image).ok()?.modified().ok()?, kernel))
        })
        .collect();
    tuned.sort_by_key(|(built, _)| *built);
    tuned.pop().map(|(_, kernel)| kernel)
}

/// A new log's path; the oldest ones go.
fn console_log(cache: &Path) -> anyhow::Result<PathBuf> {
    let directory = cache.join("logs");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut logs: Vec<PathBuf> =
        fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    logs.retain(|log| log.extension().is_some_and(|extension| extension == "log"));
    // Their names begin with the time.
    logs.sort();
    for old in &logs[..logs.len().saturating_sub(LOGS)] {
        // Another boot may have removed it.
        let _ = fs::remove_file(old);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(directory.join(format!("{now:012}-{}-console.log", std::process::id())))
}
