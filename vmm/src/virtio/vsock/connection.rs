//! One connection between a port of the guest and a socket of the host.
//!
//! What the guest sends goes straight from its memory into the socket; what the socket does not take at once waits in
//! `pending`, which holds at most one [`WINDOW`]: that much credit the guest is given, and a guest that sends more
//! loses the connection. What the socket sends is read straight into the guest's buffers, as far as the guest's credit
//! goes, and stays in the socket otherwise. Sockets are watched edge-triggered: `readable` and `writable` say what the
//! last call found out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::Shutdown;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::packet::{self, Header};
use super::sockets::Stream;
use crate::virtio::buffers::Buffers;
use crate::virtio::guest_io;

/// The guest's credit: how many bytes of it may be on the way to the socket. Linux gives as much.
pub(super) const WINDOW: u32 = 256 << 10;

/// After how many bytes the guest is told of its credit, if nothing else tells it.
const UPDATE_AFTER: u32 = WINDOW / 4;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A program on the host has connected and not yet said to which port; so much of its line is here.
    Greeting,
    /// The guest was asked, and has not answered.
    Requested,
    /// Both sides are there.
    Established,
    /// The guest is gone; what it sent before is still on the way.
    Draining,
}

/// Packets without bytes that are to be sent to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) shutdown: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Live,
    /// It ends, and the guest hears of it.
    Reset,
    /// It ends; the guest knows.
    Gone,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    pub(super) stream: Stream,
    pub(super) stage: Stage,
    pub(super) due: Due,
    /// Whether it stands in the line of those that have something for the guest.
    pub(super) queued: bool,
    pub(super) greeting: Vec<u8>,
    /// Of a [carried](super::carrier) one: what the guest is to read first, as long as it was not sent.
    pub(super) opening: Vec<u8>,
    /// Whether it is one.
    pub(super) is_carried: bool,
    readable: bool,
    writable: bool,
    hung_up: bool,

    /// Guest to host: what the socket has not taken yet.
    pending: VecDeque<u8>,
    /// What it has taken (`fwd_cnt`), and what of that the guest was told.
    forwarded: u32,
    told: u32,

    /// Host to guest: what was sent, and what the guest last said of its buffer.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    asked_for_credit: bool,
    /// How many of the guest's buffers are looked at for the next piece. It doubles as long as all are filled: to look at one
    /// takes as long as to fill a part of it, and most of what is said is short.
    appetite: usize,

    /// Which directions each side has ended ([`packet::SHUTDOWN_SEND`], [`packet::SHUTDOWN_RECEIVE`]).
    guest_shutdown: u32,
    host_shutdown: u32,
    /// Whether the socket has been told that the guest sends no more.
    is_end_passed_on: bool,
}

impl Connection {
    pub(super) fn new(stream: impl Into<Stream>, stage: Stage, guest_port: u32, host_port: u32) -> Self {
        Self {
            guest_port,
            host_port,
            stream: stream.into(),
            stage,
            due: Due::default(),
            queued: false,
            greeting: Vec::new(),
            opening: Vec::new(),
            is_carried: false,
            // Not known; the first call tells.
            readable: true,
            writable: true,
            hung_up: false,
            pending: VecDeque::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            asked_for_credit: false,
            appetite: 1,
            guest_shutdown: 0,
            host_shutdown: 0,
            is_end_passed_on: false,
        }
    }

    /// How many of the guest's buffers to take at most, of `most`.
    pub(super) fn appetite(&self, most: usize) -> usize {
        self.appetite.min(most)
    }

    /// Takes note of how many of the buffers that were taken were filled.
    pub(super) fn note_filled(&mut self, filled: usize, taken: usize, most: usize) {
        self.appetite = if filled == taken { (2 * taken).clamp(1, most) } else { filled + 1 };
    }

    /// Bytes of memory that are held for the socket, filled or not.
    pub(super) fn buffered(&self) -> usize {
        self.pending.capacity()
    }

    /// How many more bytes the guest can take. Absurd claims of it are no credit at all.
    pub(super) fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Takes note of what every packet of the guest says about its buffer.
    pub(super) fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        if self.credit() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// Whether there is something to send to the guest.
    pub(super) fn has_something(&self) -> bool {
        self.due != Due::default() || self.wants_credit() && self.credit() > 0
    }

    /// Whether there may be bytes for the guest.
    fn wants_credit(&self) -> bool {
        self.stage == Stage::Established && !self.opening.is_empty() || self.can_pull()
    }

