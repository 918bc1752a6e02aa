//! The kernel says when somebody begins or ends to listen: programs of twenty instructions at the distributions' cgroup.
//!
//! One is called for every TCP socket of theirs (BPF_PROG_TYPE_SOCK_OPS, linux/bpf.h), and puts one empty record into a ring
//! buffer when a socket goes into the state LISTEN or out of it. Another (BPF_PROG_TYPE_CGROUP_SOCK) does so when a datagram
//! socket was bound, and when any of them is closed. What is listened for is then read from /proc: the programs are the bell
//! and not the list, so that a bell that was missed costs nothing but time.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// bpf(2)'s commands.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// BPF_MAP_TYPE_RINGBUF; BPF_PROG_TYPE_SOCK_OPS and BPF_PROG_TYPE_CGROUP_SOCK.
const RING_BUFFER: u32 = 27;
const SOCK_OPS: u32 = 13;
const CGROUP_SOCK: u32 = 9;
/// Where at a cgroup: BPF_CGROUP_SOCK_OPS; BPF_CGROUP_INET4_POST_BIND, INET6_POST_BIND and INET_SOCK_RELEASE.
const AT_OPS: u32 = 3;
const AT_DATAGRAMS: [u32; 3] = [12, 13, 34];

/// Callbacks: BPF_SOCK_OPS_STATE_CB with the old state as its first argument, BPF_SOCK_OPS_TCP_LISTEN_CB; and the flag by
/// which a socket asks for the former.
const STATE_CHANGES: i32 = 10;
const BEGINS_TO_LISTEN: i32 = 11;
const STATE_FLAG: i32 = 4;
/// TCP_LISTEN (net/tcp_states.h).
const LISTENING: i32 = 10;
/// bpf_sock_ops_cb_flags_set, bpf_ringbuf_output, and the latter's flag that wakes whoever polls (helpers' numbers).
const SET_FLAGS: i32 = 59;
const OUTPUT: i32 = 130;
const WAKE: i32 = 2;

/// Bytes of the ring: a page; a record takes 16.
const RING: u32 = 4096;
const PAGE: usize = 4096;

/// An instruction (struct bpf_insn): code, target and source register, offset, number.
const fn instruction(code: u8, target: u8, source: u8, offset: i16, number: i32) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (offset.to_ne_bytes(), number.to_ne_bytes());
    [code, source << 4 | target, a, b, c, d, e, f]
}

const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const LOAD: u8 = 0x61;
const STORE_NUMBER: u8 = 0x7a;
const IF_EQUAL: u8 = 0x15;
const IF_OTHER: u8 = 0x55;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Two instructions; with 1 as the source register the number is a map's descriptor (BPF_PSEUDO_MAP_FD).
const LOAD_WIDE: u8 = 0x18;

