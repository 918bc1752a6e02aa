//! A hostile guest: it follows its program, step by step, and after each step that lets the device work, what came of
//! it is judged.

use super::ledger::Ledger;
use super::program::Program;
use super::rings::{Kind, Ring};
use super::{Land, Part, Subject, land, turns};
use crate::bus::Device as _;
use crate::virtio::{EventLoop, Interrupt, MmioTransport, VirtioDevice, lock, mmio};
use std::sync::Arc;

/// The most steps of one program.
const STEPS: usize = 400;
/// The most rounds that a device may have something to do, without the guest or the host doing anything. Each round
/// takes a queue's length of chains at most, and what was added in a step is a few hundred.
const ROUNDS: usize = 2000;
/// Registers by what they are for; the guest writes these more often than others.
const REGISTERS: [u64; 20] = [
    mmio::STATUS,
    mmio::QUEUE_SEL,
    mmio::QUEUE_NUM,
    mmio::QUEUE_READY,
    mmio::QUEUE_NOTIFY,
    mmio::QUEUE_DESC_LOW,
    mmio::QUEUE_DESC_HIGH,
    mmio::QUEUE_DRIVER_LOW,
    mmio::QUEUE_DRIVER_HIGH,
    mmio::QUEUE_DEVICE_LOW,
    mmio::QUEUE_DEVICE_HIGH,
    mmio::DRIVER_FEATURES_SEL,
    mmio::DRIVER_FEATURES,
    mmio::DEVICE_FEATURES_SEL,
    mmio::INTERRUPT_ACK,
    mmio::SHM_LEN_LOW,
    mmio::CONFIG_GENERATION,
    mmio::CONFIG,
    mmio::CONFIG + 4,
    mmio::CONFIG + 20,
];

/// A guest and the device that it attacks.
pub(super) struct Guest<S: Subject> {
    pub(super) subject: S,
    pub(super) land: Land,
    transport: MmioTransport,
    interrupt: Arc<Interrupt>,
    events: EventLoop,
    pub(super) rings: Vec<Ring>,
    /// Where the next buffer is taken from.
    next_buffer: u64,
}

impl<S: Subject> Guest<S> {
    pub(super) fn new(subject: S, device: Box<dyn VirtioDevice>, events: EventLoop) -> Self {
        let land = Land::new();
        let interrupt = Interrupt::new().expect("an eventfd");
        *lock(&interrupt.ledger) = Some(Ledger::default());
        let transport =
            MmioTransport::new(device, land.memory.clone(), interrupt.clone()).expect("file descriptors");
        let rings = vec![Ring::default(); transport.doorbells().len()];
        Self { subject, land, transport, interrupt, events, rings, next_buffer: super::rings::BUFFERS }
    }

    /// Runs a program to its end. Its first byte says whether the device is set up as it should be to begin with.
    pub(super) fn run(&mut self, program: &mut Program<'_>) {
        if !program.once_in(8) {
            self.bring_up(program);
        }
        for _ in 0..STEPS {
            if program.is_over() {
                break;
            }
            self.step(program);
        }
        self.settle();
        // Whatever it was at: a reset ends it, and then it is quiet.
        self.write(mmio::STATUS, 0);
        self.judge();
        self.ring(0, 1);
        self.settle();
        self.subject.end();
    }

    fn step(&mut self, program: &mut Program<'_>) {
        match program.byte() % 16 {
            0 => self.bring_up(program),
            1 => {
                let register = match program.byte() {
                    n @ 0..=239 => REGISTERS[usize::from(n) % REGISTERS.len()],
                    _ => program.word().into(),
                };
                let value = program.number();
                self.write(register, value);
            }
            2 => {
                let mut data = [0; 8];
                let width = program.pick(&[4, 1, 2, 8]);
                self.transport.read(program.word().into(), &mut data[..width]);
            }
            3 => {
                let (at, width) = (mmio::CONFIG + u64::from(program.byte()), program.pick(&[4, 1, 2, 8]));
                let value = u64::from(program.number()) << 32 | u64::from(program.number());
                self.transport.write(at, &value.rotate_left(32).to_le_bytes()[..width]);
            }
            4..=8 => {
                let queue = program.below(self.rings.len());
                self.request(program, queue);
                // Most often it is told of it, too.
                if !program.once_in(4) {
                    self.ring(queue, 1);
                    self.settle();
                }
            }
            9 => {
                let queue = program.below(self.rings.len());
                self.raw_descriptors(program, queue);
            }
            10 => {
                let queue = program.below(self.rings.len());
                if program.once_in(3) {
                    let index = program.word();
                    self.set_available(queue, index);
                } else {
                    // The same again, and again.
                    let head = program.byte().into();
                    for _ in 0..=program.byte() {
                        self.offer(queue, head);
                    }
                }
            }
            11 => {
                let (queue, times) = (program.below(self.rings.len() + 1), program.byte());
                self.ring(queue, times.max(1));
                self.settle();
            }
            12 | 13 => {
                self.subject.host(program);
                self.settle();
            }
            14 => {
                let (at, count) = (self.place(program), program.below(64));
                let bytes = program.bytes(count);
                self.land.write(at, bytes);
            }
            _ => {
                self.write(mmio::STATUS, 0);
                self.judge();
                // What rings now rings for nobody.
                self.ring(0, 1);
            }
        }
    }

