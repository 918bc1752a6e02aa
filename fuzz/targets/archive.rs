//! A tar archive against both that read it: mini-init, which unpacks it, and the host, which follows its headers.
//!
//! Both are private to their programs, so their sources are taken in here.
#![no_main]
#![allow(dead_code)]

use std::io::Read;

#[path = "../../mini-init/src/archive/mod.rs"]
mod archive;
#[path = "../../undercroft/src/tar_walk.rs"]
mod tar_walk;

/// What [`tar_walk`] uses of its program.
mod console {
    pub(crate) fn printable(line: &str) -> String {
        line.to_owned()
    }
}

/// An archive takes at least this much of its stream for each entry.
const BLOCK: usize = 512;

/// Counts what is read: a reader that goes on without reading would never end.
struct Counted<'a>(&'a [u8], usize);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 += 1;
        assert!(self.1 < 1 << 20, "it reads on for ever");
        self.0.read(buffer)
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reader = archive::Archive::new(Counted(bytes, 0));
    let mut buffer = [0; 4096];
    let mut entries = 0;
    while let Ok(Some(_)) = reader.next() {
        entries += 1;
        assert!(entries <= bytes.len() / BLOCK, "more entries than there are blocks");
        if entries % 2 == 0 {
            while let Ok(1..) = reader.content(&mut buffer) {}
        }
    }
    assert!(reader.offset() <= bytes.len() as u64);
    // In pieces of any size it says the same.
    let mut whole = tar_walk::TarWalk::default();
    let mut pieces = tar_walk::TarWalk::default();
    let at_once = whole.feed(bytes);
    let mut fed = Ok(0);
    for piece in bytes.chunks(97) {
        match (&mut fed, pieces.feed(piece)) {
            (Ok(total), Ok(count)) => *total += count,
            (fed, Err(error)) => {
                *fed = Err(error);
                break;
            }
            (Err(_), Ok(_)) => unreachable!("it stopped at the error"),
        }
    }
    assert_eq!(at_once, fed);
});
