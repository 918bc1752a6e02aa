//! Progress of what takes long, on standard error if it is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use undercroft::service::wire::Event;

/// What the service tells, shown.
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::no_length();
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar }
    }

    pub(super) fn show(&self, event: Event) {
        match event {
            Event::Progress { what, done, total } => {
                let template = match total {
                    Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left",
                    None => "{msg} {bytes}, {bytes_per_sec}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    self.bar.set_style(style);
                }
                match total {
                    Some(total) => self.bar.set_length(total),
                    None => self.bar.unset_length(),
                }
                if self.bar.message() != what {
                    self.bar.set_message(what);
                    self.bar.reset_eta();
                }
                self.bar.set_position(done);
            }
            Event::Warning(line) => self.bar.suspend(|| eprintln!("warning: {line}")),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
