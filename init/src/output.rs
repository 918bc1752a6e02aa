//! What a program of the distribution's prints, without waiting for it for ever.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{process, program::PATH};

/// The most of an output that is kept, in bytes.
const LONGEST: usize = 64 << 10;

/// Which of its outputs is read; the other goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Out,
    Error,
}

/// Runs a program as root, in a clean environment, to the end of its output.
///
/// # Errors
/// It could not be executed, or took longer than the limit, when it is killed.
pub(crate) fn of(command: &mut Command, which: Which, limit: Duration) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (out, error) = match which {
        Which::Out => (Stdio::piped(), Stdio::null()),
        Which::Error => (Stdio::null(), Stdio::piped()),
    };
    command.env_clear().env("PATH", PATH).current_dir("/").stdin(Stdio::null()).stdout(out).stderr(error);
    let mut child = process::spawn_with_default_signals(command).map_err(|e| format!("{name}: {e}"))?;
    let output = match which {
        Which::Out => child.stdout.take().map(OwnedFd::from),
        Which::Error => child.stderr.take().map(OwnedFd::from),
    };
    let answer = output.and_then(|output| read(output.into(), limit));
    end(&mut child, answer.is_none());
    let bytes =
        answer.ok_or_else(|| format!("{name} took longer than {} s, and was killed", limit.as_secs()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end(child: &mut Child, kill: bool) {
    if kill {
        let _ = child.kill();
    }
    // The loop may have taken its end; that it ended is all that matters.
    let _ = child.wait();
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
