//! Where init writes what has no other way: the kernel's log, if the distribution has it, else stderr.

use std::{fs::File, io::Write};

/// Writes one line, as a warning. The log is opened for each: lines are few, and relays close every descriptor.
pub(crate) fn warning(text: &str) {
    // One write is one record.
    let line = format!("<4>init: {}\n", text.replace('\n', "; "));
    let _ = match File::options().write(true).open("/dev/kmsg") {
        Ok(mut kmsg) => kmsg.write_all(line.as_bytes()),
        Err(_) => std::io::stderr().write_all(line.as_bytes()),
    };
}

/// What did not work without keeping the distribution from being of use: told to the host with the first event.
#[derive(Debug, Default)]
pub(crate) struct Warnings(pub(crate) Vec<String>);

impl Warnings {
    /// Adds one.
    pub(crate) fn add(&mut self, text: String) {
        warning(&text);
        self.0.push(text);
    }

    /// Takes a result's value; of an error, a warning that starts with what was tried.
    pub(crate) fn take<T, E: std::fmt::Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(format!("{what}: {e}"))).ok()
    }
}
