//! What has to be there before anything else: file systems of the kernel's, limits, the cgroup tree.

use std::{
    fs, io,
    os::{fd::IntoRawFd, unix::fs::PermissionsExt},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{chdir, chroot},
};

use crate::log::{self, Warnings};

/// The cgroup that holds one cgroup for each distribution.
pub(crate) const DISTRIBUTIONS: &str = "/sys/fs/cgroup/distributions";

/// Bytes of the machine's memory that the distributions together do not get: what PID 1 and the kernel need to go on with.
const RESERVE: u64 = 32 << 20;

/// Memory that all distributions share: each has it at /mnt/undercroft.
pub(crate) const SHARED: &str = "/run/shared";
/// Where launches hang mounts, each in a mount namespace of its own.
const PLACES: [&str; 4] = ["/run/distribution", "/run/layers", "/run/layers/own", "/run/layers/base"];

/// What a distribution's root, which is nobody in the VM, can do all the same, and what it cannot.
const SYSCTLS: [(&str, &str); 6] = [
    // Its servers listen on any port: the network is shared, and its owner is the VM.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    // ping without a raw socket, for every group that there can be.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // The kernel's log and addresses are the VM's.
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "1"),
    // One number a process of all distributions together; the default is small where there is little memory.
    ("kernel/pid_max", "4194304"),
    ("fs/inotify/max_user_watches", INOTIFY_WATCHES),
];

/// Open files that a process may ask for at most; what the reference system gives.
const NOFILE_HARD: u64 = 1024 * 1024;
/// Open files of a process that asks for nothing: more would break programs that use select(2).
const NOFILE_SOFT: u64 = 1024;
/// Bytes of memory that a process may lock.
const MEMLOCK: u64 = 64 << 20;
/// Watches of a user; the kernel's own default depends on memory and is too small for editors in a small VM.
const INOTIFY_WATCHES: &str = "524288";

/// Prepares the machine. What fails is a warning: a VM that can say what is wrong is worth more than none.
pub(crate) fn prepare(warnings: &mut Warnings) {
    umask(Mode::from_bits_truncate(0o022));
    warnings.take("giving the root a mount of its own", own_root());
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    file_system(warnings, "devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755");
    standard_descriptors();
    log::open();
    nodes_for_all();
    file_system(warnings, "proc", "/proc", quiet, "");
    // Lines of PID 1's are few and wanted; the limit is for daemons gone wild.
    set("/proc/sys/kernel/printk_devkmsg", "on\n", warnings);
    file_system(warnings, "sysfs", "/sys", quiet, "");
    file_system(warnings, "cgroup2", "/sys/fs/cgroup", quiet, "nsdelegate");
    file_system(warnings, "tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755");
    limits(warnings);
    cgroups(warnings);
    for (name, value) in SYSCTLS {
        set(&format!("/proc/sys/{name}"), value, warnings);
    }
    for place in PLACES {
        warnings.take(&format!("making {place}"), make_directory(place));
    }
    file_system(warnings, "tmpfs", SHARED, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777");
    warnings.take("making a place for the distributions' names", crate::network::names::make_directory());
    set("/proc/self/oom_score_adj", "-1000", warnings);
}

/// Puts a bind mount of the root over the root.
///
/// The initramfs's own mount has no parent, and pivot_root(2) refuses such a root. With a mount over it, a distribution
/// can pivot away from it and lose sight of everything of the VM's.
fn own_root() -> io::Result<()> {
    make_directory("/run")?;
    mount(Some("/"), "/run", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    chdir("/run")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn make_directory(path: impl AsRef<Path>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn file_system(warnings: &mut Warnings, kind: &str, target: &str, flags: MsFlags, data: &str) {
    // The directory may be there, or in a file system that says so itself (sysfs has one for cgroup2).
    let _ = make_directory(target);
    warnings.take(
        &format!("mounting {kind} on {target}"),
        mount(Some(kind), target, Some(kind), flags, Some(data)),
    );
}

/// Gives every user the nodes whose drivers check by themselves what each may do with them. A kernel without one of them
/// is as well.
fn nodes_for_all() {
    for path in ["/dev/fuse", "/dev/net/tun"] {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
    }
}

/// Makes sure that descriptors 0 to 2 are taken, so that no socket ever gets such a number. The kernel opens them if the
/// initramfs has a /dev/console.
fn standard_descriptors() {
    while let Ok(file) = fs::File::options().read(true).write(true).open("/dev/null") {
        let number = file.into_raw_fd();
        if number > 2 {
            let _ = nix::unistd::close(number);
            return;
        }
    }
}

fn limits(warnings: &mut Warnings) {
    warnings.take("RLIMIT_NOFILE", setrlimit(Resource::RLIMIT_NOFILE, NOFILE_SOFT, NOFILE_HARD));
    warnings.take("RLIMIT_MEMLOCK", setrlimit(Resource::RLIMIT_MEMLOCK, MEMLOCK, MEMLOCK));
}

/// Writes a value to a file of the kernel's.
pub(crate) fn set(path: &str, value: &str, warnings: &mut Warnings) {
    warnings.take(&format!("writing {value:?} to {path}"), fs::write(path, value));
}

/// Makes the distributions' cgroup, with every controller passed down to each distribution.
fn cgroups(warnings: &mut Warnings) {
    if let Err(error) = fs::create_dir(DISTRIBUTIONS) {
        return warnings.add(format!("making the cgroup {DISTRIBUTIONS}: {error}"));
    }
    for parent in ["/sys/fs/cgroup", DISTRIBUTIONS] {
        let controllers = fs::read_to_string(format!("{parent}/cgroup.controllers")).unwrap_or_default();
        let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
        let file = format!("{parent}/cgroup.subtree_control");
        // All at once is one walk of the tree; one by one only to find out which of them it was.
        if fs::write(&file, all.join(" ")).is_err() {
            for controller in all {
                set(&file, &controller, warnings);
            }
        }
    }
    limit_distributions(memory());
}

/// Leaves the distributions all of the machine's `memory` but a reserve. Who takes more then is one of them, and the kernel
/// ends a process of theirs; it does not look for one in all of the machine. As the reference system has it, but for the CPUs'
/// part: between PID 1 and the distributions the scheduler is fair as it is (each has a root's child's weight), and a bandwidth
/// limit would set a timer going whenever a distribution runs.
pub(crate) fn limit_distributions(memory: u64) {
    let path = format!("{DISTRIBUTIONS}/memory.max");
    if let Err(error) = fs::write(&path, memory.saturating_sub(RESERVE).to_string()) {
        log::line(log::Level::Warning, &format!("{path}: {error}"));
    }
}

/// CPUs online.
pub(crate) fn cpus() -> u32 {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    online.ok().flatten().map_or(1, |n| n as u32)
}

/// Memory that the kernel has to give away, in bytes.
pub(crate) fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.unwrap_or(0u64) * 1024
}
