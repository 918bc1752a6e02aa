//! Unpacking a root file system into an empty disk.

use std::{
    fs,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use undercroft_guest::host;
use undercroft_protocol::{
    Opening,
    command::{Done, Event, Failure, FailureKind, Import, Imported},
};

use crate::{
    disk,
    jobs::{Mouth, Word, failure, system},
    root_check,
    unpack::{self, Account, UnpackError},
};

/// Where the disk is mounted meanwhile, in a mount namespace of this process's own.
const PLACE: &str = "/run/import";
/// Between two words about progress.
const PROGRESS: Duration = Duration::from_millis(250);

/// Carries out an import, in a process of its own.
pub(crate) fn run(what: &Import, mouth: &mut Mouth) -> Result<Done, Failure> {
    let device = disk::path(&what.disk)?;
    let place = Path::new(PLACE);
    // Alone: the mount goes with this process, however it ends, and several imports use one place.
    unshare(CloneFlags::CLONE_NEWNS).map_err(system("making a mount namespace"))?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(system("making the mounts private"))?;
    fs::create_dir_all(place).map_err(system(&format!("making {PLACE}")))?;
    let mounted = mount(
        Some(&device),
        place,
        Some("ext4"),
        MsFlags::MS_NOATIME,
        Some("discard,errors=remount-ro,no_prefetch_block_bitmaps"),
    );
    let where_from = format!("mounting {} ({}) as ext4", disk::describe(&what.disk), device.display());
    mounted.map_err(failure(FailureKind::Disk, &where_from))?;
    let imported = unpack_all(what, place, mouth);
    // Whatever came of it: when the host hears of it, it may take the disk away at once.
    let unmounted = umount2(place, MntFlags::empty());
    let imported = imported?;
    unmounted.map_err(failure(FailureKind::Disk, "unmounting the disk"))?;
    disk::flush_unused(&device).map_err(failure(FailureKind::Disk, "flushing the disk"))?;
    Ok(Done::Imported(imported))
}

fn unpack_all(what: &Import, place: &Path, mouth: &mut Mouth) -> Result<Imported, Failure> {
    check_empty(place)?;
    // mke2fs made it; e2fsck makes another if it finds something. Now, because it changes the root's times.
    let _ = fs::remove_dir(place.join("lost+found"));
    let stream =
        host::connect_as(&Opening::Stream(what.archive)).map_err(system("opening the archive's stream"))?;
    let mut stream = fs::File::from(stream);
    let mut told = Instant::now();
    let account = unpack::unpack(&mut stream, place, |account, bytes| {
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            mouth.say(&Word::Event(Event::ImportProgress { entries: account.entries, bytes }));
        }
    })
    .map_err(|error| refused(&error))?;
    // What stands behind the end marker is padding: read, so that the host is not left with bytes that nobody took.
    let _ = std::io::copy(&mut stream.by_ref().take(1 << 20), &mut std::io::sink());
    root_check::check(place).map_err(|reason| Failure {
        kind: FailureKind::NotARoot,
        message: format!("the archive's content: {reason}"),
    })?;
    unpack::flush(place).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Failure {
            kind: FailureKind::NoSpace,
            message: "no space is left on the disk for what was unpacked: make the disk larger".into(),
        },
        _ => failure(FailureKind::Disk, "flushing what was unpacked")(error),
    })?;
    let Account { entries, bytes, warnings } = account;
    Ok(Imported { entries, bytes, warnings })
}

/// An import never adds to what somebody has already.
fn check_empty(place: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(place).map_err(failure(FailureKind::Disk, "reading the disk"))?;
    let others =
        entries.filter_map(Result::ok).map(|entry| entry.file_name()).find(|name| name != "lost+found");
    match others {
        None => Ok(()),
        Some(name) => Err(Failure {
            kind: FailureKind::Disk,
            message: format!("expected an empty file system to import into, and there is {name:?} on it"),
        }),
    }
}

fn refused(error: &UnpackError) -> Failure {
    let kind = match error {
        UnpackError::Archive(crate::archive::ArchiveError::Read { .. }) | UnpackError::System { .. } => {
            FailureKind::System
        }
        UnpackError::Archive(_) | UnpackError::TooMuch => FailureKind::Archive,
        UnpackError::NoSpace { .. } => FailureKind::NoSpace,
    };
    Failure { kind, message: error.to_string() }
}
