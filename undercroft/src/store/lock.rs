//! Locks between processes: flock(2), on the very files that are used.
//!
//! A lock belongs to the open file, so it stays while anybody has that open: the VMM, which got a disk's descriptor, keeps
//! the disk's lock even if the process that gave it was killed. That is why closing is what unlocks here.

use std::{fs::File, path::Path, time::Duration};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::error::{Error, Result};

/// How often a lock is tried, and the time between: a process that another thread starts has every open file of this one,
/// locks and all, until it executes its program. Tests start many of them, and the machine that they run on may be busy.
const TRIES: u32 = if cfg!(test) { 100 } else { 10 };
const PAUSE: Duration = Duration::from_millis(10);

fn operate(file: &File, path: &Path, operation: FlockOperation) -> Result<bool> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Error::File { what: "lock", path: path.into(), source: error.into() });
            }
        }
    }
}

/// Whether this is its only user now.
pub(super) fn try_exclusive(file: &File, path: &Path) -> Result<bool> {
    for _ in 0..TRIES {
        if operate(file, path, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Whether nobody is its only user now, and this is one of its users.
pub(super) fn try_shared(file: &File, path: &Path) -> Result<bool> {
    for _ in 0..TRIES {
        if operate(file, path, FlockOperation::NonBlockingLockShared)? {
            return Ok(true);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(false)
}

/// Waits until this is its only user.
pub(super) fn exclusive(file: &File, path: &Path) -> Result<()> {
    operate(file, path, FlockOperation::LockExclusive).map(drop)
}

/// Waits until nobody is its only user, and becomes one of its users.
pub(super) fn shared(file: &File, path: &Path) -> Result<()> {
    operate(file, path, FlockOperation::LockShared).map(drop)
}

/// Is no user any more, nor is who got the file from here.
pub(super) fn unlock(file: &File, path: &Path) -> Result<()> {
    operate(file, path, FlockOperation::Unlock).map(drop)
}
