//! Frames of all sizes, headers that lie; and at the other end of the cable a peer that reads and writes when it likes, what it
//! likes, or is replaced by another.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::census::Census;
use super::{Land, Part, Program, Taken};
use crate::config::NetConfig;
use crate::virtio::net::{Net, NetControl};
use crate::virtio::{EventLoop, VirtioDevice};

/// Bytes of virtio's header.
const HEADER_LENGTH: usize = 12;
/// Bytes of a frame's length on the wire, and the longest that there is.
const PREFIX_LENGTH: usize = 4;
const FRAME_MAX: usize = 65_553;

pub(super) struct Subject {
    control: NetControl,
    peer: Option<UnixStream>,
    /// What the peer has read and not taken apart yet.
    read: Vec<u8>,
    /// What the guest's frames held.
    sent: Census,
}

impl Subject {
    fn connect(&mut self) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("fcntl");
        self.control.connect(ours.into()).expect("a link");
        self.peer = Some(theirs);
        self.read.clear();
    }

    /// The peer writes frames, or what looks like one.
    fn write(&mut self, program: &mut Program<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let mut bytes = Vec::new();
        for _ in 0..=program.below(4) {
            let length = program.number().min(70_000);
            let announced = if program.once_in(20) { program.long() } else { length };
            bytes.extend(announced.to_be_bytes());
            bytes.extend(vec![program.byte(); length as usize]);
        }
        if program.once_in(5) {
            bytes.truncate(program.below(256));
        }
        let _ = peer.write(&bytes);
    }

    /// The peer reads. What it reads are frames of the guest's, and nothing else.
    fn read(&mut self, most: usize) {
        let Some(peer) = &mut self.peer else { return };
        let mut bytes = vec![0; most];
        let count = peer.read(&mut bytes).unwrap_or(0);
        self.read.extend(&bytes[..count]);
        while let Some((prefix, rest)) = self.read.split_first_chunk::<PREFIX_LENGTH>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            assert!((14..=FRAME_MAX).contains(&length), "a frame of {length} bytes was sent");
            let Some(frame) = rest.get(..length) else { break };
            self.sent.take(frame);
            self.read.drain(..PREFIX_LENGTH + length);
        }
    }
}

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let (device, control) = Net::new(&NetConfig::default(), events.clone()).expect("an eventfd");
        let mut subject = Self { control, peer: None, read: Vec::new(), sent: Census::default() };
        subject.connect();
        (subject, Box::new(device))
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part> {
        if queue == 0 {
            return (0..=program.below(2)).map(|_| Part::In(program.number())).collect();
        }
        let mut header = vec![0; HEADER_LENGTH];
        if program.once_in(4) {
            header[0] = program.byte();
            header[1] = if program.once_in(2) { program.byte() } else { 0 };
            header[6..8].copy_from_slice(&(program.number() as u16).to_le_bytes());
            header[8..10].copy_from_slice(&(program.number() as u16).to_le_bytes());
        }
        if program.once_in(20) {
            header.truncate(program.below(HEADER_LENGTH));
        }
        let count = program.number().min(66_000) as usize;
        vec![Part::Out(header), Part::Out(vec![program.byte(); count]), Part::Out(program.bytes(20).to_vec())]
    }

    fn host(&mut self, program: &mut Program<'_>) {
        match program.below(8) {
            0 => self.peer = None,
            1 => self.connect(),
            2..=4 => self.write(program),
            _ => self.read(program.number().min(100_000) as usize),
        }
    }

    fn judge(&mut self, chains: &[Taken], _: &[u8], _: &mut Land) {
        for chain in chains.iter().filter(|chain| chain.queue == 1) {
            self.sent.add_chain(chain, HEADER_LENGTH);
            // A checksum is not the guest's.
            if chain.readable.first().is_some_and(|flags| flags & 1 != 0) {
                self.sent.open();
            }
        }
    }

    fn end(&mut self) {
        for _ in 0..8 {
            self.read(1 << 20);
        }
    }
}
