//! What guests do wrong is said on the VMM's standard error, so often and no oftener.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many complaints a process has: enough to understand what went wrong first, and at a hundred bytes each nothing
/// that fills a disk. A guest can break its devices' rules, reset them and begin again as often as it likes.
const MOST: u32 = 200;

static SAID: Complaints = Complaints(AtomicU32::new(0));

struct Complaints(AtomicU32);

/// Says `what` on the VMM's standard error, unless too much was said already.
pub(super) fn complain(what: fmt::Arguments<'_>) {
    if let Some(last) = SAID.next() {
        eprintln!("undercroft-vmm: {what}");
        if last {
            eprintln!(
                "undercroft-vmm: that was complaint {MOST} about this guest; further ones are kept quiet"
            );
        }
    }
}

impl Complaints {
    /// Whether there may be another one, and whether that is the last.
    fn next(&self) -> Option<bool> {
        let said = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| (said < MOST).then_some(said + 1));
        said.ok().map(|said| said + 1 == MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_end() {
        let complaints = Complaints(AtomicU32::new(0));
        assert_eq!((1..MOST).filter(|_| complaints.next() == Some(false)).count() as u32, MOST - 1);
        assert_eq!(complaints.next(), Some(true));
        assert_eq!(complaints.next(), None);
        assert_eq!(complaints.next(), None);
    }
}
