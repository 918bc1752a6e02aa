//! Reading a guest's console: complaints of its kernel, and the last lines for people.

use std::{fs, path::Path};

use crate::outcome::Excerpt;

/// What a kernel writes when something is wrong with it, whether or not the test noticed.
const COMPLAINTS: &[&str] = &[
    "Kernel panic - not syncing",
    "BUG:",
    "Oops:",
    "Oops - ",
    "general protection fault",
    "kernel BUG at",
    "WARNING: CPU:",
    "WARNING: possible",
    "WARNING: suspicious RCU",
    "WARNING: inconsistent lock state",
    "self-detected stall on CPU",
    "detected stalls on CPUs",
    "blocked for more than",
    "unable to handle kernel",
    "UBSAN:",
    "KASAN:",
    "mini-init: panic",
];

/// The first complaint in a log, except those that contain one of `expected`.
pub fn complaint(log: &str, expected: &[String]) -> Option<String> {
    log.lines()
        .find(|line| {
            COMPLAINTS.iter().any(|c| line.contains(c)) && !expected.iter().any(|e| line.contains(e.as_str()))
        })
        .map(str::to_owned)
}

/// The last lines of a log file; empty if there is none.
pub fn excerpt(log: &Path, lines: usize) -> Excerpt {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<_> = text.lines().map(str::to_owned).collect();
    Excerpt { lines: all[all.len().saturating_sub(lines)..].to_vec(), log: log.to_path_buf() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_and_expected_ones_are_not() {
        let log = "[ 0.1] all is well\n[ 0.2] BUG: sleeping function called\n";
        assert_eq!(complaint(log, &[]).as_deref(), Some("[ 0.2] BUG: sleeping function called"));
        assert_eq!(complaint(log, &["sleeping function".into()]), None);
    }
}