    /// Follows the rules up to DRIVER_OK, or nearly.
    fn bring_up(&mut self, program: &mut Program<'_>) {
        let how = program.byte();
        self.write(mmio::STATUS, 0);
        self.judge();
        self.write(mmio::STATUS, 3);
        for select in 0..2 {
            self.write(mmio::DEVICE_FEATURES_SEL, select);
            self.write(mmio::DRIVER_FEATURES_SEL, select);
            let offered = self.read(mmio::DEVICE_FEATURES);
            let refused = match (select, how & 3) {
                // EVENT_IDX.
                (0, 1) => 1 << 29,
                // All of the device's own.
                (0, 2) => 0xff_ffff,
                _ => 0,
            };
            self.write(mmio::DRIVER_FEATURES, offered & !refused);
        }
        self.write(mmio::STATUS, 11);
        let kind = Kind::of(how >> 5);
        let count = self.rings.len();
        for index in 0..count {
            // One is left out at times.
            if how & 4 != 0 && index + 1 == count {
                continue;
            }
            self.write(mmio::QUEUE_SEL, index as u32);
            let longest = self.read(mmio::QUEUE_NUM_MAX) as u16;
            let size = (longest >> (2 * (how >> 3 & 3))).max(1);
            let ring = Ring::new(kind, index, size);
            self.land.write(ring.descriptors, &vec![0; 16 * usize::from(size)]);
            self.land.write(ring.available, &vec![0; 6 + 2 * usize::from(size)]);
            self.land.write(ring.used, &vec![0; 6 + 8 * usize::from(size)]);
            self.write(mmio::QUEUE_NUM, size.into());
            for (low, high, at) in [
                (mmio::QUEUE_DESC_LOW, mmio::QUEUE_DESC_HIGH, ring.descriptors),
                (mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DRIVER_HIGH, ring.available),
                (mmio::QUEUE_DEVICE_LOW, mmio::QUEUE_DEVICE_HIGH, ring.used),
            ] {
                self.write(low, at as u32);
                self.write(high, (at >> 32) as u32);
            }
            self.write(mmio::QUEUE_READY, 1);
            self.rings[index] = ring;
        }
        self.write(mmio::STATUS, 15);
        self.settle();
    }

    pub(super) fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) {
        // A reset by whatever register write: what was handed over before is the device's until then.
        if register == mmio::STATUS && value == 0 {
            self.transport.write(register, &[0; 4]);
            self.judge();
            if let Some(ledger) = &mut *lock(&self.interrupt.ledger) {
                ledger.rings.clear();
            }
            return;
        }
        self.transport.write(register, &value.to_le_bytes());
    }

    fn ring(&self, queue: usize, times: u8) {
        for _ in 0..times {
            self.transport.write(mmio::QUEUE_NOTIFY, &(queue as u32).to_le_bytes());
        }
    }

    /// Room for a buffer of so many bytes, or of as many as there are.
    pub(super) fn buffer(&mut self, length: u64) -> u64 {
        let at = self.next_buffer;
        // Across the hole, too, once in a while: then the chain is none.
        self.next_buffer = (at + length.min(0x1_0000)).next_multiple_of(8);
        if self.next_buffer >= land::HIGH_END {
            self.next_buffer = super::rings::BUFFERS;
            return super::rings::BUFFERS;
        }
        if at < land::HIGH && self.next_buffer > land::LOW_END {
            self.next_buffer = land::HIGH;
        }
        at
    }

    /// Some address, most often one where something begins or ends.
    pub(super) fn place(&mut self, program: &mut Program<'_>) -> u64 {
        let near = u64::from(program.byte() % 64);
        match program.below(12) {
            0 => land::LOW_END - near,
            1 => land::LOW_END + near,
            2 => land::HIGH - near,
            3 => land::HIGH + near,
            4 => land::HIGH_END - near,
            5 => u64::MAX - near,
            6 => program.quad(),
            7 => program.long().into(),
            8 => near * 4096,
            n => {
                let ring = &self.rings[usize::from(near as u8) % self.rings.len()];
                [ring.used, ring.available, ring.descriptors][n - 9] + near / 4
            }
        }
    }

    /// Lets the device work until it has nothing to do, and looks at what it did.
    pub(super) fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let count = self.events.turn_now().expect("epoll") + turns::turn();
            if count == 0 {
                return;
            }
            self.judge();
        }
        panic!("the device spins");
    }

    fn judge(&mut self) {
        let (rings, chains) = match &mut *lock(&self.interrupt.ledger) {
            Some(ledger) => (ledger.rings.clone(), std::mem::take(&mut ledger.chains)),
            None => return,
        };
        let now = self.land.now();
        for (address, length) in rings {
            self.land.allow(&now, address, length);
        }
        for chain in &chains {
            for segment in &chain.writable {
                self.land.allow(&now, segment.address.0, segment.length.into());
            }
        }
        self.subject.judge(&chains, &now, &mut self.land);
        self.land.check(&now);
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) {
        let parts: Vec<Part> = self.subject.request(program, queue);
        self.add(program, queue, parts);
    }
}
