//! How long to wait before what has ended is started again.

use std::time::{Duration, Instant};

/// What ran for so long was fine.
const LONG: Duration = Duration::from_secs(10);

/// Pauses that grow while what is started does not last.
#[derive(Debug)]
pub(super) struct Pause {
    started: Instant,
    next: Duration,
}

impl Pause {
    /// The first one.
    pub(super) const FIRST: Duration = Duration::from_millis(100);
    /// The longest one.
    const MOST: Duration = Duration::from_secs(30);

    /// It starts now.
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), next: Self::FIRST }
    }

    /// It starts now, again.
    pub(super) fn started(&mut self) {
        self.started = Instant::now();
    }

    /// It has ended, or could not be started: how long to wait.
    pub(super) fn after(&mut self) -> Duration {
        self.after_running(self.started.elapsed())
    }

    fn after_running(&mut self, time: Duration) -> Duration {
        let pause = if time >= LONG { Self::FIRST } else { self.next };
        self.next = (pause * 2).min(Self::MOST);
        self.started();
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_started_again_at_once() {
        let mut pause = Pause::new();
        let mut after = |seconds| pause.after_running(Duration::from_secs(seconds)).as_millis();
        assert_eq!([after(1), after(0), after(9)], [100, 200, 400]);
        assert_eq!([after(10), after(0)], [100, 200]);
        for _ in 0..20 {
            after(0);
        }
        assert_eq!(after(0), 30_000);
    }
}
