//! How a guest test ends: passed, or one of several ways of not having passed that a person acts on differently.
//!
//! libtest knows passed and failed. What it does not know is written, a JSON line a test, to the file that
//! `UNDERCROFT_RESULTS` names; `cargo xtask test` adds those up.

use std::{
    cell::RefCell,
    fmt,
    fs::OpenOptions,
    io::{ErrorKind, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::lab;

/// What a guest test returns.
pub type Outcome = Result<(), Failure>;

/// How long a test waits for what comes about by itself. A lab has one processor, which its host may have given to somebody else:
/// its clock goes on then, and what is waited for does not.
pub fn patience() -> Duration {
    Duration::from_secs(if lab::inside() { 180 } else { 60 })
}

/// How long what is stopped in order may take. A systemd that a lab is slow with needs minutes; and what was not stopped in order
/// is a failure, which is not to be one of the host's.
pub fn grace() -> Duration {
    Duration::from_secs(if lab::inside() { 240 } else { 60 })
}

/// Waits for something that comes about by itself; `what` is what is wrong as long as it has not.
pub fn until(what: &str, mut look: impl FnMut() -> Result<bool, Failure>) -> Outcome {
    let start = Instant::now();
    while !look()? {
        if start.elapsed() > patience() {
            return Err(Failure::late(what));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It ran, and what it asserts is so.
    Passed,
    /// It did not run, for a reason that is given.
    Skipped,
    /// What it asserts is not so.
    Failed,
    /// Nothing wrong was found in the guest or the product; the harness itself could not do its part.
    HarnessError,
    /// Something did not happen within its limit.
    Timeout,
    /// The guest's kernel panicked, or its log holds an oops, a `BUG:` or a lockdep splat.
    GuestPanic,
}

/// Why a test did not pass. Its `Debug` is what libtest prints, so it is written for people.
#[derive(thiserror::Error)]
pub enum Failure {
    /// What was asserted is not so.
    #[error("failed: {0}")]
    Failed(String),
    /// The kernel panicked, or complained in its log.
    #[error("guest panic: {line}\n{console}")]
    GuestPanic {
        /// The line that says so.
        line: String,
        /// The console's last lines, and where the whole of it is.
        console: Excerpt,
    },
    /// Something took too long.
    #[error("timeout: {what}\n{console}")]
    Timeout {
        /// What was waited for, and how long.
        what: String,
        /// The console's last lines, and where the whole of it is.
        console: Excerpt,
    },
    /// The VM ended, or refused something, that the test did not expect.
    #[error("failed: {what}\n{console}")]
    Machine {
        /// The error, with its causes.
        what: String,
        /// The console's last lines, and where the whole of it is.
        console: Excerpt,
    },
    /// The harness could not do its part.
    #[error("harness error: {0}")]
    Harness(String),
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Failure {
    /// Something that was waited for in vain, as long as [`patience`] says; there is no console to show.
    pub fn late(what: &str) -> Self {
        let what = format!("{what}, after {} s", patience().as_secs());
        Self::Timeout { what, console: Excerpt::default() }
    }

    /// The class that it is counted in.
    pub fn ending(&self) -> Ending {
        match self {
            Self::Failed(_) | Self::Machine { .. } => Ending::Failed,
            Self::GuestPanic { .. } => Ending::GuestPanic,
            Self::Timeout { .. } => Ending::Timeout,
            Self::Harness(_) => Ending::HarnessError,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // A socket's limit, which is a test's own (socket(7), SO_RCVTIMEO).
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Self::Timeout { what: error.to_string(), console: Excerpt::default() }
            }
            _ => Self::Harness(error.to_string()),
        }
    }
}

/// The end of a console's log.
#[derive(Debug, Clone, Default)]
pub struct Excerpt {
    /// The last lines.
    pub lines: Vec<String>,
    /// The whole log.
    pub log: PathBuf,
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.log.as_os_str().is_empty() {
            return Ok(());
        }
        writeln!(f, "  the console's last lines (the whole log: {}):", self.log.display())?;
        for line in &self.lines {
            writeln!(f, "  | {line}")?;
        }
        Ok(())
    }
}

/// One line of the results file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The test's full name.
    pub test: String,
    /// How it ended.
    pub ending: Ending,
    /// Why, where that is not in the name.
    pub reason: String,
}

thread_local! {
    /// The worst that this thread's test has come to so far.
    static WORST: RefCell<Option<(Ending, String)>> = const { RefCell::new(None) };
}

/// Remembers how this thread's test ended, unless it is already known to have ended worse.
pub(crate) fn note(ending: Ending, reason: impl Into<String>) {
    WORST.with_borrow_mut(|worst| {
        if worst.as_ref().is_none_or(|(w, _)| *w < ending) {
            *worst = Some((ending, reason.into()));
        }
    });
}

/// Not run, and why: `return skip("needs KVM")`.
pub fn skip(reason: &str) -> Outcome {
    println!("skipped: {reason}");
    note(Ending::Skipped, reason);
    Ok(())
}

/// Runs a test's body and writes its record. [`guest_test`](crate::vm::guest_test) calls it.
pub fn record(body: impl FnOnce() -> Outcome) -> Outcome {
    struct Write;
    impl Drop for Write {
        fn drop(&mut self) {
            if std::thread::panicking() {
                note(Ending::Failed, "an assertion");
            }
            let (ending, reason) = WORST.take().unwrap_or((Ending::Passed, String::new()));
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            append(&Record { test, ending, reason });
        }
    }
    let _write = Write;
    WORST.set(None);
    let outcome = body();
    if let Err(failure) = &outcome {
        let text = failure.to_string();
        note(failure.ending(), text.lines().next().unwrap_or_default());
    }
    outcome
}

fn append(record: &Record) {
    let Some(path) = std::env::var_os("UNDERCROFT_RESULTS") else { return };
    let Ok(mut line) = serde_json::to_string(record) else { return };
    line.push('\n');
    // One write to a file opened for appending: lines of tests that end together do not mix.
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut f| f.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("the result could not be written to {}: {error}", PathBuf::from(path).display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo xtask test` gives it another lab, by these words.
    #[test]
    fn what_was_waited_for_in_vain_is_a_timeout() {
        let failure = Failure::from(std::io::Error::from(ErrorKind::WouldBlock));
        assert_eq!(failure.ending(), Ending::Timeout);
        let text = format!("{:?}", Failure::late("nobody is there"));
        assert!(text.starts_with("timeout: nobody is there, after ") && !text.contains("console"), "{text}");
    }

    #[test]
    fn the_worst_counts() {
        note(Ending::Failed, "a");
        note(Ending::Skipped, "b");
        assert_eq!(WORST.take(), Some((Ending::Failed, "a".into())));
    }
}
