//! What a distribution is given by the VM: device nodes, and the one `/init`.
//!
//! The VM's devtmpfs itself stays outside: it cannot be mounted with mapped ids, and it holds the other distributions'
//! disks. The nodes that programs need are bound one by one onto a tmpfs, which works alike with a user namespace. They
//! are copied as detached mounts while the VM's tree is in sight, and placed when it no longer is: no name in the
//! distribution's tree, whatever it links to, can then lead out of it.

use std::io;

use nix::mount::MsFlags;
use undercroft_protocol::command::Failure;

use super::kernel::Kernel;
use crate::jobs::system;

/// The program that every distribution has as `/init`, in the initramfs.
pub(crate) const INIT: &str = "/distribution-init";

/// Nodes without which programs do not work.
const NEEDED: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Nodes that are given where the kernel has them, with the directories that they are in.
const WHERE_THERE: [&str; 8] =
    ["fuse", "net/tun", "kmsg", "kvm", "loop-control", "userfaultfd", "vhost-net", "mapper/control"];
/// Directories below /dev.
const DIRECTORIES: [&str; 5] = ["net", "mapper", "pts", "shm", "mqueue"];
/// Links below /dev that programs expect (Documentation/admin-guide/devices.txt, "Recommended links").
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("fd/0", "/dev/stdin"),
    ("fd/1", "/dev/stdout"),
    ("fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Mounts that have been copied and are not yet placed.
#[derive(Debug)]
pub(super) struct TakenAlong<T> {
    init: T,
    nodes: Vec<(&'static str, T)>,
}

/// Copies what the distribution is to get, while the VM's own tree is the root.
pub(super) fn take_along<K: Kernel>(kernel: &mut K) -> Result<TakenAlong<K::Tree>, Failure> {
    let init = kernel.tree(INIT).map_err(system(&format!("opening {INIT}")))?;
    // The same file for all: root in one distribution must not write to what the others execute.
    kernel.protect(&init).map_err(system("protecting the init"))?;
    let mut nodes = Vec::new();
    for name in NEEDED {
        let tree = kernel.tree(&format!("/dev/{name}")).map_err(system(&format!("opening /dev/{name}")))?;
        nodes.push((name, tree));
    }
    for name in WHERE_THERE {
        if let Ok(tree) = kernel.tree(&format!("/dev/{name}")) {
            nodes.push((name, tree));
        }
    }
    Ok(TakenAlong { init, nodes })
}

/// Places it, in the distribution's own root. Gives the path of the init to execute.
pub(super) fn place<K: Kernel>(
    kernel: &mut K,
    taken: TakenAlong<K::Tree>,
    warn: &mut dyn FnMut(String),
) -> Result<String, Failure> {
    // A root that has no /dev and cannot get one (read-only) cannot be run.
    let _ = kernel.directory("/dev", 0o755);
    kernel
        .mount("tmpfs", "/dev", Some("tmpfs"), MsFlags::MS_NOSUID, "mode=0755,size=4m")
        .map_err(system("mounting the distribution's /dev"))?;
    for name in DIRECTORIES {
        kernel.directory(&format!("/dev/{name}"), 0o755).map_err(system(&format!("making /dev/{name}")))?;
    }
    for (name, tree) in taken.nodes {
        let path = format!("/dev/{name}");
        let placed = kernel.file(&path, 0o666).and_then(|()| kernel.place(tree, &path));
        placed.map_err(system(&format!("making {path}")))?;
    }
    for (target, path) in LINKS {
        kernel.link(target, path).map_err(system(&format!("making {path}")))?;
    }
    place_init(kernel, taken.init, warn)
}

/// Binds the init on `/init`, for which an empty file is made if there is none: the only thing that is ever added to a
/// distribution's own files here. Where that cannot be, it goes below /dev.
fn place_init<K: Kernel>(
    kernel: &mut K,
    init: K::Tree,
    warn: &mut dyn FnMut(String),
) -> Result<String, Failure> {
    let usable = |error: io::Result<()>| match error {
        Ok(()) => match std::fs::symlink_metadata("/init") {
            Ok(there) if !there.is_file() => Err("it is not a file".to_owned()),
            _ => Ok(()),
        },
        Err(error) => Err(error.to_string()),
    };
    let path = match usable(kernel.file("/init", 0o755)) {
        Ok(()) => "/init",
        Err(reason) => {
            warn(format!("/init cannot be used for the init ({reason}); it is /dev/init instead"));
            kernel.file("/dev/init", 0o755).map_err(system("making /dev/init"))?;
            "/dev/init"
        }
    };
    kernel.place(init, path).map_err(system(&format!("binding the init on {path}")))?;
    Ok(path.into())
}
