//! FUSE's messages between the kernel and a stream.
//!
//! One process, one poll(2): a host that is slow to take requests must not keep its answers waiting, or both would wait for ever.
//! The device never blocks: it has a request when it says so, and takes each answer at once.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::AsFd,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use undercroft_protocol::command::FUSE_MESSAGE_MAX;

/// Bytes of the header of an answer (linux/fuse.h, struct fuse_out_header), which begins with the answer's length.
const ANSWER: usize = 16;

/// Carries them until one side has no more. What keeps the device open after that keeps the file system alive.
pub(super) fn run(device: &File, stream: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
    fcntl(stream, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let (mut request, mut answer) = (Request::new(), Answer::new());
    loop {
        let has_request = !request.rest().is_empty();
        let [asks, moves] = {
            let mut fds = [
                PollFd::new(device.as_fd(), if has_request { PollFlags::empty() } else { PollFlags::POLLIN }),
                PollFd::new(
                    stream.as_fd(),
                    if has_request { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN },
                ),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            fds.map(|fd| fd.any().unwrap_or(true))
        };
        match (asks, has_request) {
            (true, false) => request.take(device)?,
            // Nothing but its end was asked for.
            (true, true) => return Err(Errno::ENODEV.into()),
            (false, _) => {}
        }
        if asks || moves {
            request.pass_on(stream)?;
        }
        if moves {
            answer.carry(stream, device)?;
        }
    }
}

/// One from the kernel, as far as the host has not taken it.
struct Request {
    message: Vec<u8>,
    length: usize,
    done: usize,
}

impl Request {
    fn new() -> Self {
        Self { message: vec![0; FUSE_MESSAGE_MAX], length: 0, done: 0 }
    }

    fn rest(&self) -> &[u8] {
        self.message.get(self.done..self.length).unwrap_or_default()
    }

    /// A read(2) of the device gives one request, whole.
    fn take(&mut self, mut device: impl Read) -> io::Result<()> {
        self.done = 0;
        self.length = match device.read(&mut self.message) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            // The request was interrupted before it was read (ENOENT, fuse(4)), or this process was.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => 0,
            // ENODEV: it was unmounted.
            Err(error) => return Err(error),
        };
        Ok(())
    }

    fn pass_on(&mut self, mut stream: impl Write) -> io::Result<()> {
        while !self.rest().is_empty() {
            match stream.write(self.rest()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One from the host, as far as it has come.
struct Answer {
    message: Vec<u8>,
    done: usize,
}

impl Answer {
    fn new() -> Self {
        Self { message: vec![0; FUSE_MESSAGE_MAX], done: 0 }
    }

    /// How long it is to be; its header, as long as that is not there.
    fn length(&self) -> io::Result<usize> {
        let length = match self.message.first_chunk() {
            Some(bytes) if self.done >= ANSWER => u32::from_le_bytes(*bytes) as usize,
            _ => ANSWER,
        };
        if (ANSWER..=FUSE_MESSAGE_MAX).contains(&length) {
            Ok(length)
        } else {
            Err(ErrorKind::InvalidData.into())
        }
    }

    /// What there is, to the kernel: a write(2) to the device is one answer, whole.
    fn carry(&mut self, mut stream: impl Read, mut device: impl Write) -> io::Result<()> {
        loop {
            let length = self.length()?;
            let room = self.message.get_mut(self.done..length).unwrap_or_default();
            if room.is_empty() {
                self.done = 0;
                match device.write(self.message.get(..length).unwrap_or_default()) {
                    // Nobody waits for it any more: the request was interrupted.
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                    _ => continue,
                }
            }
            match stream.read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
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

    /// Gives so many bytes at a time, and has none in between.
    struct Slow<'a>(&'a [u8], usize, bool);

    impl Read for &mut Slow<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = self.1.min(room.len());
            let count = Read::read(&mut self.0, &mut room[..count])?;
            Ok(count)
        }
    }

    fn message(length: u32, content: &[u8]) -> Vec<u8> {
        [&length.to_le_bytes()[..], &[7; 12], content].concat()
    }

    #[test]
    fn an_answer_is_one_write_however_it_comes() {
        let answers = [message(16, b""), message(19, b"abc"), message(17, b"x")];
        for at_a_time in [1, 3, 17, 100] {
            let (mut kernel, mut answer) = (Writes::default(), Answer::new());
            let bytes = answers.concat();
            let mut stream = Slow(&bytes, at_a_time, false);
            let end = loop {
                if let Err(error) = answer.carry(&mut stream, &mut kernel) {
                    break error;
                }
            };
            assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
            assert_eq!(kernel.0, answers);
        }
    }

    #[test]
    fn a_length_that_cannot_be_ends_it() {
        for length in [0, 15, FUSE_MESSAGE_MAX as u32 + 1, u32::MAX] {
            let mut kernel = Writes::default();
            let error = Answer::new().carry(&message(length, b"abc")[..], &mut kernel).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(kernel.0.is_empty());
        }
    }

    #[test]
    fn a_request_waits_for_a_host_that_is_slow() {
        /// Takes two bytes, then none for once.
        struct Full(Vec<u8>, bool);
        impl Write for &mut Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                let count = bytes.len().min(2);
                self.0.extend(&bytes[..count]);
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (asked, mut host, mut request) = (message(45, &[1; 29]), Full(Vec::new(), false), Request::new());
        request.take(&asked[..]).unwrap();
        while !request.rest().is_empty() {
            request.pass_on(&mut host).unwrap();
        }
        assert_eq!(host.0, asked);
    }
}
