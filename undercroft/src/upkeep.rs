//! What keeps a running machine in order: memory that goes back, swap, and a clock that follows the host's.

use std::{
    fmt::{self, Display, Formatter},
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
/// How far two of the host's clocks must have parted for that to count, in nanoseconds: they are not read at the same moment.
const PARTED: i128 = 500_000_000;
/// After how long the machine's clock is looked at in any case, in nanoseconds.
const HOUR: i128 = 3600 * 1_000_000_000;
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

/// Why the machine's clock may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// The host has slept.
    Slept,
    /// Somebody has set the host's clock.
    Stepped,
    /// Two clocks are never quite as fast.
    Drifted,
}

impl Display for Off {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slept => "after the host slept",
            Self::Stepped => "after the host's was set",
            Self::Drifted => "against drift",
        })
    }
}

/// When the machine's clock was last as right as the host's; [`Machine::set_clock`] makes it so again.
#[derive(Debug)]
pub struct Clocks {
    right: Reading,
}

impl Clocks {
    /// Begins to watch, with a clock that is right.
    pub fn watch() -> Self {
        Self { right: Reading::now() }
    }

    /// Whether the machine's clock is to be set, and why; from now on it is taken to be right.
    pub fn look(&mut self) -> Option<Off> {
        let now = Reading::now();
        let off = now.off_since(&self.right)?;
        self.right = now;
        Some(off)
    }
}

/// The host's clocks at one moment, in nanoseconds (clock_gettime(2)).
#[derive(Debug, Clone, Copy)]
struct Reading {
    boottime: i128,
    monotonic: i128,
    realtime: i128,
}

impl Reading {
    fn now() -> Self {
        let read = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        Self {
            boottime: read(ClockId::Boottime),
            monotonic: read(ClockId::Monotonic),
            realtime: read(ClockId::Realtime),
        }
    }

    /// Whether a machine's clock that was right then may be off now. CLOCK_MONOTONIC stands still while the host sleeps, and the
    /// other two go on. A step moves CLOCK_REALTIME alone; who only makes the clocks faster or slower, as NTP does with a
    /// small difference, does it to all of them.
    fn off_since(&self, right: &Self) -> Option<Off> {
        let slept = |at: &Self| at.boottime - at.monotonic;
        let epoch = |at: &Self| at.realtime - at.boottime;
        if slept(self) - slept(right) >= PARTED {
            Some(Off::Slept)
        } else if (epoch(self) - epoch(right)).abs() >= PARTED {
            Some(Off::Stepped)
        } else {
            (self.monotonic - right.monotonic >= HOUR).then_some(Off::Drifted)
        }
    }
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
    fn sleep_a_step_and_an_hour_put_a_clock_off() {
        const SECOND: i128 = 1_000_000_000;
        // Of a host that has slept for ten seconds since it was booted.
        let at = |seconds: i128| Reading {
            boottime: (seconds + 10) * SECOND,
            monotonic: seconds * SECOND,
            realtime: (seconds + 1_790_000_000) * SECOND,
        };
        let right = at(100);
        let little = PARTED - 1;
        let slept = |for_ns| Reading {
            boottime: at(110).boottime + for_ns,
            realtime: at(110).realtime + for_ns,
            ..at(110)
        };
        let stepped = |by_ns| Reading { realtime: at(110).realtime + by_ns, ..at(110) };
        for (now, off) in [
            (right, None),
            (at(110), None),
            (at(3699), None),
            (at(3700), Some(Off::Drifted)),
            (slept(little), None),
            (slept(PARTED), Some(Off::Slept)),
            (slept(8 * 3600 * SECOND), Some(Off::Slept)),
            (stepped(little), None),
            (stepped(-little), None),
            (stepped(PARTED), Some(Off::Stepped)),
            (stepped(-3600 * SECOND), Some(Off::Stepped)),
        ] {
            assert_eq!(now.off_since(&right), off, "{now:?}");
        }
    }

    #[test]
    fn what_was_seen_once_counts_once_and_small_steps_add_up() {
        let mut clocks = Clocks::watch();
        assert_eq!(clocks.look(), None);
        clocks.right.realtime -= 2 * PARTED / 3;
        assert_eq!(clocks.look(), None);
        clocks.right.realtime -= 2 * PARTED / 3;
        assert_eq!((clocks.look(), clocks.look()), (Some(Off::Stepped), None));
    }

    #[test]
    fn a_zone_is_a_links_end() {
        assert_eq!(zone_of(Path::new("/usr/share/zoneinfo/Europe/Berlin")).as_deref(), Some("Europe/Berlin"));
        assert_eq!(zone_of(Path::new("../usr/share/zoneinfo/UTC")).as_deref(), Some("UTC"));
        assert_eq!(zone_of(Path::new("/etc/mine")), None);
    }
}
