//! Packets that lie, credit that is none, floods of connections; and programs on the host that read when they like.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;

use super::census::Census;
use super::{Land, Part, Program, Taken};
use crate::config::VsockConfig;
use crate::virtio::vsock::Vsock;
use crate::virtio::{EventLoop, VirtioDevice};

const CID: u32 = 3;
/// Bytes of a packet's header (virtio 1.2, section 5.10.6).
const HEADER_LENGTH: usize = 44;
/// Ports of the host where somebody listens: up to this one.
const PORTS: usize = 3;
/// The most programs on the host, on either side.
const PROGRAMS: usize = 60;

/// Where somebody on the host listens.
struct Port {
    listener: UnixListener,
    accepted: Vec<UnixStream>,
    /// What the guest's packets to this port held.
    sent: Census,
}

pub(super) struct Subject {
    folder: TempDir,
    ports: Vec<Port>,
    /// Programs that have connected to the guest, and what they were told so far.
    callers: Vec<(UnixStream, Vec<u8>)>,
    /// What the guest's packets to those held.
    answered: Census,
}

impl Subject {
    /// A program on the host connects to the guest, or talks nonsense.
    fn call(&mut self, program: &mut Program<'_>) {
        if self.callers.len() >= PROGRAMS {
            self.callers.clear();
        }
        let Ok(mut stream) = UnixStream::connect(self.folder.path().join("v")) else { return };
        stream.set_nonblocking(true).expect("fcntl");
        let line = match program.below(8) {
            0 => b"CONNECT 4294967296\n".to_vec(),
            1 => b"CONNECT CONNECT CONNECT CONNECT".to_vec(),
            2 => b"CONNECT 7".to_vec(),
            3 => Vec::new(),
            _ => format!("CONNECT {}\n", program.below(4)).into_bytes(),
        };
        let _ = stream.write_all(&line);
        self.callers.push((stream, Vec::new()));
    }

    fn listen(&mut self, program: &mut Program<'_>) {
        let port = program.below(PORTS);
        let port = &mut self.ports[port];
        if port.accepted.len() >= PROGRAMS {
            port.accepted.clear();
        }
        // One program or all that wait.
        for _ in 0..program.pick(&[1, 1, 128]) {
            let Ok((stream, _)) = port.listener.accept() else { break };
            stream.set_nonblocking(true).expect("fcntl");
            port.accepted.push(stream);
        }
    }

    /// One of the programs that the guest is connected to does something.
    fn act(&mut self, program: &mut Program<'_>) {
        let at = program.below(PORTS + 1);
        let (streams, is_caller) = match self.ports.get_mut(at) {
            Some(port) => (&mut port.accepted, false),
            None => (
                &mut self.callers.iter_mut().map(|(stream, _)| stream.try_clone().expect("fd")).collect(),
                true,
            ),
        };
        if streams.is_empty() {
            return;
        }
        let index = program.below(streams.len());
        let stream = &mut streams[index];
        match program.below(10) {
            0 => drop(stream.shutdown(Shutdown::Write)),
            1 => drop(stream.shutdown(Shutdown::Read)),
            2 if !is_caller => drop(streams.remove(index)),
            2 => drop(self.callers.remove(index)),
            3..=5 => {
                let bytes = vec![program.byte(); program.number().min(100_000) as usize];
                let _ = stream.write(&bytes);
            }
            _ => {
                let mut bytes = vec![0; program.number().min(300_000) as usize];
                let count = stream.read(&mut bytes).unwrap_or(0);
                bytes.truncate(count);
                match self.ports.get_mut(at) {
                    Some(port) => port.sent.take(&bytes),
                    None => self.answer(index, &bytes),
                }
            }
        }
    }

