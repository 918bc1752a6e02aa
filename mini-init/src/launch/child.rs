//! The child: in the distribution's own namespaces from its first instruction on, until it has become the init.

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use undercroft_guest::clock;
use undercroft_protocol::command::{Failure, Launch, Root, Users};

use super::{
    exec, handover,
    kernel::{Attributes, Kernel, Linux},
    users,
};
use crate::jobs::{Mouth, Word, system};

/// Where the root hangs until it is the root. Only the distribution's own mount namespace sees it.
pub(super) const PLACE: &str = "/run/distribution";
/// Where the memory that all distributions share hangs in each.
const SHARED: &str = "/mnt/undercroft";

/// Mounts from the preparer, which have their places here.
struct Mounts<T> {
    root: T,
    /// With their places; the second of the pair tells a file from a directory.
    others: Vec<(String, T)>,
    init: T,
}

/// Becomes the init. Returns with what went wrong, or with nothing if the preparer has told that.
pub(super) fn run(what: &Launch, socket: OwnedFd, mouth: &mut Mouth) -> Option<Failure> {
    let received = match handover::receive(&socket).map_err(system("taking the mounts over")) {
        Ok(received) => received?,
        Err(failure) => return Some(failure),
    };
    drop(socket);
    let prepared = (|| {
        if let Users::Own { .. } = what.users {
            users::become_root().map_err(system("becoming the distribution's root"))?;
        }
        let (received, folders) = received;
        let mounts = sort(what, received, &folders)?;
        enter(&mut Linux, mounts, &mut |warning| mouth.warn(format!("distribution {}: {warning}", what.name)))
    })();
    match prepared {
        Ok(init) => {
            mouth.say(&Word::Mark(clock::mark("mini-init: root entered")));
            Some(exec::init(what, &init))
        }
        Err(failure) => Some(failure),
    }
}

/// The order is that in which the preparer sends them; `folders` says which of the host's are among them.
fn sort<T>(what: &Launch, received: Vec<T>, folders: &[u8]) -> Result<Mounts<T>, Failure> {
    let bound: &[String] = match &what.root {
        Root::Layered { bound, .. } => bound,
        Root::Flat { .. } => &[],
    };
    let number = received.len();
    let mut received = received.into_iter();
    let mut next = || {
        received.next().ok_or_else(|| system("taking the mounts over")(format!("there are only {number}")))
    };
    let root = next()?;
    let mut others = Vec::new();
    for place in ["/dev", "/sys", SHARED] {
        others.push((place.to_owned(), next()?));
    }
    let init = next()?;
    for place in bound {
        others.push((place.clone(), next()?));
    }
    for folder in folders.iter().filter_map(|&number| what.folders.get(usize::from(number))) {
        others.push((folder.place.clone(), next()?));
    }
    Ok(Mounts { root, others, init })
}

/// Makes the distribution's root the root, with all that belongs into it. Gives the path of the init to execute.
fn enter<K: Kernel>(
    kernel: &mut K,
    mounts: Mounts<K::Tree>,
    warn: &mut dyn FnMut(String),
) -> Result<String, Failure> {
    // Its root is the cgroup that its maker is in, so that it cannot be made with the process.
    kernel.unshare(CloneFlags::CLONE_NEWCGROUP).map_err(system("making the cgroup namespace"))?;
    kernel.make_private("/").map_err(system("making the mounts private"))?;
    // While the VM's own is in sight: a proc that shows more than what is there already is refused to a user namespace.
    let forbid = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    let proc = kernel.file_system("proc", &[], forbid).map_err(system("making the distribution's proc"))?;
    kernel.place(&mounts.root, PLACE).map_err(system(&format!("hanging the root at {PLACE}")))?;
    drop(mounts.root);
    kernel.pivot(PLACE).map_err(system("making the distribution's disk the root"))?;
    kernel
        .directory("/proc", 0o755)
        .and_then(|_| kernel.place(&proc, "/proc"))
        .map_err(system("mounting the distribution's proc"))?;
    for (place, tree) in mounts.others {
        hang(kernel, &place, &tree, warn)?;
    }
    place_init(kernel, &mounts.init, warn)
}

/// Makes a directory, and those on the way to it, where they are not there.
pub(crate) fn make_place<K: Kernel>(kernel: &mut K, place: &str) -> std::io::Result<()> {
    for (end, _) in place.match_indices('/').skip(1) {
        kernel.directory(&place[..end], 0o755)?;
    }
    kernel.directory(place, 0o755).map(drop)
}

/// Hangs a tree at a directory, which is made if it is not there. Only /dev is worth failing for.
fn hang<K: Kernel>(
    kernel: &mut K,
    place: &str,
    tree: &K::Tree,
    warn: &mut dyn FnMut(String),
) -> Result<(), Failure> {
    match make_place(kernel, place).and_then(|()| kernel.place(tree, place)) {
        Err(error) if place == "/dev" => Err(system("hanging the distribution's /dev")(error)),
        Err(error) => {
            warn(format!("{place} cannot be had: {error}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Binds the init on `/init`, for which an empty file is made if there is none. Where that cannot be, it goes below /dev.
fn place_init<K: Kernel>(
    kernel: &mut K,
    init: &K::Tree,
    warn: &mut dyn FnMut(String),
) -> Result<String, Failure> {
    let usable = |error: std::io::Result<()>| match error {
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

#[cfg(test)]
mod tests {
    use super::{super::kernel::recording::Recording, *};

    fn mounts() -> Mounts<String> {
        let others = [("/dev", "dev"), ("/mnt/undercroft", "shared"), ("/var/lib/docker", "bound")];
        Mounts {
            root: "root".into(),
            others: others.map(|(place, tree)| (place.into(), tree.into())).into(),
            init: "init".into(),
        }
    }

    #[test]
    fn proc_is_made_before_the_root_is_left_and_everything_is_placed_after() {
        let mut kernel = Recording::default();
        assert_eq!(enter(&mut kernel, mounts(), &mut |w| panic!("{w}")).unwrap(), "/init");
        let pivot = kernel.position("pivot /run/distribution");
        assert!(
            kernel.position("make proc") < pivot
                && kernel.position("place root at /run/distribution") < pivot
        );
        for placed in
            ["place proc", "place dev at /dev", "place shared", "place bound", "place init at /init"]
        {
            assert!(pivot < kernel.position(placed), "{placed}");
        }
        assert!(kernel.position("directory /var/lib") < kernel.position("directory /var/lib/docker"));
    }

    #[test]
    fn a_read_only_root_without_an_init_gets_it_beside_the_devices() {
        let mut kernel = Recording { read_only: true, ..Recording::default() };
        let mut warnings = Vec::new();
        let init = enter(&mut kernel, mounts(), &mut |w| warnings.push(w)).unwrap();
        assert_eq!(init, "/dev/init");
        assert!(warnings[0].contains("/init"), "{warnings:?}");
    }
}
