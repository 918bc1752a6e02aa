//! From a kernel file to a kernel in guest memory.
//!
//! The file is told apart by its content: an ELF `vmlinux`, or a bzImage, whose compressed payload is such an ELF and is
//! unpacked here, on the host, where it takes a fraction of what the kernel's own decompressor costs in a guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{self, GuestMemory};

mod bzimage;
mod elf;

pub use elf::Image;

/// Why a kernel or an initramfs could not be loaded. The texts continue "KERNEL cannot be booted: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What open(2) said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Guest memory could not be filled from the file.
    #[error("cannot read it into guest memory (was it changed meanwhile?)")]
    Load(#[source] GuestMemoryError),
    /// Neither an ELF file nor a bzImage.
    #[error(
        "it is neither an ELF vmlinux nor a bzImage; give the vmlinux of a build, or a distribution's /boot/vmlinuz-*"
    )]
    Unknown,
    /// The file ends too early.
    #[error(
        "it is cut off: {what} need {needs} bytes of file, and there are {length}; copy or build it again"
    )]
    Truncated {
        /// What lies beyond the end.
        what: &'static str,
        /// The length the file should at least have, in bytes.
        needs: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The file contradicts itself or the format.
    #[error("{0}")]
    Malformed(&'static str),
    /// A kernel for other processors.
    #[error("it is for {0}, and this machine is x86-64; a kernel of the host's architecture is needed")]
    Architecture(String),
    /// The kernel does not fit.
    #[error("it needs memory up to {} MiB, and the machine has {} MiB there; raise memory_mib", needs.div_ceil(1 << 20), has >> 20)]
    Memory {
        /// The first address that it does not use, in bytes.
        needs: u64,
        /// The end of RAM below the devices, in bytes.
        has: u64,
    },
    /// The payload is compressed in a way that is not known here.
    #[error("its payload is compressed with {0}; gzip, xz, zstd and lz4 can be unpacked")]
    Compression(&'static str),
    /// The payload cannot be unpacked.
    #[error("its {format} payload cannot be unpacked")]
    Unpack {
        /// The compression's name.
        format: &'static str,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// The payload is larger than what it is to fit into.
    #[error("its payload unpacks to more than {} MiB", limit >> 20)]
    UnpackedSize {
        /// The limit in bytes.
        limit: u64,
    },
    /// The kernel cannot be entered in the way that was asked for.
    #[error("it has no PVH entry (built without CONFIG_PVH); use entry = \"long-mode\"")]
    NoPvhEntry,
    /// The initramfs does not fit.
    #[error("the initramfs {} of {size} bytes does not fit between the kernel and the end of memory; raise memory_mib", path.display())]
    Initramfs {
        /// Its path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Open { path: path.into(), source })
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Elf,
    BzImage,
}

fn kind(file: &File) -> Result<Kind, Error> {
    let mut start = [0; 4];
    if let Err(error) = file.read_exact_at(&mut start, 0) {
        return Err(if error.kind() == io::ErrorKind::UnexpectedEof {
            Error::Unknown
        } else {
            Error::Read(error)
        });
    }
    if start == elf::MAGIC {
        return Ok(Kind::Elf);
    }
    if bzimage::recognise(file)? { Ok(Kind::BzImage) } else { Err(Error::Unknown) }
}

/// The largest kernel that [`vmlinux`] unpacks.
const UNPACKED_MAX: u64 = 1 << 30;

/// Unpacks the kernel at `path` into `out` as an ELF file, for whoever wants to look into it: the payload of a bzImage, or an
/// ELF file as it is. Returns how many bytes it has.
///
/// # Errors
/// The file is neither, is damaged, or unpacks to more than 1 GiB; what is in `out` is then of no use.
pub fn vmlinux(path: &Path, out: &mut File) -> Result<u64, Error> {
    let mut file = open(path)?;
    match kind(&file)? {
        Kind::Elf => io::copy(&mut file, out).map_err(Error::Read),
        Kind::BzImage => bzimage::Payload::find(&file)?.unpack(&file, out, UNPACKED_MAX),
    }
}

/// Loads the kernel at `path` into guest memory.
///
/// # Errors
/// The file is not a kernel that this machine can run; nothing but guest memory has been touched then.
pub fn load_kernel(path: &Path, memory: &GuestMemory) -> Result<Image, Error> {
    let mut file = open(path)?;
    let ram_end = memory::low_end(memory);
    if kind(&file)? == Kind::BzImage {
        file = bzimage::unpack(&file, ram_end)?;
    }
    let image = elf::parse(&file, ram_end)?;
    image.load(&mut file, memory)?;
    Ok(image)
}

/// Loads the initramfs at `path` to the end of the RAM below the devices, and returns its address and size in bytes.
///
/// # Errors
/// The file cannot be read or does not fit behind the kernel, which ends at `kernel_end`.
pub fn load_initramfs(path: &Path, memory: &GuestMemory, kernel_end: u64) -> Result<(u64, u64), Error> {
    let mut file = open(path)?;
    let size = file.metadata().map_err(Error::Read)?.len();
    let address = memory::low_end(memory).checked_sub(size).map(|address| address & !0xfff);
    let Some(address) = address.filter(|address| *address >= kernel_end) else {
        return Err(Error::Initramfs { path: path.into(), size });
    };
    memory.read_exact_volatile_from(GuestAddress(address), &mut file, size as usize).map_err(Error::Load)?;
    Ok((address, size))
}

#[cfg(test)]
mod tests;
