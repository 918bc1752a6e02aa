//! The kernel's log: the only place that mini-init can write to, whatever else has failed.

use std::{fs::File, io::Write, sync::OnceLock};

static KMSG: OnceLock<File> = OnceLock::new();

/// How urgent a line is (syslog(2), section "The kernel log buffer").
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    /// Something does not work that should.
    Error = 3,
    /// Something does not work that is not needed.
    Warning = 4,
    /// A step that was taken.
    Info = 6,
}

/// Opens /dev/kmsg. Until then, and where there is none, lines go to stderr.
pub(crate) fn open() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// Writes one line.
pub(crate) fn line(level: Level, text: &str) {
    let text = text.replace('\n', "; ");
    match KMSG.get() {
        // One write is one record; the kernel cuts what is longer than a kilobyte.
        Some(mut file) => {
            let _ = file.write_all(format!("<{}>mini-init: {text}\n", level as u8).as_bytes());
        }
        None => {
            let _ = std::io::stderr().write_all(format!("mini-init: {text}\n").as_bytes());
        }
    }
}

/// What did not work without keeping the VM from being of use: logged at once, and told to the host with the hello.
#[derive(Debug, Default)]
pub(crate) struct Warnings(pub(crate) Vec<String>);

impl Warnings {
    /// Adds one.
    pub(crate) fn add(&mut self, text: String) {
        line(Level::Warning, &text);
        self.0.push(text);
    }

    /// Takes a result's value; of an error, a warning that starts with what was tried.
    pub(crate) fn take<T, E: std::fmt::Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(format!("{what}: {e}"))).ok()
    }
}
