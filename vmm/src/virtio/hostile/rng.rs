//! Requests for random numbers.

use super::{Part, Program};
use crate::virtio::rng::Rng;
use crate::virtio::{EventLoop, VirtioDevice};

pub(super) struct Subject;

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        (Self, Box::new(Rng::new(events.clone())))
    }

    fn request(&mut self, program: &mut Program<'_>, _: usize) -> Vec<Part> {
        (0..=program.below(3)).map(|_| Part::In(program.number())).collect()
    }
}
