//! What keeps a running machine in order: memory that goes back, swap, and a clock that follows the host's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{FlockOperation, flock},
    time::{ClockId, clock_gettime},
};
use undercroft_protocol::command::{Command, DiskAddress, Done, Reclaim, Swap, Usage};

use crate::{
    error::{Error, Result},
    guest::wrong,
    machine::Machine,
};

/// Where a page of swap has its mark, from the file's begin, and the mark (include/linux/swap.h, pages of 4 KiB).
const SWAP_MARK_AT: u64 = 4096 - 10;
const SWAP_MARK: &[u8; 10] = b"SWAPSPACE2";
/// How long the host must have slept for that to count: the two clocks are not read at the same moment.
const NAP: Duration = Duration::from_millis(500);
/// Where a host's time zone is a link to.
const LOCAL_TIME: &str = "/etc/localtime";

impl Machine {
    /// Says how memory that is only a cache goes back, from now on. A machine that was not told gives back what is free, and
    /// no more.
    pub fn reclaim(&self, how: Reclaim) -> Result<()> {
        self.guest().ask_nothing("give memory back", Command::Reclaim(how), self.guest().limit(10))
    }

    /// What it uses of memory and CPUs now, and each of its distributions.
    pub fn usage(&self) -> Result<Usage> {
        const WHAT: &str = "say what is used";
        match self.guest().ask(WHAT, Command::Usage, Some(self.guest().limit(2)))? {
            Done::Usage(usage) => Ok(usage),
            other => Err(wrong(WHAT, &other)),
        }
    }

    /// Gives the machine swap: all of this file, see [`swap_file`], or block device. It is in use until the machine ends.
    pub fn swap_on(&self, file: &File) -> Result<DiskAddress> {
        let disk = self.attach_disk(file, false)?;
        let command = Command::SwapOn(Swap::Disk(disk.clone()));
        let on = self.guest().ask_nothing("use the disk as swap", command, self.guest().limit(30));
        match on {
            Ok(()) => Ok(disk),
            Err(error) => {
                // The first error counts.
                let _ = self.detach_disk(disk);
                Err(error)
            }
        }
    }

    /// Gives the machine compressed swap in its own memory, for so many bytes; it is used before any other. Once.
    pub fn zram_on(&self, bytes: u64) -> Result<()> {
        let command = Command::SwapOn(Swap::Zram { bytes });
        self.guest().ask_nothing("compress memory", command, self.guest().limit(30))
    }

    /// Sets the machine's clock to this time, which is the host's now, unless it is off by no more than the tolerance. Gives
    /// the nanoseconds that it was behind; negative if it was ahead.
    pub fn set_clock(&self, now: SystemTime, tolerance: Duration) -> Result<i64> {
        const WHAT: &str = "set the clock";
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let command = Command::SetTime {
            realtime_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            tolerance_ms: u32::try_from(tolerance.as_millis()).unwrap_or(u32::MAX),
        };
        match self.guest().ask(WHAT, command, Some(self.guest().limit(10)))? {
            Done::Clock { behind_ns } => Ok(behind_ns),
            other => Err(wrong(WHAT, &other)),
        }
    }
}

