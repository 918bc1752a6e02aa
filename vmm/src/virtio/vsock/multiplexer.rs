//! Between the guest's queues and the host's unix sockets, on the devices' event loop.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::carrier::Carrier;
use super::connection::{Connection, Fate, Stage};
use super::packet::{self, HEADER_LENGTH, Header};
use super::sockets;
use crate::virtio::buffers::Buffers;
use crate::virtio::event_loop::{Handler, Registration};
use crate::virtio::queue::{Chain, VirtQueue};

/// The most connections, in whatever state. (Tests reach it with fewer file descriptors.)
pub(super) const MAX_CONNECTIONS: usize = if cfg!(any(test, feature = "fuzzing")) { 40 } else { 4096 };
/// The most bytes that wait for sockets, all connections together.
const MAX_BUFFERED: usize = 128 << 20;
/// From how many unsent resets on nothing more is taken from the guest. (Each connection can add one of its own.)
const MAX_RESETS: usize = 256;
/// The most chains that one read of a socket fills: Linux's are of 4 KiB each.
const CHAINS: usize = 32;
/// Connections of the host get ports from here on.
const FIRST_HOST_PORT: u32 = 1 << 30;

pub(super) const RECEIVE: u32 = 0;
pub(super) const TRANSMIT: u32 = 1;
pub(super) const LISTENER: u32 = 2;
pub(super) const CARRIER: u32 = 3;
/// Connections have tokens from here on.
const FIRST_CONNECTION: u32 = 16;

/// The multiplexer: one per activation of the device.
pub(super) struct Multiplexer {
    pub(super) cid: u64,
    /// The beginning of the ports' paths.
    pub(super) path: PathBuf,
    pub(super) listener: Arc<UnixListener>,
    pub(super) carrier: Option<Arc<Carrier>>,
    pub(super) registration: Registration,
    pub(super) receive: VirtQueue,
    pub(super) transmit: VirtQueue,
    pub(super) connections: HashMap<u32, Connection>,
    pub(super) by_ports: HashMap<(u32, u32), u32>,
    /// Those that have something for the guest, in turn.
    line: VecDeque<u32>,
    resets: VecDeque<Header>,
    buffered: usize,
    next_token: u32,
    next_port: u32,
    /// A program on the host could not be taken in for want of file descriptors; it is tried again when some are free.
    pub(super) is_accept_due: bool,
    /// How many connections the carrier has brought, and whether it brings more as soon as some are gone.
    pub(super) carried: usize,
    pub(super) is_carrier_due: bool,
}

impl Handler for Multiplexer {
    fn ready(&mut self, token: u32, events: EventSet) {
        match token {
            RECEIVE => {
                self.receive.heard();
            }
            TRANSMIT => {
                self.transmit.heard();
            }
            LISTENER => self.accept(),
            CARRIER => self.carry(),
            _ => self.socket_ready(token, events),
        }
        self.take_those_that_wait();
        // Each may make room for the other: answers need buffers, and packets are only taken if answers have room.
        self.feed();
        if token == TRANSMIT || token == RECEIVE {
            self.drain();
            self.take_those_that_wait();
            self.feed();
        }
        self.transmit.signal();
        self.receive.signal();
        #[cfg(any(test, feature = "fuzzing"))]
        self.audit();
    }
}

impl Multiplexer {
    pub(super) fn new(
        cid: u64,
        path: PathBuf,
        listener: Arc<UnixListener>,
        carrier: Option<Arc<Carrier>>,
        registration: Registration,
        receive: VirtQueue,
        transmit: VirtQueue,
    ) -> Self {
        Self {
            cid,
            path,
            listener,
            carrier,
            registration,
            receive,
            transmit,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            buffered: 0,
            next_token: FIRST_CONNECTION,
            next_port: FIRST_HOST_PORT,
            is_accept_due: false,
            carried: 0,
            is_carrier_due: false,
        }
    }

    /// What is held for the guest has bounds, whatever it does.
    #[cfg(any(test, feature = "fuzzing"))]
    fn audit(&self) {
        let count = self.connections.len();
        assert!(count <= MAX_CONNECTIONS, "{count} connections");
        assert!(self.by_ports.len() <= count, "{} ports of {count} connections", self.by_ports.len());
        assert!(self.line.len() <= count, "a line of {} for {count} connections", self.line.len());
        let resets = self.resets.len();
        assert!(resets <= MAX_RESETS + MAX_CONNECTIONS, "{resets} resets wait");
        let buffered: usize = self.connections.values().map(Connection::buffered).sum();
        assert_eq!(self.buffered, buffered, "the account of what waits for sockets");
        assert!(self.buffered <= MAX_BUFFERED);
    }

    // From the guest.

