//! One heap for all threads.
#![allow(unsafe_code)]

/// Keeps the C library from making a heap of its own for every thread that is started from now on.
///
/// Shrinking one of those, glibc opens `/proc/sys/vm/overcommit_memory` (`check_may_shrink_heap`), which a thread that
/// may open nothing does not survive; the first heap grows and shrinks by brk(2). It is also less memory: the few
/// threads here allocate little and never for long.
pub(super) fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes plain numbers and locks for itself.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
