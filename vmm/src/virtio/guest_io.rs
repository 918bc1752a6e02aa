//! Input and output straight between file descriptors and guest memory, and guest memory given back to the host.
//!
//! The kernel copies; the VMM never makes a reference to guest memory, which the guest may change at any time.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, Permissions,
};

use super::buffers::Buffers;
use super::uncached::Alignment;

/// The most segments that one system call takes (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// A list of host addresses of guest memory. It borrows the mappings, so that they outlive it.
struct IoVecs<'m> {
    list: Vec<libc::iovec>,
    _memory: &'m GuestMemoryMmap,
}

impl<'m> IoVecs<'m> {
    /// Looks up where the first [`MAX_IOVECS`] segments of `buffers` are mapped.
    fn new(memory: &'m GuestMemoryMmap, buffers: &Buffers) -> io::Result<Self> {
        let mut list = Vec::with_capacity(buffers.segments().len().min(MAX_IOVECS));
        'all: for segment in buffers.segments() {
            let slices =
                GuestMemory::get_slices(memory, segment.address, segment.length as usize, Permissions::No)
                    .map_err(io::Error::other)?;
            for slice in slices {
                if list.len() == MAX_IOVECS {
                    break 'all;
                }
                let slice = slice.map_err(io::Error::other)?;
                // The pointer outlives its guard: these mappings are made once and stay (nothing is mapped on demand),
                // and `self` borrows them.
                let base = slice.ptr_guard_mut().as_ptr();
                list.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        Ok(Self { list, _memory: memory })
    }

    /// For calls that take it as a message; it points into this.
    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros is an empty msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        message.msg_iovlen = self.list.len();
        message
    }

    fn count(&self) -> libc::c_int {
        // At most MAX_IOVECS.
        self.list.len() as libc::c_int
    }
}

fn result(n: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Repeats a system call that a signal interrupted.
fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Fills `buffers` with the file's bytes from `offset` on.
///
/// # Errors
/// The system call's; `UnexpectedEof` if the file ends before.
pub(super) fn read_exact_at(
    file: &File,
    memory: &GuestMemoryMmap,
    mut buffers: Buffers,
    mut offset: u64,
) -> io::Result<()> {
    while !buffers.is_empty() {
        let vectors = IoVecs::new(memory, &buffers)?;
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let n = retry(|| {
            // SAFETY: the vectors name memory that is mapped for as long as `vectors` lives, and no Rust reference to
            // it exists; the kernel may write any bytes there.
            result(unsafe { libc::preadv(file.as_raw_fd(), vectors.list.as_ptr(), vectors.count(), at) })
        })?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffers.skip(n as u64);
        offset += n as u64;
    }
    Ok(())
}

/// Writes all of `buffers` to the file from `offset` on.
///
/// # Errors
/// The system call's.
pub(super) fn write_all_at(
    file: &File,
    memory: &GuestMemoryMmap,
    mut buffers: Buffers,
    mut offset: u64,
) -> io::Result<()> {
    while !buffers.is_empty() {
        let vectors = IoVecs::new(memory, &buffers)?;
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let n = retry(|| {
            // SAFETY: the vectors name memory that is mapped for as long as `vectors` lives; the kernel only reads it, and
            // bytes that the guest changes meanwhile are as good as others.
            result(unsafe { libc::pwritev(file.as_raw_fd(), vectors.list.as_ptr(), vectors.count(), at) })
        })?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        buffers.skip(n as u64);
        offset += n as u64;
    }
    Ok(())
}

/// Reads once from a stream into `buffers`; 0 is its end.
///
/// # Errors
/// The system call's, `WouldBlock` among them.
pub(super) fn read_some(
    fd: BorrowedFd<'_>,
    memory: &GuestMemoryMmap,
    buffers: &Buffers,
) -> io::Result<usize> {
    let vectors = IoVecs::new(memory, buffers)?;
    // SAFETY: as in `read_exact_at`.
    retry(|| result(unsafe { libc::readv(fd.as_raw_fd(), vectors.list.as_ptr(), vectors.count()) }))
}

/// Reads once from a socket into `buffers`; 0 is its end. It does not wait, however the socket was made.
///
/// # Errors
/// The system call's, `WouldBlock` among them.
pub(super) fn receive_some(
    fd: BorrowedFd<'_>,
    memory: &GuestMemoryMmap,
    buffers: &Buffers,
) -> io::Result<usize> {
    let mut vectors = IoVecs::new(memory, buffers)?;
    let mut message = vectors.message();
    // SAFETY: `message` points at `vectors`, which live on, and they at memory as in `read_exact_at`.
    retry(|| result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }))
}