/// The end of each program: the bell, which is eight zeros in the ring of this descriptor; then, where those jump to who do
/// not ring it, 1: go on.
fn bell(ring: BorrowedFd<'_>) -> [[u8; 8]; 10] {
    [
        instruction(STORE_NUMBER, 10, 0, -8, 0),
        instruction(LOAD_WIDE, 1, 1, 0, ring.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -8),
        instruction(SET, 3, 0, 0, 8),
        instruction(SET, 4, 0, 0, WAKE),
        instruction(CALL, 0, 0, 0, OUTPUT),
        instruction(SET, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// That for streams.
fn streams(ring: BorrowedFd<'_>) -> Vec<u8> {
    let begin = [
        instruction(MOVE, 6, 1, 0, 0),
        // struct bpf_sock_ops: which callback it is, then its arguments.
        instruction(LOAD, 2, 6, 0, 0),
        instruction(IF_EQUAL, 2, 0, 4, BEGINS_TO_LISTEN),
        instruction(IF_OTHER, 2, 0, 14, STATE_CHANGES),
        instruction(LOAD, 3, 6, 4, 0),
        instruction(IF_OTHER, 3, 0, 12, LISTENING),
        instruction(JUMP, 0, 0, 3, 0),
        // It begins: its end is to be told, too.
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, STATE_FLAG),
        instruction(CALL, 0, 0, 0, SET_FLAGS),
    ];
    [&begin[..], &bell(ring)].concat().concat()
}

/// That for datagrams.
fn datagrams(ring: BorrowedFd<'_>) -> Vec<u8> {
    let begin = [
        // struct bpf_sock: its third word is the type of socket.
        instruction(LOAD, 2, 1, 8, 0),
        instruction(IF_OTHER, 2, 0, 8, libc::SOCK_DGRAM),
    ];
    [&begin[..], &bell(ring)].concat().concat()
}

/// bpf(2)'s argument (union bpf_attr), of which these commands use less.
type Attributes = [u8; 128];

fn put<const N: usize>(attributes: &mut Attributes, at: usize, bytes: [u8; N]) {
    attributes[at..at + N].copy_from_slice(&bytes);
}

fn bpf(command: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the attributes live through the call, and so does what they point at, as the callers guarantee; the kernel only
    // reads it.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of::<Attributes>() as libc::c_ulong)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it, so nobody else has it; all three commands make one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Loads a program of this kind, and hangs it up at a cgroup as long as what this gives.
fn hang(instructions: &[u8], kind: u32, place: u32, cgroup: &File) -> io::Result<OwnedFd> {
    let mut attributes = [0; 128];
    put(&mut attributes, 0, kind.to_ne_bytes());
    put(&mut attributes, 4, (instructions.len() as u32 / 8).to_ne_bytes());
    put(&mut attributes, 8, (instructions.as_ptr() as u64).to_ne_bytes());
    put(&mut attributes, 16, (c"Dual MIT/GPL".as_ptr() as u64).to_ne_bytes());
    put(&mut attributes, 48, *b"listen_bell");
    put(&mut attributes, 68, place.to_ne_bytes());
    let program = bpf(PROG_LOAD, &attributes)?;
    let mut attributes = [0; 128];
    put(&mut attributes, 0, program.as_raw_fd().to_ne_bytes());
    put(&mut attributes, 4, cgroup.as_raw_fd().to_ne_bytes());
    put(&mut attributes, 8, place.to_ne_bytes());
    bpf(LINK_CREATE, &attributes)
}

/// The bell at a cgroup. It is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Bell {
    ring: OwnedFd,
    _links: Vec<OwnedFd>,
    consumer: Page,
    producer: Page,
}

impl Bell {
    /// Hangs it up at this cgroup, for the sockets of all processes below.
    pub(super) fn at(cgroup: &str) -> io::Result<Self> {
        let mut attributes = [0; 128];
        put(&mut attributes, 0, RING_BUFFER.to_ne_bytes());
        put(&mut attributes, 12, RING.to_ne_bytes());
        let ring = bpf(MAP_CREATE, &attributes)?;

        let cgroup = File::open(cgroup)?;
        let mut links = vec![hang(&streams(ring.as_fd()), SOCK_OPS, AT_OPS, &cgroup)?];
        for place in AT_DATAGRAMS {
            links.push(hang(&datagrams(ring.as_fd()), CGROUP_SOCK, place, &cgroup)?);
        }
        let consumer = Page::map(ring.as_fd(), 0, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Page::map(ring.as_fd(), PAGE, libc::PROT_READ)?;
        Ok(Self { ring, _links: links, consumer, producer })
    }

    /// Silences it: what it rang for is dealt with.
    pub(super) fn heard(&self) {
        let rung = self.producer.position().load(Ordering::Acquire);
        self.consumer.position().store(rung, Ordering::Release);
    }
}

impl AsFd for Bell {
    /// Readable when it has rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// A page of the ring's, which begins with a position that the kernel shares.
#[derive(Debug)]
struct Page(NonNull<libc::c_void>);

impl Page {
    fn map(ring: BorrowedFd<'_>, offset: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping, where the kernel likes; it overlaps nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                protection,
                libc::MAP_SHARED,
                ring.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn position(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped as long as `self` lives, its beginning is aligned, and the kernel keeps a position of 64
        // bits there, which it, too, reads and writes atomically. The producer's is never written here.
        unsafe { self.0.cast::<AtomicU64>().as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_land_where_they_should() {
        let file = tempfile::tempfile().unwrap();
        let at = |program: &[u8], n: usize| -> [u8; 8] { program[8 * n..8 * n + 8].try_into().unwrap() };
        let target = |program: &[u8], n: usize| {
            let instruction = at(program, n);
            n + 1 + usize::from(u16::from_ne_bytes([instruction[2], instruction[3]]))
        };
        let ring = instruction(STORE_NUMBER, 10, 0, -8, 0);
        let program = streams(file.as_fd());
        let out = program.len() / 8 - 2;
        assert_eq!((target(&program, 3), target(&program, 5)), (out, out));
        assert_eq!(at(&program, target(&program, 2)), instruction(MOVE, 1, 6, 0, 0), "ask for the end");
        assert_eq!(at(&program, target(&program, 6)), ring);
        let program = datagrams(file.as_fd());
        assert_eq!(target(&program, 1), program.len() / 8 - 2);
        assert_eq!(at(&program, 2), ring);
    }
}
