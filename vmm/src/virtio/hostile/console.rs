//! Output that nobody reads, and input for which there is no room.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::census::Census;
use super::{Land, Part, Program, Taken};
use crate::virtio::console::Console;
use crate::virtio::{EventLoop, VirtioDevice, lock};

pub(super) struct Subject {
    input: Option<PipeWriter>,
    output: Option<PipeReader>,
    /// What the console said that it wrote.
    shown: Arc<Mutex<Vec<u8>>>,
    written: Census,
}

fn never_block(fd: impl AsFd) {
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
}

impl super::Subject for Subject {
    fn new(_: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let (from, input) = std::io::pipe().expect("a pipe");
        let (output, to) = std::io::pipe().expect("a pipe");
        never_block(&input);
        never_block(&output);
        let shown: Arc<Mutex<Vec<u8>>> = Arc::default();
        let tap = shown.clone();
        let device = Console::new(
            Some(OwnedFd::from(from)),
            Some(OwnedFd::from(to)),
            Some(Box::new(move |bytes: &[u8]| lock(&tap).extend(bytes))),
            events.clone(),
        );
        let subject = Self { input: Some(input), output: Some(output), shown, written: Census::default() };
        (subject, Box::new(device))
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part> {
        if queue == 0 {
            return vec![Part::In(program.number())];
        }
        let count = program.number().min(40_000) as usize;
        let text = program.byte();
        vec![Part::Out(vec![text; count]), Part::Out(program.bytes(4).to_vec())]
    }

    fn host(&mut self, program: &mut Program<'_>) {
        match program.below(8) {
            0 => self.input = None,
            1 => self.output = None,
            2..=4 => {
                let bytes = vec![program.byte(); program.number().min(8192) as usize];
                if let Some(input) = &mut self.input {
                    let _ = input.write(&bytes);
                }
            }
            _ => {
                let mut bytes = vec![0; program.number().min(70_000) as usize];
                if let Some(output) = &mut self.output {
                    let _ = output.read(&mut bytes);
                }
            }
        }
    }

    fn judge(&mut self, chains: &[Taken], _: &[u8], _: &mut Land) {
        for chain in chains.iter().filter(|chain| chain.queue == 1) {
            self.written.add_chain(chain, 0);
        }
        self.written.take(&std::mem::take(&mut *lock(&self.shown)));
    }
}
