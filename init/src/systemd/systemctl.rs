//! systemctl, asked without waiting for ever.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{process, program::PATH};

/// The most of an answer that is read, in bytes.
const LONGEST: usize = 64 << 10;

/// What systemctl prints, whatever its status says of it; `None` if it could not be executed or took longer than that,
/// when it is killed.
pub(super) fn ask(arguments: &[&str], limit: Duration) -> Option<String> {
    let mut command = Command::new("systemctl");
    command
        .arg("--no-pager")
        .arg("--no-ask-password")
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = process::spawn_with_default_signals(&mut command).ok()?;
    let answer = child.stdout.take().and_then(|output| read(OwnedFd::from(output).into(), limit));
    if answer.is_none() {
        let _ = child.kill();
    }
    // PID 2's loop may have taken its end; that it ended is all that matters.
    let _ = child.wait();
    answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads to the end, which is when the program has ended.
fn read(mut output: File, limit: Duration) -> Option<Vec<u8>> {
    let end = Instant::now() + limit;
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    loop {
        let left = end.checked_duration_since(Instant::now())?;
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut descriptor = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut descriptor, timeout), Ok(1)) {
            continue;
        }
        match output.read(&mut block).ok()? {
            0 => return Some(answer),
            length if answer.len() < LONGEST => answer.extend(&block[..length]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_answer_ends_with_its_program_or_with_the_time() {
        let (read_end, write_end) = nix::unistd::pipe().unwrap();
        let mut write_end = File::from(write_end);
        write_end.write_all(b"running\n").unwrap();
        assert_eq!(read(read_end.try_clone().unwrap().into(), Duration::ZERO), None);
        write_end.write_all(b"running\n").unwrap();
        drop(write_end);
        assert!(read(read_end.into(), Duration::from_secs(60)).unwrap().ends_with(b"running\n"));
    }
}
