//! Where a boot went, on one clock.
//!
//! The VMM tells moments in CLOCK_REALTIME. The guest's tell CLOCK_BOOTTIME, and those that mini-init and init took
//! themselves tell both, because kvmclock gives the guest the host's real time; the kernel's own lines know only how
//! long the machine is up. Their difference, taken from the marks that know both, brings the rest onto one clock.

use std::fmt;

use undercroft_protocol::opening::Mark;

/// A moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds of the host's CLOCK_REALTIME.
    pub at_ns: u64,
    /// Who told it: `vmm`, `guest`, `launch`, `init`, `session`.
    pub teller: &'static str,
    /// What happened.
    pub name: String,
}

/// Moments, oldest first. Displays as a table: time since the first, time since the one before, what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The moments.
    pub moments: Vec<Moment>,
}

impl Timeline {
    pub(crate) fn new(marks: &[(&'static str, Mark)]) -> Self {
        let mut offsets: Vec<i128> = marks
            .iter()
            .filter(|(_, mark)| mark.realtime_ns != 0 && mark.boottime_ns != 0)
            .map(|(_, mark)| i128::from(mark.realtime_ns) - i128::from(mark.boottime_ns))
            .collect();
        // The median: a clock that is set right after boot must not shift the lines before it.
        offsets.sort_unstable();
        let offset = offsets.get(offsets.len() / 2).copied();
        let mut moments: Vec<Moment> = marks
            .iter()
            .filter_map(|(teller, mark)| {
                let at_ns = match (mark.realtime_ns, offset) {
                    (0, None) => return None,
                    (0, Some(offset)) => u64::try_from(i128::from(mark.boottime_ns) + offset).ok()?,
                    (real, _) => real,
                };
                Some(Moment { at_ns, teller, name: crate::console::printable(&mark.name) })
            })
            .collect();
        moments.sort_by_key(|moment| moment.at_ns);
        Self { moments }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12} {:>12}  {:<8} what", "ms", "+ ms", "who")?;
        let ms = |ns: u64| ns as f64 / 1e6;
        let first = self.moments.first().map_or(0, |moment| moment.at_ns);
        let mut before = first;
        for moment in &self.moments {
            let (since, step) = (moment.at_ns - first, moment.at_ns - before);
            let name: String = moment.name.chars().take(100).collect();
            writeln!(f, "{:>12.3} {:>12.3}  {:<8} {}", ms(since), ms(step), moment.teller, name)?;
            before = moment.at_ns;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(name: &str, boottime_ns: u64, realtime_ns: u64) -> Mark {
        Mark { name: name.into(), boottime_ns, realtime_ns }
    }

    #[test]
    fn kernel_lines_come_onto_the_hosts_clock() {
        let marks = [
            ("guest", mark("Linux version 6.12", 0, 0)),
            ("guest", mark("Run /init", 40_000_000, 0)),
            ("guest", mark("mini-init: first instruction", 41_500_000, 1_041_500_000)),
            ("guest", mark("mini-init: hello", 43_000_000, 1_043_000_000)),
            ("vmm", mark("process started", 0, 990_000_000)),
            ("session", mark("sh", 60_000_000, 1_060_000_000)),
        ];
        let text = Timeline::new(&marks).to_string();
        assert_eq!(
            text,
            concat!(
                "          ms         + ms  who      what\n",
                "       0.000        0.000  vmm      process started\n",
                "      10.000       10.000  guest    Linux version 6.12\n",
                "      50.000       40.000  guest    Run /init\n",
                "      51.500        1.500  guest    mini-init: first instruction\n",
                "      53.000        1.500  guest    mini-init: hello\n",
                "      70.000       17.000  session  sh\n",
            )
        );
    }

    #[test]
    fn lines_without_any_clock_to_compare_with_are_left_out() {
        assert_eq!(Timeline::new(&[("guest", mark("Linux", 5, 0))]).moments, []);
    }
}
