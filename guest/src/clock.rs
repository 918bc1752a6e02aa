//! Moments for the timeline.

use nix::time::{ClockId, clock_gettime};
use undercroft_protocol::opening::Mark;

/// Now, on both clocks that the host can compare with its own.
pub fn mark(name: &str) -> Mark {
    Mark {
        name: name.into(),
        boottime_ns: nanoseconds(ClockId::CLOCK_BOOTTIME),
        realtime_ns: nanoseconds(ClockId::CLOCK_REALTIME),
    }
}

/// A clock's time; 0 if the kernel does not know the clock, which for these two does not happen.
fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