/// Sends once from `buffers` to a socket; a peer that is gone is an error and no signal.
///
/// # Errors
/// The system call's, `WouldBlock` among them.
pub(super) fn send_some(
    fd: BorrowedFd<'_>,
    memory: &GuestMemoryMmap,
    buffers: &Buffers,
) -> io::Result<usize> {
    let mut vectors = IoVecs::new(memory, buffers)?;
    let message = vectors.message();
    retry(|| {
        // SAFETY: `message` points at `vectors`, which live on, and they at memory as in `write_all_at`.
        result(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
    })
}

/// Gives `length` bytes of guest memory back to the host; the guest reads zeros there afterwards.
///
/// Whole host pages only; the caller has rounded. Private anonymous memory is dropped by MADV_DONTNEED, memory of a
/// file by a hole in the file, for which dropping the mapping alone frees nothing.
///
/// # Errors
/// The range is not guest memory, or the system call's.
pub(super) fn discard(memory: &GuestMemoryMmap, address: GuestAddress, length: u64) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut at = address.0;
    let end = at.checked_add(length).ok_or_else(invalid)?;
    while at < end {
        let region = memory.find_region(GuestAddress(at)).ok_or_else(invalid)?;
        let inside = at - region.start_addr().0;
        let count = (end - at).min(region.len() - inside);
        discard_in(region, inside, count)?;
        at += count;
    }
    Ok(())
}

/// `discard` within one region, `inside` bytes from its start.
fn discard_in(region: &GuestRegionMmap, inside: u64, count: u64) -> io::Result<()> {
    if let Some(backing) = region.file_offset() {
        return punch(backing, inside, count);
    }
    let advice = if region.flags() & libc::MAP_SHARED == 0 { libc::MADV_DONTNEED } else { libc::MADV_REMOVE };
    // SAFETY: `inside..inside + count` lies in the region's mapping (checked by the caller against the region's
    // length), which holds guest memory and nothing of the VMM's; that its bytes turn to zeros is what the guest asked
    // for. On MAP_PRIVATE memory the pages go, on MAP_SHARED those of the object behind it.
    let status =
        unsafe { libc::madvise(region.as_ptr().add(inside as usize).cast(), count as usize, advice) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn punch(backing: &FileOffset, inside: u64, count: u64) -> io::Result<()> {
    fallocate(
        backing.file(),
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        backing.start() + inside,
        count,
    )
}

/// fallocate(2).
///
/// # Errors
/// The system call's; `InvalidInput` if the range is past what a file can be.
pub(super) fn fallocate(file: &File, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is passed.
    retry(|| result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } as libc::ssize_t))?;
    Ok(())
}

/// What direct I/O on a file must be aligned to (statx(2), STATX_DIOALIGN, Linux 6.1): `None` where nothing is said, and
/// `Some(None)` where it is said that there is none.
pub(super) fn direct_alignment(file: &File) -> Option<Option<Alignment>> {
    // SAFETY: all zeros is a valid statx, which is integers.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the path is an empty string with its NUL, and `status` is writable.
    let called = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &raw mut status) };
    if called != 0 || status.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    let (memory, offset) = (u64::from(status.stx_dio_mem_align), u64::from(status.stx_dio_offset_align));
    Some((memory > 0 && offset > 0).then_some(Alignment { memory, offset }))
}

