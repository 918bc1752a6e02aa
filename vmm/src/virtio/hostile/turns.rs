//! Workers without threads: a hostile program works them off itself, a round at a time, so that the same bytes always
//! do the same and each step can be judged.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Weak};

use crate::virtio::lock;
use crate::virtio::worker::Rounds;

/// What a worker holds instead of its thread; it is off the list when this is dropped.
pub(in crate::virtio) type Hold = Arc<Mutex<Rounds>>;

struct Kept {
    rounds: Weak<Mutex<Rounds>>,
    /// A worker's thread works once before it waits.
    is_new: bool,
}

thread_local! {
    /// Nothing where nobody asked for it, as in all other tests.
    static WORKERS: RefCell<Option<Vec<Kept>>> = const { RefCell::new(None) };
}

/// Workers that this thread starts from now on get no threads.
pub(super) fn want() {
    WORKERS.set(Some(Vec::new()));
}

/// As it was before [`want`].
pub(super) fn unwant() {
    WORKERS.set(None);
}

pub(in crate::virtio) fn are_wanted() -> bool {
    WORKERS.with_borrow(Option::is_some)
}

pub(in crate::virtio) fn keep(rounds: Rounds) -> Hold {
    let hold = Arc::new(Mutex::new(rounds));
    WORKERS.with_borrow_mut(|workers| {
        workers.get_or_insert_default().push(Kept { rounds: Arc::downgrade(&hold), is_new: true });
    });
    hold
}

/// A round of each worker; returns how much there was to do.
pub(super) fn turn() -> usize {
    WORKERS.with_borrow_mut(|workers| {
        let workers = workers.get_or_insert_default();
        workers.retain(|kept| kept.rounds.strong_count() > 0);
        let mut count = 0;
        for kept in workers {
            let Some(rounds) = kept.rounds.upgrade() else { continue };
            if std::mem::take(&mut kept.is_new) {
                lock(&rounds).work();
                count += 1;
            }
            count += lock(&rounds).round(0).expect("epoll");
        }
        count
    })
}
