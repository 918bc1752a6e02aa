//! FUSE's messages between the kernel and a stream, one at a time in each direction, by a thread each: neither waits for the other.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    thread,
};

use nix::sys::socket::{Shutdown, shutdown};
use undercroft_guest::process::exit_child;
use undercroft_protocol::command::{Done, FUSE_MESSAGE_MAX, Failure};

use crate::jobs::system;

/// Bytes of the header of an answer (linux/fuse.h, struct fuse_out_header), which begins with the answer's length.
const ANSWER: usize = 16;

/// Carries them until one side has no more. The whole process ends then: its hold on the device is the file system's life.
pub(super) fn run(device: &File, stream: &File) -> Result<Done, Failure> {
    const WHAT: &str = "carrying a folder's messages";
    let (to_kernel, from_host) =
        device.try_clone().and_then(|device| Ok((device, stream.try_clone()?))).map_err(system(WHAT))?;
    let answers = thread::Builder::new().stack_size(64 << 10).name("answers".into());
    let answers = answers.spawn(move || {
        // Whatever ended it: a kernel that takes no more, or a host that has no more or talks nonsense.
        let _ = carry_answers(from_host, to_kernel);
        exit_child(0)
    });
    answers.map_err(system(WHAT))?;
    let _ = carry_requests(device, stream);
    let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&stream.as_fd()), Shutdown::Both);
    exit_child(0)
}

/// From the kernel to the host: a read(2) of the device gives one request, whole.
fn carry_requests(mut device: &File, mut stream: &File) -> io::Result<()> {
    let mut message = vec![0; FUSE_MESSAGE_MAX];
    loop {
        match device.read(&mut message) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(message.get(..length).unwrap_or_default())?,
            // The request was interrupted before it was read (ENOENT, fuse(4)), or this process was.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
            // ENODEV: it was unmounted.
            Err(error) => return Err(error),
        }
    }
}

/// From the host to the kernel: a write(2) to the device is one answer, whole.
fn carry_answers(mut stream: impl Read, mut device: impl Write) -> io::Result<()> {
    let mut message = vec![0; FUSE_MESSAGE_MAX];
    loop {
        stream.read_exact(message.get_mut(..ANSWER).unwrap_or_default())?;
        let [a, b, c, d, ..] = message[..] else { return Ok(()) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some(rest) = message.get_mut(ANSWER..length) else {
            let words = format!("an answer of {length} bytes where {ANSWER} to {FUSE_MESSAGE_MAX} can be");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        };
        stream.read_exact(rest)?;
        match device.write(message.get(..length).unwrap_or_default()) {
            // Nobody waits for it any more: the request was interrupted.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes note of each write.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for &mut Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.into());
            // The first answer's request was interrupted.
            if self.0.len() == 1 { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answer(length: u32, content: &[u8]) -> Vec<u8> {
        [&length.to_le_bytes()[..], &[7; 12], content].concat()
    }

    #[test]
    fn an_answer_is_one_write_each() {
        let answers = [answer(16, b""), answer(19, b"abc"), answer(17, b"x")];
        let mut kernel = Writes::default();
        let end = carry_answers(&answers.concat()[..], &mut kernel).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(kernel.0, answers);
    }

    #[test]
    fn a_length_that_cannot_be_ends_it() {
        for length in [0, 15, FUSE_MESSAGE_MAX as u32 + 1, u32::MAX] {
            let mut kernel = Writes::default();
            let error = carry_answers(&answer(length, b"abc")[..], &mut kernel).unwrap_err();
            assert!(error.to_string().contains("where 16 to 135168 can be"), "{error}");
            assert!(kernel.0.is_empty());
        }
    }
}