/// Whether all of `buffers` lie at multiples of `alignment` in the VMM's own address space, where the kernel looks.
pub(super) fn are_aligned(memory: &GuestMemoryMmap, buffers: &Buffers, alignment: u64) -> bool {
    buffers.segments().iter().all(|segment| {
        let slices =
            GuestMemory::get_slices(memory, segment.address, segment.length as usize, Permissions::No);
        slices.is_ok_and(|mut slices| {
            slices.all(|slice| {
                slice.is_ok_and(|slice| {
                    let address = slice.ptr_guard().as_ptr() as u64;
                    address.is_multiple_of(alignment) && (slice.len() as u64).is_multiple_of(alignment)
                })
            })
        })
    })
}

/// Drops what the host's page cache has of a range of a file and need not be written. A hint: what cannot be dropped stays.
pub(super) fn drop_cached(file: &File, range: &Range<u64>) {
    let (Ok(start), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    // SAFETY: no memory is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), start, length, libc::POSIX_FADV_DONTNEED) };
}

/// flock(2) without waiting; false if someone else's lock is in the way. The lock belongs to the open file: it is gone
/// when the last descriptor is, however the process ends.
///
/// # Errors
/// The system call's.
pub(super) fn try_lock(file: &File, is_exclusive: bool) -> io::Result<bool> {
    let operation = if is_exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    let outcome = retry(|| {
        // SAFETY: no memory is passed.
        result(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } as libc::ssize_t)
    });
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => other.map(|_| true),
    }
}

/// Random bytes from the host's kernel into `bytes`.
///
/// # Errors
/// getrandom(2)'s.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: `rest` is writable for its length.
        done += retry(|| result(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::buffers::Segment;
    use vm_memory::Bytes;

    #[test]
    fn a_hole_in_memory_reads_as_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let plain = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let backed: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            0x4000,
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap();
        for memory in [plain, backed] {
            memory.write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
            discard(&memory, GuestAddress(0x1000), 0x2000).unwrap();
            let mut bytes = vec![1; 0x4000];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert!(bytes[..0x1000].iter().all(|&b| b == 7));
            assert!(bytes[0x1000..0x3000].iter().all(|&b| b == 0));
            assert!(bytes[0x3000..].iter().all(|&b| b == 7));
            assert!(discard(&memory, GuestAddress(0x3000), 0x2000).is_err(), "half of it is no memory");
        }
    }

    /// Of several regions of one file, as shared guest memory is, the right one loses its pages.
    #[test]
    fn shared_memory_goes_back_as_a_hole() {
        use std::os::unix::fs::MetadataExt;
        let memory = crate::memory::map_shared(4 << 10, None).unwrap();
        let blocks = || {
            let region = memory.find_region(GuestAddress(0)).unwrap();
            region.file_offset().unwrap().file().metadata().unwrap().blocks()
        };
        let places = [GuestAddress(0x10_0000), GuestAddress(crate::arch::layout::HIGH_RAM_START)];
        for address in places {
            memory.write_slice(&[7; 0x2000], address).unwrap();
        }
        assert_eq!(blocks(), 4 * 4096 / 512);
        discard(&memory, places[1], 0x2000).unwrap();
        assert_eq!(blocks(), 2 * 4096 / 512);
        assert_eq!(places.map(|place| memory.read_obj::<u8>(place).unwrap()), [7, 0]);
    }

    #[test]
    fn files_and_memory_exchange_bytes_in_place() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut buffers = Buffers::new();
        for i in 0..1500 {
            buffers.push(Segment { address: GuestAddress(2 * i), length: 1 });
            memory.write_obj(i as u8, GuestAddress(2 * i)).unwrap();
        }
        write_all_at(&file, &memory, buffers.clone(), 10).unwrap();
        memory.write_slice(&[0; 0x4000], GuestAddress(0)).unwrap();
        read_exact_at(&file, &memory, buffers.clone(), 10).unwrap();
        assert!((0..1500).all(|i| memory.read_obj::<u8>(GuestAddress(2 * i)).unwrap() == i as u8));
        let error = read_exact_at(&file, &memory, buffers, 11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
