//! The plugin's output, read.

use std::ops::Sub;

use undercroft_ruler_runner::{TAG_BEGIN, TAG_UP};

use crate::Error;

/// The plugin's counters at one moment, or the difference of two; all in instructions but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// L1's kernel, firmware included.
    pub l1_kernel: u64,
    /// L1's programs.
    pub l1_user: u64,
    /// The guests' kernels.
    pub l2_kernel: u64,
    /// The guests' programs.
    pub l2_user: u64,
    /// Iterations beyond the first of string instructions in L1, which hardware would not count as instructions.
    pub l1_iterations: u64,
    /// The same in L2.
    pub l2_iterations: u64,
    /// VM entries.
    pub vmruns: u64,
}

impl Counts {
    /// Instructions of guests.
    pub fn l2(&self) -> u64 {
        self.l2_kernel + self.l2_user
    }

    /// Instructions of anybody.
    pub fn total(&self) -> u64 {
        self.l1_kernel + self.l1_user + self.l2()
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            l1_kernel: self.l1_kernel - earlier.l1_kernel,
            l1_user: self.l1_user - earlier.l1_user,
            l2_kernel: self.l2_kernel - earlier.l2_kernel,
            l2_user: self.l2_user - earlier.l2_user,
            l1_iterations: self.l1_iterations - earlier.l1_iterations,
            l2_iterations: self.l2_iterations - earlier.l2_iterations,
            vmruns: self.vmruns - earlier.vmruns,
        }
    }
}

/// What was counted from just before a program's execve(2) …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// … to its first VM entry.
    pub entry: Option<Counts>,
    /// … to the first user instruction of its guest.
    pub guest_user: Option<Counts>,
    /// … to where the run was to get: the guest's connection, or the program's end.
    pub up: Option<Counts>,
}

/// Reads the output; one span for each time that a program was started, in order.
pub fn spans(output: &str) -> Result<Vec<Span>, Error> {
    let (begin, up) = (format!("marker-{TAG_BEGIN}"), format!("marker-{TAG_UP}"));
    let mut spans: Vec<(Counts, Span)> = Vec::new();
    for (number, text) in output.lines().enumerate() {
        let (event, now) = line(text).ok_or_else(|| Error::Output { line: number + 1, text: text.into() })?;
        if event == begin {
            spans.push((now, Span::default()));
        } else if let Some((start, span)) = spans.last_mut() {
            let place = match event {
                "vmrun" => &mut span.entry,
                "l2-user" => &mut span.guest_user,
                event if event == up => &mut span.up,
                _ => continue,
            };
            *place = Some(now - *start);
        }
    }
    Ok(spans.into_iter().map(|(_, span)| span).collect())
}

fn line(text: &str) -> Option<(&str, Counts)> {
    let mut words = text.split(' ');
    let event = words.next()?;
    let mut counts = Counts::default();
    for word in words {
        let (name, value) = word.split_once('=')?;
        let place = match name {
            "l1_kernel" => &mut counts.l1_kernel,
            "l1_user" => &mut counts.l1_user,
            "l2_kernel" => &mut counts.l2_kernel,
            "l2_user" => &mut counts.l2_user,
            "l1_iterations" => &mut counts.l1_iterations,
            "l2_iterations" => &mut counts.l2_iterations,
            "vmruns" => &mut counts.vmruns,
            _ => return None,
        };
        *place = value.parse().ok()?;
    }
    Some((event, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
l1-user l1_kernel=90 l1_user=0 l2_kernel=0 l2_user=0 l1_iterations=1 l2_iterations=0 vmruns=0
marker-1 l1_kernel=100 l1_user=10 l2_kernel=0 l2_user=0 l1_iterations=1 l2_iterations=0 vmruns=0
vmrun l1_kernel=110 l1_user=15 l2_kernel=0 l2_user=0 l1_iterations=1 l2_iterations=0 vmruns=0
l2-user l1_kernel=200 l1_user=20 l2_kernel=70 l2_user=0 l1_iterations=1 l2_iterations=3 vmruns=9
marker-1 l1_kernel=300 l1_user=20 l2_kernel=80 l2_user=5 l1_iterations=1 l2_iterations=3 vmruns=11
";

    #[test]
    fn each_start_begins_a_span() {
        let spans = spans(OUTPUT).unwrap();
        assert_eq!(spans.len(), 2);
        let entry = spans[0].entry.unwrap();
        assert_eq!((entry.l1_kernel, entry.l1_user, entry.vmruns), (10, 5, 0));
        let user = spans[0].guest_user.unwrap();
        assert_eq!((user.l2(), user.vmruns, user.total()), (70, 9, 180));
        assert_eq!(spans[1], Span::default());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let damaged = OUTPUT.replace("vmruns=9", "vmruns");
        assert!(matches!(spans(&damaged), Err(Error::Output { line: 4, .. })));
    }
}
