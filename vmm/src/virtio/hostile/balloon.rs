//! Pages given up, and pages that are not the guest's to give.

use super::{Land, Part, Program, Taken};
use crate::config::BalloonConfig;
use crate::virtio::balloon::{Balloon, BalloonControl};
use crate::virtio::{EventLoop, VirtioDevice};

pub(super) struct Subject(BalloonControl);

impl super::Subject for Subject {
    fn new(program: &mut Program<'_>, events: &EventLoop) -> (Self, Box<dyn VirtioDevice>) {
        let config = BalloonConfig { free_page_reporting: !program.once_in(4), ..BalloonConfig::default() };
        let (balloon, control) = Balloon::new(config, events.clone());
        (Self(control), Box::new(balloon))
    }

    fn request(&mut self, program: &mut Program<'_>, queue: usize) -> Vec<Part> {
        if queue == 2 {
            return (0..=program.below(3)).map(|_| Part::In(program.number())).collect();
        }
        let mut list = Vec::new();
        // A flood at times.
        let repeat = if program.once_in(16) { 300 } else { 1 };
        for _ in 0..program.below(20) {
            // Pages of memory, of its hole, and of nowhere.
            let page = match program.byte() {
                0..=239 => u32::from(program.byte() % 0x74),
                _ => program.number(),
            };
            for i in 0..repeat {
                list.extend(page.wrapping_add(i).to_le_bytes());
            }
        }
        vec![Part::Out(list)]
    }

    fn host(&mut self, program: &mut Program<'_>) {
        self.0.set_target(program.number());
        assert!(self.0.actual_mib() <= u32::MAX / 256);
    }

    fn judge(&mut self, chains: &[Taken], now: &[u8], land: &mut Land) {
        for chain in chains.iter().filter(|chain| chain.queue == 0) {
            for page in chain.readable.chunks_exact(4) {
                let page = u32::from_le_bytes([page[0], page[1], page[2], page[3]]);
                land.allow_dropped(now, page.into());
            }
            // A list that lies in a page which it names is zeros from then on.
            land.allow_dropped(now, 0);
        }
    }
}
