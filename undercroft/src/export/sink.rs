//! Compressing and writing, to files and to pipes that somebody may not read from.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Compression, TELL, Target, Teller};
use crate::error::Error;

/// What a pipe that can be written to takes at once without blocking, in bytes (pipe(7), PIPE_BUF).
const PIPE: usize = 4096;

/// A compressor, or none, and the file behind it.
pub(super) enum Sink<'a, 'b> {
    Plain(Out<'a, 'b>),
    Gzip(flate2::write::GzEncoder<Out<'a, 'b>>),
    Xz(liblzma::write::XzEncoder<Out<'a, 'b>>),
    Zstd(zstd::stream::write::Encoder<'static, Out<'a, 'b>>),
}

impl<'a, 'b> Sink<'a, 'b> {
    pub(super) fn new(to: &Target<'a>, teller: &'a RefCell<Teller<'b>>) -> io::Result<Self> {
        let blocks = !to.file.metadata()?.is_file();
        let out = Out { file: to.file, blocks, teller };
        Ok(match to.compression {
            Compression::None => Self::Plain(out),
            Compression::Gzip => {
                Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default()))
            }
            Compression::Xz => Self::Xz(liblzma::write::XzEncoder::new(out, 6)),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes what the compressor has kept back.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(mut out) => out.flush(),
            Self::Gzip(encoder) => encoder.finish()?.flush(),
            Self::Xz(encoder) => encoder.finish()?.flush(),
            Self::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // What is compressed is flushed once, at its end.
        Ok(())
    }
}

/// The file itself. While a pipe is full, who is told about progress can still end it.
pub(super) struct Out<'a, 'b> {
    file: &'a File,
    blocks: bool,
    teller: &'a RefCell<Teller<'b>>,
}

impl Out<'_, '_> {
    fn wait(&self) -> io::Result<()> {
        let limit = PollTimeout::try_from(TELL).unwrap_or(PollTimeout::ZERO);
        loop {
            let mut wanted = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut wanted, limit) {
                // Ready, or broken, which writing tells.
                Ok(1..) => return Ok(()),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !self.teller.borrow_mut().go_on() {
                return Err(io::ErrorKind::Other.into());
            }
        }
    }
}

impl Write for Out<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = if self.blocks {
            self.wait()?;
            self.file.write(&bytes[..bytes.len().min(PIPE)])?
        } else {
            self.file.write(bytes)?
        };
        self.teller.borrow_mut().so_far.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What a failure to write was.
pub(super) fn explain(to: &Target<'_>, source: io::Error) -> Error {
    let full = matches!(
        source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    match nix::sys::statvfs::fstatvfs(to.file) {
        Ok(about) if full => {
            let free_mib = about.blocks_available().saturating_mul(about.fragment_size()) >> 20;
            Error::DiskFull { path: to.name.into(), free_mib }
        }
        _ => Error::File { what: "write", path: to.name.into(), source },
    }
}
