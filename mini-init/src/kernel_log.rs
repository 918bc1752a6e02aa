//! Where the kernel's part of the boot went, by the times in its own log.

use std::{fs::File, io::Read, os::unix::fs::OpenOptionsExt};

use undercroft_protocol::opening::Mark;

/// How lines begin that every x86-64 kernel prints, in the order of a boot. `quiet` keeps them from the console, not
/// from the log.
const WELL_KNOWN: [&str; 10] = [
    "Linux version ",
    "tsc: Detected ",
    "Memory: ",
    "smp: Brought up ",
    "devtmpfs: initialized",
    "SCSI subsystem initialized",
    "clocksource: Switched to ",
    "Unpacking initramfs",
    "Freeing unused kernel image",
    "Run /init as init process",
];

/// The well-known lines that this boot's log holds, with their times.
pub(crate) fn marks() -> Vec<Mark> {
    let Ok(mut kmsg) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return Vec::new();
    };
    let mut marks: Vec<Mark> = Vec::new();
    let mut record = [0; 8192];
    // Each read gives one record, and EAGAIN after the last (Documentation/ABI/testing/dev-kmsg).
    while let Ok(length) = kmsg.read(&mut record) {
        let Some(mark) = parse(&record[..length]) else { continue };
        let last = mark.name.starts_with(WELL_KNOWN[WELL_KNOWN.len() - 1]);
        // Some lines come once per CPU or section; the first is the phase.
        let key = |name: &str| WELL_KNOWN.iter().position(|w| name.starts_with(w));
        if !marks.iter().any(|m| key(&m.name) == key(&mark.name)) {
            marks.push(mark);
        }
        if last {
            break;
        }
    }
    marks
}

/// A record `priority,sequence,microseconds,flags;text` if it is one of the well-known lines.
fn parse(record: &[u8]) -> Option<Mark> {
    let record = std::str::from_utf8(record).ok()?;
    let (prefix, rest) = record.split_once(';')?;
    let text = rest.lines().next()?;
    WELL_KNOWN.iter().find(|w| text.starts_with(**w))?;
    let microseconds: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    // A mark is a label: the version line alone is 200 characters long.
    let name = text.chars().take(60).collect();
    Some(Mark { name, boottime_ns: microseconds.saturating_mul(1000), realtime_ns: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_well_known_record_is_a_mark() {
        let mark =
            parse(b"6,339,140900,-;Freeing unused kernel image (initmem) memory: 2048K\n SUBSYSTEM=x\n")
                .unwrap();
        assert_eq!(
            (mark.name.as_str(), mark.boottime_ns),
            ("Freeing unused kernel image (initmem) memory: 2048K", 140_900_000)
        );
    }

    #[test]
    fn other_records_are_none() {
        for record in ["6,1,2,-;something else", "no semicolon", "6,1,x,-;Linux version 6", ""] {
            assert!(parse(record.as_bytes()).is_none(), "{record}");
        }
    }
}
