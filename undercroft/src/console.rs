//! The log that a guest's serial console goes to, and its last lines for people.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::error::Console;

/// Lines that an error shows.
const LINES: usize = 12;
/// Bytes looked at for them: a kernel's log line is far shorter than a kibibyte.
const BYTES: u64 = 16 << 10;

/// The console's log file.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    /// Whether it is still there when an error is read, so that the error may name it.
    pub(crate) lasting: bool,
}

impl Log {
    /// The end of it.
    pub(crate) fn console(&self) -> Console {
        Console { last: last_lines(&self.path, LINES), log: self.lasting.then(|| self.path.clone()) }
    }
}

/// The last lines of a file that are not empty, without what would move a terminal's cursor.
pub(crate) fn last_lines(path: &Path, lines: usize) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        file.take(BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

/// A line without control characters and terminal sequences: what a guest writes is shown, never obeyed.
pub(crate) fn printable(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '\x1b' {
            if characters.next_if_eq(&'[').is_some() {
                while characters.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                characters.next();
            }
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_move_the_cursor() {
        assert_eq!(printable("\x1b[2J\x1b[1;31mred\x1b[0m\r\x07 end"), "red end");
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\r\n\r\ntwo\r\nthree").unwrap();
        assert_eq!(last_lines(file.path(), 2), ["two", "three"]);
    }
}