    /// Whether the socket may have bytes for the guest.
    fn can_pull(&self) -> bool {
        self.stage == Stage::Established
            && self.opening.is_empty()
            && self.readable
            && self.host_shutdown & packet::SHUTDOWN_SEND == 0
            && self.guest_shutdown & packet::SHUTDOWN_RECEIVE == 0
    }

    /// Asks the guest for its credit, once, when that is all that is missing.
    pub(super) fn ask_for_credit(&mut self) {
        if self.wants_credit() && self.credit() == 0 && !self.asked_for_credit {
            self.asked_for_credit = true;
            self.due.credit_request = true;
        }
    }

    /// The guest has taken it: the program that asked for it is told, unless it was carried.
    pub(super) fn establish(&mut self) -> Fate {
        self.stage = Stage::Established;
        if self.is_carried {
            return Fate::Live;
        }
        let line = format!("OK {}\n", self.host_port);
        // Nothing else was ever written to the socket: there is room, or nobody.
        match self.stream.send_now(line.as_bytes()) {
            Ok(n) if n == line.len() => Fate::Live,
            _ => Fate::Reset,
        }
    }

    /// As much of the opening as there is room for in the guest, if it was not sent: a few bytes.
    pub(super) fn next_opening(&mut self, room: u64) -> Option<Vec<u8>> {
        let room = room.min(self.credit().into());
        if self.stage != Stage::Established || self.opening.is_empty() || room == 0 {
            return None;
        }
        let rest = self.opening.split_off(self.opening.len().min(room as usize));
        let piece = std::mem::replace(&mut self.opening, rest);
        self.sent = self.sent.wrapping_add(piece.len() as u32);
        Some(piece)
    }

    /// The next packet without bytes, if one is due: op and flags.
    pub(super) fn next_due(&mut self) -> Option<(u16, u32)> {
        let due = &mut self.due;
        let op = if std::mem::take(&mut due.request) {
            packet::OP_REQUEST
        } else if std::mem::take(&mut due.response) {
            packet::OP_RESPONSE
        } else if std::mem::take(&mut due.credit_update) {
            packet::OP_CREDIT_UPDATE
        } else if std::mem::take(&mut due.credit_request) {
            packet::OP_CREDIT_REQUEST
        } else if std::mem::take(&mut due.shutdown) {
            return Some((packet::OP_SHUTDOWN, self.host_shutdown));
        } else {
            return None;
        };
        Some((op, 0))
    }

    /// The header of the next packet to the guest; it tells it of its credit.
    pub(super) fn header(&mut self, guest_cid: u64, op: u16, flags: u32, length: u32) -> Header {
        self.told = self.forwarded;
        self.due.credit_update = false;
        Header {
            source_cid: packet::HOST_CID,
            target_cid: guest_cid,
            source_port: self.host_port,
            target_port: self.guest_port,
            length,
            kind: packet::TYPE_STREAM,
            op,
            flags,
            buffer: WINDOW,
            forwarded: self.forwarded,
        }
    }

    /// Reads from the socket into the guest's buffers; `Some(0)` means that there is nothing now, `None` that the
    /// connection is broken.
    pub(super) fn pull(&mut self, memory: &GuestMemoryMmap, room: &Buffers) -> Option<u32> {
        if !self.can_pull() || room.is_empty() {
            return Some(0);
        }
        match guest_io::receive_some(self.stream.as_fd(), memory, room) {
            Ok(0) => {
                self.host_shutdown |= packet::SHUTDOWN_SEND;
                if self.hung_up {
                    self.host_shutdown = packet::SHUTDOWN_BOTH;
                }
                self.due.shutdown = true;
                Some(0)
            }
            Ok(count) => {
                // `room` is bounded by the credit, a u32.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Some(0)
            }
            Err(_) => None,
        }
    }

    /// Takes bytes of the guest.
    pub(super) fn push(&mut self, memory: &GuestMemoryMmap, mut data: Buffers) -> Fate {
        if self.stage != Stage::Established || self.guest_shutdown & packet::SHUTDOWN_SEND != 0 {
            return Fate::Reset;
        }
        while !data.is_empty() && self.pending.is_empty() && self.writable && self.is_host_listening() {
            match guest_io::send_some(self.stream.as_fd(), memory, &data) {
                Ok(count) => {
                    data.skip(count as u64);
                    self.forward(count);
                }
                Err(error) => self.send_failed(&error),
            }
        }
        if !self.is_host_listening() {
            // Nobody will read it; the guest is told so.
            self.forward(data.len() as usize);
            return Fate::Live;
        }
        let start = self.pending.len();
        if start as u64 + data.len() > u64::from(WINDOW) {
            return Fate::Reset;
        }
        // At most a window: bounded by the line above, whatever the guest says.
        let mut rest = vec![0; data.len() as usize];
        data.read(memory, &mut rest);
        let needed = start + rest.len();
        if needed > self.pending.capacity() {
            // In powers of two like a vector by itself, but never more than the window.
            self.pending.reserve_exact(needed.next_power_of_two() - start);
        }
        self.pending.extend(rest);
        Fate::Live
    }

