//! Hostile guests: any byte string is a program of one, and this is its interpreter.
//!
//! A program ([`program`]) brings a device up through its registers, or only nearly, lays queues out ([`rings`]), puts
//! requests into them that are right, twisted or nonsense, rings doorbells, resets at any moment, and has the host's
//! side do something now and then. After every step in which the device could work, it is judged ([`guest`]):
//!
//! - it panicked nowhere, and had nothing more to do after a bounded number of rounds;
//! - guest memory ([`land`]) changed only where the device was handed it to write ([`ledger`]), and where pages were
//!   given up to a balloon;
//! - what the device keeps for itself, and what it did to the host's side, is what its [`Subject`] allows.
//!
//! One file a device. The property tests and the seeds in `vmm/tests/hostile/` run here, and so do the fuzz targets in
//! `fuzz/`, by the feature `fuzzing`. Devices run on the calling thread: the same bytes do the same, always.

use crate::virtio::{EventLoop, VirtioDevice};

mod balloon;
mod block;
mod census;
mod console;
mod echo;
mod fs;
mod guest;
mod land;
pub(super) mod ledger;
mod net;
mod program;
mod rings;
mod rng;
mod scsi;
#[cfg(test)]
mod tests;
pub(super) mod turns;
mod vsock;

use guest::Guest;
use land::Land;
use ledger::Taken;
use program::Program;

/// A name, and how a program is run against what it names.
pub type Target = (&'static str, fn(&[u8]));

/// What programs can attack.
pub const TARGETS: &[Target] = &[
    ("transport", attack::<echo::Subject>),
    ("block", attack::<block::Subject>),
    ("scsi", attack::<scsi::Subject>),
    ("vsock", attack::<vsock::Subject>),
    ("balloon", attack::<balloon::Subject>),
    ("rng", attack::<rng::Subject>),
    ("console", attack::<console::Subject>),
    ("net", attack::<net::Subject>),
    ("fs", attack::<fs::Subject>),
];

/// Runs a program against the device of this name.
///
/// # Panics
/// The device did what it must not, or there is none of this name.
pub fn run(name: &str, program: &[u8]) {
    let (_, attack) = TARGETS.iter().find(|(known, _)| *known == name).expect("no such target");
    attack(program);
}

/// One part of a request.
enum Part {
    /// Bytes for the device to read.
    Out(Vec<u8>),
    /// Room for it to write.
    In(u32),
}

/// A device under attack, with the host's side of it.
trait Subject: Sized {
    /// Makes the device as the program's first bytes want it.
    fn new(program: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>);

    /// A request for queue `queue`, such as a driver would make, or not quite.
    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part>;

    /// The host's side does something.
    fn host(&mut self, _program: &mut Program<'_>) {}

    /// Looks at what came of the chains that the device took; `now` is what is in memory.
    fn judge(&mut self, _chains: &[Taken], _now: &[u8], _land: &mut Land) {}

    /// Looks at what is left of the host's side when the device was reset.
    fn end(&mut self) {}
}

fn attack<S: Subject>(bytes: &[u8]) {
    turns::want();
    let mut program = Program::new(bytes);
    let events = EventLoop::new().expect("an epoll instance");
    let (subject, device) = S::new(&mut program, &events);
    Guest::new(subject, device, events).run(&mut program);
    turns::unwant();
}