    /// A caller is told `OK` and its port, and then what packets to it held.
    fn answer(&mut self, index: usize, bytes: &[u8]) {
        let told = &mut self.callers[index].1;
        for &byte in bytes {
            if told.last() == Some(&b'\n') {
                self.answered.take(&[byte]);
            } else {
                told.push(byte);
                let start = &told[..told.len().min(3)];
                assert!(b"OK ".starts_with(start) && told.len() < 16, "a caller was told {told:?}");
            }
        }
    }
}

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = (0..PORTS)
            .map(|port| {
                let listener = UnixListener::bind(folder.path().join(format!("v_{port}"))).expect("a socket");
                listener.set_nonblocking(true).expect("fcntl");
                Port { listener, accepted: Vec::new(), sent: Census::default() }
            })
            .collect();
        let config = VsockConfig { cid: CID, socket: folder.path().join("v"), carrier_fd: None };
        let device = Vsock::new(&config, events.clone()).expect("a socket");
        (Self { folder, ports, callers: Vec::new(), answered: Census::default() }, Box::new(device))
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part> {
        if queue != 1 {
            return match program.byte() {
                0..=199 => vec![Part::In(HEADER_LENGTH as u32 + 500)],
                _ => vec![Part::In(program.number())],
            };
        }
        let op = program.pick(&[1, 5, 5, 3, 4, 6, 7, 2, 0, 9]);
        let data = match op {
            5 => vec![program.byte(); program.pick(&[0, 10, 500, 4096, 60_000])],
            _ => Vec::new(),
        };
        let (source_port, target_port) = (program.below(4) as u32, program.below(PORTS + 2) as u32);
        // A few of the host's own ports, where its callers are.
        let target_port = if target_port as usize > PORTS {
            (1 << 30) + u32::from(program.byte() % 4)
        } else {
            target_port
        };
        let length = if program.once_in(6) { program.number() } else { data.len() as u32 };
        let mut header = Vec::with_capacity(HEADER_LENGTH);
        header.extend(u64::from(if program.once_in(30) { program.long() } else { CID }).to_le_bytes());
        header.extend(if program.once_in(30) { program.quad() } else { 2 }.to_le_bytes());
        header.extend(source_port.to_le_bytes());
        header.extend(target_port.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend(if program.once_in(30) { program.word() } else { 1_u16 }.to_le_bytes());
        header.extend((op as u16).to_le_bytes());
        header.extend(u32::from(program.byte() % 5).to_le_bytes());
        // What it says of its own buffer.
        header.extend(if program.once_in(3) { program.number() } else { 0x1_0000 }.to_le_bytes());
        header.extend(if program.once_in(6) { program.number() } else { 0 }.to_le_bytes());
        vec![Part::Out(header), Part::Out(data)]
    }

    fn host(&mut self, program: &mut Program<'_>) {
        match program.below(4) {
            0 => self.call(program),
            1 => self.listen(program),
            _ => self.act(program),
        }
    }

    fn judge(&mut self, chains: &[Taken], _: &[u8], _: &mut Land) {
        for chain in chains.iter().filter(|chain| chain.queue == 1) {
            let Some(header) = chain.readable.get(..HEADER_LENGTH) else { continue };
            let target = u32::from_le_bytes([header[20], header[21], header[22], header[23]]) as usize;
            match self.ports.get_mut(target) {
                Some(port) => port.sent.add_chain(chain, HEADER_LENGTH),
                None => self.answered.add_chain(chain, HEADER_LENGTH),
            }
        }
    }

    fn end(&mut self) {
        // All that is still on the way is the guest's, too; and every connection has ended.
        for port in &mut self.ports {
            while let Ok((stream, _)) = port.listener.accept() {
                stream.set_nonblocking(true).expect("fcntl");
                port.accepted.push(stream);
            }
            for mut stream in port.accepted.drain(..) {
                let mut bytes = Vec::new();
                // A reset of a socket with unread bytes of the host's is an error; that it would block is a leak.
                if let Err(error) = stream.read_to_end(&mut bytes) {
                    assert_ne!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock,
                        "a connection outlived the device"
                    );
                }
                port.sent.take(&bytes);
            }
        }
    }
}
