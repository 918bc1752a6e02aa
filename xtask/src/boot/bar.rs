//! Progress: a bar on a terminal, otherwise one line when it begins. Nothing is shown of what does not happen.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(super) struct Bar {
    what: &'static str,
    name: String,
    archive: PathBuf,
    shown: Option<ProgressBar>,
}

impl Bar {
    /// `what` is done with an archive.
    pub(super) fn new(what: &'static str, name: &str, archive: &Path) -> Self {
        Self { what, name: name.into(), archive: archive.into(), shown: None }
    }

    pub(super) fn show(&mut self, read: u64, total: Option<u64>) {
        let bar = self.shown.get_or_insert_with(|| {
            if !std::io::stderr().is_terminal() {
                eprintln!("{} {} from {}", self.what, self.name, self.archive.display());
                return ProgressBar::hidden();
            }
            let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}  {eta}");
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(format!("{} {}", self.what, self.name));
            bar
        });
        bar.set_position(read);
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