    /// Takes packets from the guest, one queue's length at most at a go.
    fn drain(&mut self) {
        let memory = self.transmit.memory().clone();
        for _ in 0..self.transmit.size() {
            if self.resets.len() >= MAX_RESETS {
                // Goes on when the guest has given buffers to receive into, which rings.
                return;
            }
            let Some(chain) = self.transmit.pop() else {
                if self.transmit.enable_notifications() {
                    continue;
                }
                return;
            };
            let Chain { head, mut readable, .. } = chain;
            self.packet(&memory, &mut readable);
            self.transmit.push(head, 0);
        }
        self.transmit.ring();
    }

    /// One packet of the guest. What is no packet, or not from this guest, is dropped.
    fn packet(&mut self, memory: &GuestMemoryMmap, bytes: &mut Buffers) {
        let Some(header) = bytes.read_array::<HEADER_LENGTH>(memory) else { return };
        let header = Header::decode(&header);
        if header.source_cid != self.cid || u64::from(header.length) > bytes.len() {
            return;
        }
        if header.target_cid != packet::HOST_CID || header.kind != packet::TYPE_STREAM {
            return self.answer_with_reset(&header);
        }
        let ports = (header.source_port, header.target_port);
        let Some(&token) = self.by_ports.get(&ports) else {
            return match header.op {
                packet::OP_REQUEST => self.connect(&header),
                _ => self.answer_with_reset(&header),
            };
        };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.stage == Stage::Draining {
            if header.op == packet::OP_REQUEST {
                // The guest uses the port again; what is left of its earlier connection has had its time.
                self.remove(token);
                self.connect(&header);
            } else {
                self.answer_with_reset(&header);
            }
            return;
        }
        connection.note_credit(&header);
        let before = connection.buffered();
        let fate = match header.op {
            packet::OP_RESPONSE if connection.stage == Stage::Requested => connection.establish(),
            packet::OP_RST => connection.reset(),
            packet::OP_SHUTDOWN => connection.shut_down(header.flags),
            packet::OP_RW => connection.push(memory, bytes.take(header.length.into())),
            packet::OP_CREDIT_UPDATE => Fate::Live,
            packet::OP_CREDIT_REQUEST => {
                connection.due.credit_update = true;
                Fate::Live
            }
            // A second request, an answer to none, or nonsense.
            _ => Fate::Reset,
        };
        self.buffered += connection.buffered();
        self.buffered -= before;
        let fate = if self.buffered > MAX_BUFFERED { Fate::Reset } else { fate };
        self.settle(token, fate);
    }

    /// The guest wants to be connected to a port of the host.
    fn connect(&mut self, header: &Header) {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{}", header.target_port));
        if self.connections.len() >= MAX_CONNECTIONS {
            return self.answer_with_reset(header);
        }
        let Ok(stream) = sockets::connect_now(&path) else { return self.answer_with_reset(header) };
        let mut connection =
            Connection::new(stream, Stage::Established, header.source_port, header.target_port);
        connection.note_credit(header);
        connection.due.response = true;
        let token = self.insert(connection);
        self.by_ports.insert((header.source_port, header.target_port), token);
        self.settle(token, Fate::Live);
    }

    fn answer_with_reset(&mut self, header: &Header) {
        if header.op != packet::OP_RST {
            self.resets.push_back(header.reset_of());
        }
    }

    // From the host.

    /// There may be room for more of the host's connections.
    fn take_those_that_wait(&mut self) {
        if self.is_accept_due {
            self.accept();
        }
        if self.is_carrier_due {
            self.carry();
        }
    }

