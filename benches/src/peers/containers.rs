//! Tools that start a program in a root file system of its own.

use std::path::{Path, PathBuf};

use undercroft_ruler_runner::{Run, Until};
use undercroft_ruler_scenario::PROGRAM;

use super::{Peer, Row, measure};
use crate::{Error, archive::Archive, machine::Machine, scenario};

/// The root file system in L1, unpacked from the same tar that our distribution is made from.
const ROOT: &str = "/rootfs";
const TAR: &str = "/busybox.tar";
const BUNDLE: &str = "/bundle";
const BUSYBOX: &str = "/bin/busybox";

/// Measures all that are here.
pub fn rows(machine: &Machine, work: &Path) -> Result<Vec<Row>, Error> {
    let mut archive = Archive::default();
    let tar = work.join("busybox.tar");
    scenario::distribution(&tar)?;
    archive.copy(&tar, TAR);
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    archive.bytes(crate::program::that_ends(), PROGRAM);
    archive.bytes(bundle(), format!("{BUNDLE}/config.json"));
    let unpack = format!("{BUSYBOX} mkdir -p {ROOT} && {BUSYBOX} tar x -f {TAR} -C {ROOT}");
    let unpack = Run {
        name: "unpack".into(),
        program: [BUSYBOX, "sh", "-c", &unpack].map(String::from).into(),
        repetitions: 1,
        until: Until::Exit,
        limit_seconds: 60,
        log: None,
    };
    let mut all = vec![nothing()];
    all.extend(unshare());
    all.extend(bubblewrap());
    all.extend(crun());
    all.push(nspawn());
    measure(machine, &all, archive, vec![unpack], |span| span.program, work)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn peer(
    name: &'static str,
    program: &'static str,
    install: &'static str,
    what: &'static str,
    arguments: &str,
) -> Peer {
    Peer { name, program, install, what, arguments: words(arguments), files: Vec::new() }
}

/// What nobody can do without, by the shortest program that starts another: `env`.
fn nothing() -> Peer {
    peer(
        "busybox env",
        "busybox",
        "busybox-static",
        "nothing: two programs' execs, for comparison",
        &format!("env {ROOT}{PROGRAM}"),
    )
}

fn unshare() -> [Peer; 3] {
    [
        peer(
            "busybox unshare",
            "busybox",
            "busybox-static",
            "PIDs, mounts; no root of its own",
            &format!("unshare -f -p -m {ROOT}{PROGRAM}"),
        ),
        peer(
            "unshare (util-linux)",
            "unshare",
            "util-linux",
            "PIDs, mounts; no root of its own",
            &format!("--fork --pid --mount {ROOT}{PROGRAM}"),
        ),
        peer(
            "unshare, chroot",
            "unshare",
            "util-linux",
            "PIDs, mounts, UTS, IPC; proc; chroot",
            &format!("--fork --pid --mount --uts --ipc --mount-proc --root={ROOT} {PROGRAM}"),
        ),
    ]
}

fn bubblewrap() -> [Peer; 2] {
    [
        peer(
            "bwrap",
            "bwrap",
            "bubblewrap",
            "mounts; a root of its own",
            &format!("--bind {ROOT} / {PROGRAM}"),
        ),
        peer(
            "bwrap, all namespaces",
            "bwrap",
            "bubblewrap",
            "users, PIDs, mounts, UTS, IPC, cgroups, network; proc, dev; a root of its own",
            &format!("--unshare-all --bind {ROOT} / --proc /proc --dev /dev {PROGRAM}"),
        ),
    ]
}

fn crun() -> [Peer; 2] {
    [
        peer(
            "crun run, no cgroup",
            "crun",
            "crun",
            "PIDs, mounts, UTS, IPC; proc, dev, sys, seven mounts; a root of its own",
            &format!("--cgroup-manager=disabled run --bundle {BUNDLE} measured"),
        ),
        peer(
            "crun run",
            "crun",
            "crun",
            "the same, and a cgroup of its own",
            &format!("--cgroup-manager=cgroupfs run --bundle {BUNDLE} measured"),
        ),
    ]
}

pub(super) fn nspawn() -> Peer {
    let mut nspawn = peer(
        "systemd-nspawn",
        "systemd-nspawn",
        "systemd-container",
        "PIDs, mounts, UTS, IPC, cgroups; proc, dev, sys; a root of its own",
        &format!("--quiet --register=no --keep-unit --console=pipe -D {ROOT} {PROGRAM}"),
    );
    // It opens libraries by name that ldd does not know of.
    nspawn.files = ["/etc/os-release", "/etc/machine-id"].map(PathBuf::from).into();
    nspawn.files.retain(|path| path.exists());
    nspawn
}

/// What `crun spec` proposes (crun 1.8), but for another program, no terminal, and the host's network: ours have that too.
fn bundle() -> Vec<u8> {
    let mount = |destination: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let quiet = ["nosuid", "noexec", "nodev"];
    let config = serde_json::json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [PROGRAM],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "inheritable": [], "ambient": [],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": ROOT, "readonly": false },
        "hostname": "measured",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &quiet),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    serde_json::to_vec(&config).expect("it is strings and numbers")
}
