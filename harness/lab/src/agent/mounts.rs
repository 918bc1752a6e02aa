//! From the initramfs to the host's root: modules, file systems, the change of root.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use undercroft_lab::launch::{self, Mounts};

use super::{AgentError, child, network, nonce};

/// Where the host's root is mounted before it becomes ours.
const NEW_ROOT: &str = "/host";

/// Modules that get parameters. Without the tolerance KVM believes that the guest's TSC needs scaling, and guests never
/// see their TSC-deadline timers fire.
const PARAMETERS: &[(&str, &str)] = &[("kvm", "tsc_tolerance_ppm=50000")];

/// Everything up to the point where commands can run. Gives the number from the kernel command line.
pub(crate) fn prepare() -> Result<String, AgentError> {
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        place(kind, kind, path, MsFlags::empty(), "")?;
    }
    let command_line = fs::read_to_string("/proc/cmdline").map_err(|e| AgentError::at("/proc/cmdline", e))?;
    let nonce = nonce(&command_line).unwrap_or_default();
    let mounts = fs::read(Path::new("/").join(launch::MOUNTS)).map_err(|e| AgentError::at("/mounts", e))?;
    let mounts: Mounts = postcard::from_bytes(&mounts)
        .map_err(|e| AgentError::at("/mounts", io::Error::new(io::ErrorKind::InvalidData, e)))?;
    load_modules()?;

    place("virtiofs", Mounts::ROOT, NEW_ROOT, MsFlags::MS_RDONLY, "")?;
    std::env::set_current_dir(NEW_ROOT).map_err(|e| AgentError::at(NEW_ROOT, e))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| AgentError::at("moving the root", e))?;
    nix::unistd::chroot(".").map_err(|e| AgentError::at("changing the root", e))?;
    std::env::set_current_dir("/").map_err(|e| AgentError::at("/", e))?;

    let nothing = MsFlags::empty();
    place("proc", "proc", "/proc", nothing, "")?;
    place("sysfs", "sysfs", "/sys", nothing, "")?;
    place("devtmpfs", "devtmpfs", "/dev", nothing, "")?;
    place("devpts", "devpts", "/dev/pts", nothing, "ptmxmode=0666,mode=0620,gid=5")?;
    place("tmpfs", "tmpfs", "/dev/shm", nothing, "mode=1777")?;
    place("tmpfs", "tmpfs", "/run", nothing, "mode=0755")?;
    temporary()?;
    place("cgroup2", "cgroup2", "/sys/fs/cgroup", nothing, "")?;
    fs::create_dir(child::GROUPS).map_err(|e| AgentError::at(child::GROUPS, e))?;
    for (n, path) in mounts.writable.iter().enumerate() {
        let path = path.to_str().unwrap_or_default();
        place("virtiofs", &Mounts::tag(n), path, nothing, "")?;
    }
    // In the lab everybody may use KVM, as the members of its group may on a real machine.
    let _ = fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666));
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    for (n, name) in ["stdin", "stdout", "stderr"].iter().enumerate() {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/fd/{n}"), format!("/dev/{name}"));
    }
    let _ = nix::unistd::sethostname("lab");
    if let Err(error) = network::up() {
        println!("lab agent: no network: {error}");
    }
    Ok(nonce)
}

/// `/tmp`: what the host has in it can be read, so that a file that is named on a command line is found; what is written
/// stays in L1's memory.
fn temporary() -> Result<(), AgentError> {
    let layers = "lowerdir=/tmp,upperdir=/run/tmp/upper,workdir=/run/tmp/work";
    let folders = ["/run/tmp/upper", "/run/tmp/work"].iter().try_for_each(fs::create_dir_all);
    let mode = fs::Permissions::from_mode(0o1777);
    let stacked = folders
        .and_then(|()| fs::set_permissions("/run/tmp/upper", mode))
        .map_err(|e| AgentError::at("/run/tmp", e))
        .and_then(|()| place("overlay", "overlay", "/tmp", MsFlags::empty(), layers));
    stacked.or_else(|error| {
        println!("lab agent: the host's /tmp is not visible: {error}");
        place("tmpfs", "tmpfs", "/tmp", MsFlags::empty(), "mode=1777")
    })
}

/// Mounts, making the mount point if it is missing and can be made.
fn place(kind: &str, source: &str, target: &str, flags: MsFlags, data: &str) -> Result<(), AgentError> {
    let _ = fs::create_dir_all(target);
    let data = Some(data).filter(|d| !d.is_empty());
    mount(Some(source), target, Some(kind), flags, data)
        .map_err(|e| AgentError::at(format!("mounting {source} ({kind}) at {target}"), e))
}

/// Loads what the initramfs brings, in the order of the files' names (`00-name.ko`).
fn load_modules() -> Result<(), AgentError> {
    let folder = Path::new("/").join(launch::MODULES);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .map_err(|e| AgentError::at(folder.display().to_string(), e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let name = stem.split_once('-').map_or(stem, |(_, name)| name).replace('-', "_");
        let parameters = PARAMETERS.iter().find(|(n, _)| *n == name).map_or("", |(_, p)| p);
        let image = fs::read(&path).map_err(|e| AgentError::at(path.display().to_string(), e))?;
        let parameters = std::ffi::CString::new(parameters).unwrap_or_default();
        match nix::kmod::init_module(&image, &parameters) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(AgentError::at(format!("loading the module {name}"), e)),
        }
    }
    Ok(())
}
