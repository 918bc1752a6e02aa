//! Packing a distribution's root file system and sending it to the host.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statvfs::fstatvfs,
    },
};
use undercroft_guest::host;
use undercroft_protocol::{
    Opening,
    command::{Done, Event, Export, Exported, Failure, FailureKind, Root},
};

use crate::{
    disk,
    distribution::patiently,
    jobs::{Mouth, Word, failure, system},
    launch::{self, Devices, Readable},
    pack::{self, PackError},
};

/// Between two words about progress.
const PROGRESS: Duration = Duration::from_millis(250);
/// Bytes that are sent at a time.
const BUFFER: usize = 256 << 10;

/// Carries out an export, in a process of its own.
pub(crate) fn run(what: &Export, devices: &Devices, mouth: &mut Mouth) -> Result<Done, Failure> {
    // One open directory for each level of the deepest path.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let readable = launch::open_to_read(&what.root, devices)?;
    let exported = pack_all(what, readable, mouth);
    // Whatever came of it: when the host hears of it, it may take the disks away at once.
    let released = release(what, devices);
    let exported = exported?;
    released?;
    Ok(Done::Exported(exported))
}

fn pack_all(what: &Export, readable: Readable, mouth: &mut Mouth) -> Result<Exported, Failure> {
    let about = held(what, &readable);
    let stream =
        host::connect_as(&Opening::Stream(what.archive)).map_err(system("opening the archive's stream"))?;
    let mut stream = BufWriter::with_capacity(BUFFER, File::from(stream));
    let mut told = Instant::now();
    let progress = &mut |entries| {
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            mouth.say(&Word::Event(Event::ExportProgress { archive: what.archive, entries, about }));
        }
    };
    let Readable { root, bound } = readable;
    let account = pack::pack(&root, ".", bound, &mut stream, progress).and_then(|account| {
        stream.flush().map_err(PackError::Stream)?;
        Ok(account)
    });
    let pack::Account { entries, bytes, warnings } = account.map_err(refused)?;
    Ok(Exported { entries, bytes, warnings })
}

fn refused(error: PackError) -> Failure {
    let kind = match error {
        PackError::Stream(_) | PackError::TooMuch { .. } => FailureKind::System,
        PackError::Read { .. } => FailureKind::Disk,
    };
    failure(kind, "exporting")(error)
}

/// Bytes that the root's disks hold. Of a base, some may be hidden by the own disk.
fn held(what: &Export, readable: &Readable) -> u64 {
    let used = |file: std::os::fd::BorrowedFd<'_>| {
        fstatvfs(file)
            .map_or(0, |about| about.blocks().saturating_sub(about.blocks_free()) * about.fragment_size())
    };
    let base = match what.root {
        Root::Flat { .. } => 0,
        Root::Layered { .. } => File::open(launch::BASE).map_or(0, |base| used(base.as_fd())),
    };
    // An overlay says of itself what its upper layer says.
    used(readable.root.as_fd()) + base
}

/// Unmounts the layers and flushes the own disk. The root itself went with its descriptor.
fn release(what: &Export, devices: &Devices) -> Result<(), Failure> {
    let start = Instant::now();
    if matches!(what.root, Root::Layered { .. }) {
        for place in [launch::OWN, launch::BASE] {
            patiently(start, || Ok(umount2(place, MntFlags::empty())?))
                .map_err(failure(FailureKind::Disk, &format!("unmounting {place}")))?;
        }
    }
    patiently(start, || disk::flush_unused(&devices.own))
        .map_err(failure(FailureKind::Disk, "flushing the distribution's disk"))
}