/// Makes a sparse file for swap of this size in bytes, for this user only, or takes one that was swap before; locked as long
/// as it or a copy of its descriptor is open. Whatever was swapped out to it is gone.
///
/// # Errors
/// The path is something else that has content: nobody's file is lost to a wrong `swapFile`. Or another machine uses it.
pub fn swap_file(path: &Path, bytes: u64) -> Result<File> {
    let failed = |what| move |source| Error::File { what, path: path.into(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path).map_err(failed("open"))?;
    let about = file.metadata().map_err(failed("open"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let source = match error {
            rustix::io::Errno::WOULDBLOCK => io::Error::other("another virtual machine uses it as swap"),
            error => error.into(),
        };
        Error::File { what: "lock", path: path.into(), source }
    })?;
    let was_swap = about.len() == 0 || has_mark(&mut file).map_err(failed("read"))?;
    if !(was_swap && (about.is_file() || about.file_type().is_block_device())) {
        let source = io::Error::other("it holds something else; remove it, or name another `swapFile`");
        return Err(Error::File { what: "use as swap", path: path.into(), source });
    }
    if about.is_file() {
        file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(failed("resize"))?;
    }
    Ok(file)
}

/// A file that was just made sparse and never used has no mark and no block.
fn has_mark(file: &mut File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let about = file.metadata()?;
    if about.is_file() && about.blocks() == 0 {
        return Ok(true);
    }
    let mut mark = [0; SWAP_MARK.len()];
    file.seek(SeekFrom::Start(SWAP_MARK_AT))?;
    match file.read_exact(&mut mark) {
        Ok(()) => Ok(&mark == SWAP_MARK),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the host has slept: CLOCK_BOOTTIME goes on then, and CLOCK_MONOTONIC does not (clock_gettime(2)). The machine's
/// clock may have stood still; [`Machine::set_clock`] mends it.
#[derive(Debug)]
pub struct Sleep {
    slept: Duration,
}

impl Sleep {
    /// Begins to watch.
    pub fn watch() -> Self {
        Self { slept: slept() }
    }

    /// Whether the host has slept since the last look.
    pub fn look(&mut self) -> bool {
        self.compare(slept())
    }

    fn compare(&mut self, now: Duration) -> bool {
        let before = std::mem::replace(&mut self.slept, now);
        now.saturating_sub(before) >= NAP
    }
}

/// How long the host has slept since it was booted.
fn slept() -> Duration {
    let time = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    // In this order, so that the time between the two does not count as sleep.
    let boottime = time(ClockId::Boottime);
    boottime.saturating_sub(time(ClockId::Monotonic))
}

/// The host's time zone as /usr/share/zoneinfo names it, if it is one of those.
pub fn time_zone() -> Option<String> {
    zone_of(&fs::read_link(LOCAL_TIME).ok()?)
}

fn zone_of(link: &Path) -> Option<String> {
    let (_, zone) = link.to_str()?.split_once("/zoneinfo/")?;
    Some(zone.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_swap_file_is_sparse_private_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        let file = swap_file(&path, 8 << 20).unwrap();
        let about = file.metadata().unwrap();
        assert_eq!((about.len(), about.blocks(), about.mode() & 0o777), (8 << 20, 0, 0o600));
        let used = swap_file(&path, 8 << 20).unwrap_err();
        assert!(format!("{:?}", used).contains("another virtual machine"), "{used:?}");
        std::os::unix::fs::FileExt::write_all_at(&file, SWAP_MARK, SWAP_MARK_AT).unwrap();
        drop(file);
        let again = swap_file(&path, 4 << 20).unwrap().metadata().unwrap();
        assert_eq!((again.len(), again.blocks()), (4 << 20, 0), "what was swapped out is not kept");
    }

    #[test]
    fn a_file_that_holds_something_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters");
        for content in [b"dear".as_slice(), &[7; 9000]] {
            fs::write(&path, content).unwrap();
            assert!(swap_file(&path, 1 << 20).is_err());
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert!(
            swap_file(folder.path(), 1 << 20).is_err() && swap_file(Path::new("/dev/null"), 1 << 20).is_err()
        );
    }

    #[test]
    fn sleep_is_what_the_clocks_differ_by() {
        let mut sleep = Sleep { slept: Duration::from_secs(100) };
        assert!(!sleep.compare(Duration::from_millis(100_499)));
        assert!(sleep.compare(Duration::from_secs(105)));
        assert!(!sleep.compare(Duration::from_secs(105)));
        assert!(!Sleep::watch().look());
    }

    #[test]
    fn a_zone_is_a_links_end() {
        assert_eq!(zone_of(Path::new("/usr/share/zoneinfo/Europe/Berlin")).as_deref(), Some("Europe/Berlin"));
        assert_eq!(zone_of(Path::new("../usr/share/zoneinfo/UTC")).as_deref(), Some("UTC"));
        assert_eq!(zone_of(Path::new("/etc/mine")), None);
    }
}