    /// The guest ends directions.
    pub(super) fn shut_down(&mut self, flags: u32) -> Fate {
        let new = flags & packet::SHUTDOWN_BOTH & !self.guest_shutdown;
        self.guest_shutdown |= new;
        if new & packet::SHUTDOWN_RECEIVE != 0 {
            // Whoever writes to the socket's other end gets EPIPE from now on.
            self.stream.shut_down(Shutdown::Read);
        }
        self.fate()
    }

    /// The guest has dropped the connection. What it had sent before still reaches the socket.
    pub(super) fn reset(&mut self) -> Fate {
        self.stage = Stage::Draining;
        self.due = Due::default();
        self.fate()
    }

    /// The socket has news.
    pub(super) fn ready(&mut self, events: EventSet) -> Fate {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR) {
            self.writable = true;
        }
        if events.contains(EventSet::HANG_UP) && !self.hung_up {
            self.hung_up = true;
            // Otherwise when everything has been read that it sent before.
            if self.host_shutdown & packet::SHUTDOWN_SEND != 0 {
                self.end_receiving();
            }
        }
        self.flush();
        self.fate()
    }

    /// Writes to the socket what waits for it.
    fn flush(&mut self) {
        while !self.pending.is_empty() && self.writable && self.is_host_listening() {
            let (front, _) = self.pending.as_slices();
            match self.stream.send_now(front) {
                Ok(count) => {
                    self.pending.drain(..count);
                    self.forward(count);
                }
                Err(error) => self.send_failed(&error),
            }
        }
        if self.pending.is_empty() {
            // It may have grown to a window; few connections ever need one.
            self.pending = VecDeque::new();
        }
    }

    /// What becomes of the connection, now that something has changed.
    pub(super) fn fate(&mut self) -> Fate {
        if !self.pending.is_empty() {
            return Fate::Live;
        }
        if self.stage == Stage::Draining {
            return Fate::Gone;
        }
        if self.guest_shutdown == packet::SHUTDOWN_BOTH {
            // Section 5.10.6.5: the answer to a complete shutdown is a reset.
            return Fate::Reset;
        }
        if self.guest_shutdown & packet::SHUTDOWN_SEND != 0 && !self.is_end_passed_on {
            self.is_end_passed_on = true;
            self.stream.shut_down(Shutdown::Write);
        }
        Fate::Live
    }

    fn is_host_listening(&self) -> bool {
        self.host_shutdown & packet::SHUTDOWN_RECEIVE == 0
    }

    fn send_failed(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.writable = false;
        } else {
            self.end_receiving();
        }
    }

    /// The host reads no more.
    fn end_receiving(&mut self) {
        if self.is_host_listening() {
            self.host_shutdown |= packet::SHUTDOWN_RECEIVE;
            self.due.shutdown = self.stage == Stage::Established;
        }
        self.forward(self.pending.len());
        self.pending = VecDeque::new();
    }

    /// So many bytes are off the guest's account.
    fn forward(&mut self, count: usize) {
        // The protocol counts modulo 2^32.
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.stage == Stage::Established && self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER {
            self.due.credit_update = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::buffers::Segment;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use vm_memory::GuestAddress;

    #[test]
    fn what_is_held_counts_and_not_what_is_left_in_it() {
        let length = WINDOW as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours, Stage::Established, 1024, 5000);
        let mut piece = Buffers::new();
        piece.push(Segment { address: GuestAddress(0), length: 1000 });
        // First the socket fills, then the window.
        while connection.push(&memory, piece.clone()) == Fate::Live {
            assert!(connection.buffered() <= length, "never more than a window");
        }
        let full = connection.pending.len();
        assert!(full > length - 1000);
        while connection.pending.len() > 10_000 {
            let _ = theirs.read(&mut [0; 4096]);
            assert_eq!(connection.ready(EventSet::OUT), Fate::Live);
        }
        assert_eq!(connection.buffered(), length, "it is held until nothing is left");
        let _ = theirs.read_to_end(&mut Vec::new());
        while !connection.pending.is_empty() {
            assert_eq!(connection.ready(EventSet::OUT), Fate::Live);
            let _ = theirs.read_to_end(&mut Vec::new());
        }
        assert_eq!(connection.buffered(), 0);
    }
}