    /// A port of the host that has no connection with `guest_port`. There are 2^30 times three, and few connections.
    pub(super) fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // The last is VMADDR_PORT_ANY.
            if port != u32::MAX && !self.by_ports.contains_key(&(guest_port, port)) {
                return port;
            }
        }
    }

    fn socket_ready(&mut self, token: u32, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.stage == Stage::Greeting {
            return self.greet(token);
        }
        let before = connection.buffered();
        let fate = connection.ready(events);
        self.buffered += connection.buffered();
        self.buffered -= before;
        let fate = match (fate, connection.stage) {
            // The program went away before the guest answered.
            (Fate::Live, Stage::Requested) if events.contains(EventSet::HANG_UP) => Fate::Reset,
            (fate, _) => fate,
        };
        self.settle(token, fate);
    }

    // To the guest.

    /// Gives the guest what there is for it, as far as it has given buffers; a turn for each connection.
    fn feed(&mut self) {
        let memory = self.receive.memory().clone();
        let mut budget = usize::from(self.receive.size());
        while !self.resets.is_empty() || !self.line.is_empty() {
            if budget == 0 {
                self.receive.ring();
                return;
            }
            let Some(chain) = self.receive.pop() else {
                if self.receive.enable_notifications() {
                    continue;
                }
                return;
            };
            if !can_hold_data(&chain) {
                // Of no use for any connection: given back empty.
                self.receive.push(chain.head, 0);
                budget -= 1;
                continue;
            }
            let used = match self.resets.pop_front() {
                Some(header) => {
                    self.deliver(&memory, &chain, &header);
                    1
                }
                None => self.turn(&memory, chain),
            };
            budget = budget.saturating_sub(used.max(1));
        }
    }

    /// The turn of the connection at the head of the line, with a first chain to fill; returns how many it took.
    fn turn(&mut self, memory: &GuestMemoryMmap, chain: Chain) -> usize {
        let next = self.line.pop_front();
        let Some((token, connection)) =
            next.and_then(|token| self.connections.get_mut(&token).map(|connection| (token, connection)))
        else {
            // It has ended since.
            self.receive.unpop();
            return 0;
        };
        connection.queued = false;
        if let Some((op, flags)) = connection.next_due() {
            let header = connection.header(self.cid, op, flags, 0);
            self.deliver(memory, &chain, &header);
            self.settle(token, Fate::Live);
            return 1;
        }
        let room = chain.writable.len() - HEADER_LENGTH as u64;
        if let Some(opening) = connection.next_opening(room) {
            let header = connection.header(self.cid, packet::OP_RW, 0, opening.len() as u32);
            write_packet(&mut self.receive, memory, &chain, &header, &opening);
            self.settle(token, Fate::Live);
            return 1;
        }
        let mut credit = u64::from(connection.credit());
        let mut room = Buffers::new();
        let appetite = connection.appetite(CHAINS);
        let mut chains = Vec::with_capacity(appetite);
        let mut first = Some(chain);
        while credit > 0 && chains.len() < appetite {
            let Some(chain) = first.take().or_else(|| self.receive.pop()) else { break };
            if !can_hold_data(&chain) {
                self.receive.unpop();
                break;
            }
            let mut data = chain.writable.clone();
            data.skip(HEADER_LENGTH as u64);
            let data = data.take(credit);
            credit -= data.len();
            room.append(&data);
            chains.push((chain, data.len()));
        }
        let used = match connection.pull(memory, &room) {
            None => {
                self.settle(token, Fate::Reset);
                0
            }
            Some(mut count) => {
                let mut used = 0;
                for (chain, capacity) in &chains {
                    // A capacity is at most the credit, a u32.
                    let length = count.min(*capacity as u32);
                    if length == 0 {
                        break;
                    }
                    count -= length;
                    used += 1;
                    let header = connection.header(self.cid, packet::OP_RW, 0, length);
                    write_header(&mut self.receive, memory, chain, &header, length);
                }
                connection.note_filled(used, chains.len(), CHAINS);
                self.settle(token, Fate::Live);
                used
            }
        };
        for _ in used..chains.len() + usize::from(first.is_some()) {
            self.receive.unpop();
        }
        used
    }

    fn deliver(&mut self, memory: &GuestMemoryMmap, chain: &Chain, header: &Header) {
        write_header(&mut self.receive, memory, chain, header, 0);
    }

    // All connections.

    pub(super) fn insert(&mut self, connection: Connection) -> u32 {
        let token = loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(FIRST_CONNECTION);
            if !self.connections.contains_key(&token) {
                break token;
            }
        };
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        // Only for want of memory; the connection then never gets an event, and goes when the guest ends it.
        let _ = self.registration.watch(&connection.stream, token, events);
        self.connections.insert(token, connection);
        token
    }

    /// Puts a connection where it belongs now.
    pub(super) fn settle(&mut self, token: u32, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match fate {
            Fate::Gone => self.remove(token),
            Fate::Reset => {
                let header = connection.header(self.cid, packet::OP_RST, 0, 0);
                self.resets.push_back(header);
                self.remove(token);
            }
            Fate::Live => {
                connection.ask_for_credit();
                if !connection.queued && connection.has_something() {
                    connection.queued = true;
                    self.line.push_back(token);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, token: u32) {
        let Some(connection) = self.connections.remove(&token) else { return };
        self.registration.forget(&connection.stream);
        if connection.queued {
            // The line only moves when the guest gives buffers, which it need not.
            self.line.retain(|&other| other != token);
        }
        self.buffered -= connection.buffered();
        self.carried -= usize::from(connection.is_carried);
        let ports = (connection.guest_port, connection.host_port);
        if self.by_ports.get(&ports) == Some(&token) {
            self.by_ports.remove(&ports);
        }
    }
}

/// Whether a chain has room for a header and at least one byte.
fn can_hold_data(chain: &Chain) -> bool {
    chain.writable.len() > HEADER_LENGTH as u64
}

fn write_packet(
    queue: &mut VirtQueue,
    memory: &GuestMemoryMmap,
    chain: &Chain,
    header: &Header,
    data: &[u8],
) {
    let packet = [&header.encode()[..], data].concat();
    chain.writable.clone().write(memory, &packet);
    // A header and no more than the chain has room for.
    queue.push(chain.head, packet.len() as u32);
}

fn write_header(queue: &mut VirtQueue, memory: &GuestMemoryMmap, chain: &Chain, header: &Header, data: u32) {
    chain.writable.clone().write(memory, &header.encode());
    queue.push(chain.head, HEADER_LENGTH as u32 + data);
}
