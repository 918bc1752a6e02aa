//! Requests to a file server that is gone: all that the VMM itself ever reads of them. (While it is there, the VMM touches no
//! queue, and tells it where they are.)

use super::{Part, Program};
use crate::virtio::fs::Fs;
use crate::virtio::{EventLoop, VirtioDevice};

pub(super) struct Subject;

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        (Self, Box::new(Fs::orphan("folder", events.clone())))
    }

    fn request(&mut self, program: &mut Program<'_>, _: usize) -> Vec<Part> {
        let length = program.number().min(256) as usize;
        let mut parts = vec![Part::Out(program.bytes(length).to_vec())];
        for _ in 0..program.below(4) {
            let room = program.number();
            parts.push(if program.once_in(6) {
                Part::Out(vec![1; room as usize % 64])
            } else {
                Part::In(room)
            });
        }
        parts
    }
}
