//! What a base has where a directory of the own disk is bound over it: copied once, before the first launch, or else what
//! was imported there (a container engine's images, say) could never be seen.
//!
//! It is packed and unpacked, as in an export and an import, from one process to another. The copy is made in `seeding` and
//! gets its place by one rename(2), so that a launch that is interrupted begins it anew.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, pipe2, syncfs},
};
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, mkdirat, openat2, renameat, unlinkat},
    io::Errno,
};
use undercroft_guest::process::{exit_child, fork};

use crate::{pack, unpack};

/// Where it is made, on the own disk.
const SEEDING: &str = "seeding";

/// Copies `path` (absolute) of the base to the same path below `bound` on the own disk. False if there is nothing to copy.
pub(super) fn seed(base: &OwnedFd, own: &OwnedFd, path: &str) -> io::Result<bool> {
    let inside = path.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    let from = match openat2(base, inside, flags, Mode::empty(), resolve) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if is_empty(&from)? {
        return Ok(false);
    }
    match mkdirat(own, SEEDING, Mode::RWXU) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    copy(&from, path, Path::new(&format!("/proc/self/fd/{}/{SEEDING}", own.as_raw_fd())))?;
    // A detached mount's own descriptor is a place only (fsmount(2): as if by O_PATH).
    syncfs(openat2(own, ".", flags, Mode::empty(), resolve)?)?;
    renameat(own, format!("{SEEDING}/{inside}"), own, format!("bound{path}"))?;
    // What it lay in there; another path may have begun to lie in it, too.
    let parents = inside.match_indices('/').map(|(end, _)| format!("{SEEDING}/{}", &inside[..end]));
    for parent in parents.collect::<Vec<_>>().into_iter().rev().chain([SEEDING.to_owned()]) {
        let _ = unlinkat(own, parent, AtFlags::REMOVEDIR);
    }
    Ok(true)
}

fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Packs a directory in a child, under its own path, and unpacks that here.
fn copy(from: &OwnedFd, path: &str, to: &Path) -> io::Result<()> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let child = match fork()? {
        ForkResult::Child => {
            drop(reader);
            let mut stream = io::BufWriter::with_capacity(64 << 10, File::from(writer));
            let packed = pack::pack(from, &format!(".{path}"), Vec::new(), &mut stream, &mut |_| ());
            let whole = packed.is_ok() && io::Write::flush(&mut stream).is_ok();
            exit_child(i32::from(!whole))
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let unpacked = unpack::unpack(File::from(reader), to, |_, _| ());
    let ended = waitpid(child, None)?;
    unpacked.map_err(io::Error::other)?;
    match ended {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(io::Error::other(format!("what packed it ended with {other:?}"))),
    }
}
