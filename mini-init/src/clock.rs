//! The clock follows the host's. A machine that does not run does not count: after the host has slept, or the machine was
//! stopped, its clock is behind.

use std::time::Duration;

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};
use undercroft_protocol::command::{Done, Failure};

use crate::jobs::system;

/// A real-time clock that can be set, or a test's.
trait Clock {
    fn now(&self) -> nix::Result<TimeSpec>;
    fn set(&mut self, time: TimeSpec) -> nix::Result<()>;
}

struct Realtime;

impl Clock for Realtime {
    fn now(&self) -> nix::Result<TimeSpec> {
        clock_gettime(ClockId::CLOCK_REALTIME)
    }

    fn set(&mut self, time: TimeSpec) -> nix::Result<()> {
        clock_settime(ClockId::CLOCK_REALTIME, time)
    }
}

/// Sets it to the host's time, in nanoseconds, unless it is within the tolerance: a clock that somebody keeps by the network
/// is not to be disturbed by the time that a message takes. Programs that wait for a time of the day are woken by the kernel
/// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
pub(crate) fn follow(host_ns: u64, tolerance: Duration) -> Result<Done, Failure> {
    adjust(&mut Realtime, host_ns, tolerance).map_err(system("setting the clock"))
}

fn adjust(clock: &mut impl Clock, host_ns: u64, tolerance: Duration) -> nix::Result<Done> {
    let time = Duration::from_nanos(host_ns);
    let now = clock.now()?;
    let own_ns = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let behind = i128::from(host_ns) - own_ns;
    if behind.unsigned_abs() > tolerance.as_nanos() {
        clock.set(TimeSpec::from_duration(time))?;
    }
    let limit = if behind < 0 { i64::MIN } else { i64::MAX };
    Ok(Done::Clock { behind_ns: i64::try_from(behind).unwrap_or(limit) })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorded(TimeSpec, usize);

    impl Clock for Recorded {
        fn now(&self) -> nix::Result<TimeSpec> {
            Ok(self.0)
        }

        fn set(&mut self, time: TimeSpec) -> nix::Result<()> {
            *self = Self(time, self.1 + 1);
            Ok(())
        }
    }

    #[test]
    fn a_clock_that_is_off_is_set_and_another_left() {
        let second = 1_000_000_000u64;
        let tolerance = Duration::from_secs(1);
        let mut clock = Recorded(TimeSpec::new(1000, 5), 0);
        for (host, behind, sets, then) in [
            (1001 * second, second as i64 - 5, 0, (1000, 5)),
            (5000 * second + 7, 4000 * second as i64 + 2, 1, (5000, 7)),
            (2000 * second, -3000 * second as i64 - 7, 2, (2000, 0)),
        ] {
            assert_eq!(adjust(&mut clock, host, tolerance), Ok(Done::Clock { behind_ns: behind }));
            assert_eq!((clock.1, clock.0.tv_sec(), clock.0.tv_nsec()), (sets, then.0, then.1));
        }
    }
}
