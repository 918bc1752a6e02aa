//! Where a process can die: each rename, removal and sync of a store calls [`point`], which tests make the last one.

/// Does nothing, but in tests.
#[cfg(not(test))]
pub(super) fn point() {}

/// Whether hard links are to be taken as impossible: never, but in tests.
#[cfg(not(test))]
pub(super) fn refuses_links() -> bool {
    false
}

#[cfg(test)]
pub(super) use armed::{STATUS, arm, point, refuse_links, refuses_links};

#[cfg(test)]
mod armed {
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);
    static NO_LINKS: AtomicBool = AtomicBool::new(false);

    /// How a process ends at its fault.
    pub(in super::super) const STATUS: i32 = 77;

    /// The process ends at this one of the points that follow, the first being 1; nothing is cleared away.
    pub(in super::super) fn arm(at: i64) {
        LEFT.store(at, Ordering::SeqCst);
    }

    pub(in super::super) fn point() {
        if LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::exit(STATUS);
        }
    }

    /// From now on, as between two file systems.
    pub(in super::super) fn refuse_links() {
        NO_LINKS.store(true, Ordering::SeqCst);
    }

    pub(in super::super) fn refuses_links() -> bool {
        NO_LINKS.load(Ordering::SeqCst)
    }
}
