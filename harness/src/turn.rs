//! Whose turn it is: tests that listen at ports of a fixed number, on the one host that they all run on if that has KVM itself.

use std::{fs::File, io::ErrorKind};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::outcome::Failure;

/// The fixed ports are this test's, and no other test's of any user or clone, until this is dropped.
#[must_use]
pub struct Turn {
    _lock: Flock<File>,
}

/// Waits until the fixed ports are nobody else's. In a lab, which has a network of its own, they never are.
///
/// # Errors
/// The file that is locked cannot be made, or not be locked.
pub fn take() -> Result<Turn, Failure> {
    let path = std::env::temp_dir().join("undercroft-test-ports.lock");
    // Another user's is good enough: who may read a file may lock it. So one that is there is not opened to be made.
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::create_new(&path).or_else(|_| File::open(&path))?
        }
        other => other?,
    };
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(Turn { _lock: lock }),
            Err((back, Errno::EINTR)) => file = back,
            Err((_, error)) => return Err(std::io::Error::from(error).into()),
        }
    }
}
