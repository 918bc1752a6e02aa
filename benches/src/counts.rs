//! The plugin's output, read.

use std::ops::Sub;

use undercroft_ruler_runner::{TAG_BEGIN, TAG_PROGRAM, TAG_SPAN_BEGIN, TAG_SPAN_END, TAG_UP};

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

    /// Who executed them, by name.
    pub fn shares(&self) -> [(&'static str, u64); 4] {
        [
            ("host's kernel", self.l1_kernel),
            ("host's programs", self.l1_user),
            ("guest's kernel", self.l2_kernel),
            ("guest's programs", self.l2_user),
        ]
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Span {
    /// … to its first VM entry.
    pub entry: Option<Counts>,
    /// … to the first user instruction of its guest.
    pub guest_user: Option<Counts>,
    /// … to where the run was to get: the guest's connection, or the program's end.
    pub up: Option<Counts>,
    /// … to the first instruction of a program that the program started, if that executes a marker.
    pub program: Option<Counts>,
    /// The spans that the program itself marked, in order.
    pub parts: Vec<Part>,
}

/// A span within a program's run, between two markers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// From the one to the other.
    pub whole: Counts,
    /// From the first to the first instruction of a marked program, in L1 or in a guest.
    pub program: Option<Counts>,
}

/// Reads the output; one span for each time that a program was started, in order.
pub fn spans(output: &str) -> Result<Vec<Span>, Error> {
    let mut spans: Vec<Span> = Vec::new();
    let (mut start, mut open) = (Counts::default(), None);
    for (number, text) in output.lines().enumerate() {
        let (event, now) = line(text).ok_or_else(|| Error::Output { line: number + 1, text: text.into() })?;
        let tag = event.strip_prefix("marker-").and_then(|tag| tag.parse().ok());
        if tag == Some(TAG_BEGIN) {
            (start, open) = (now, None);
            spans.push(Span::default());
            continue;
        }
        let Some(span) = spans.last_mut() else { continue };
        match (event, tag) {
            ("vmrun", _) => span.entry = Some(now - start),
            ("l2-user", _) => span.guest_user = Some(now - start),
            (_, Some(TAG_UP)) => span.up = Some(now - start),
            (_, Some(TAG_SPAN_BEGIN)) => open = Some((now, None)),
            (_, Some(TAG_SPAN_END)) => {
                let part = open.take().map(|(begin, program)| Part { whole: now - begin, program });
                span.parts.extend(part);
            }
            (_, Some(TAG_PROGRAM)) => {
                span.program.get_or_insert(now - start);
                if let Some((begin, program)) = &mut open {
                    program.get_or_insert(now - *begin);
                }
            }
            _ => {}
        }
    }
    Ok(spans)
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
    fn a_program_marks_parts_of_its_own() {
        let line = |event: &str, count: u64| {
            format!(
                "{event} l1_kernel={count} l1_user=0 l2_kernel=0 l2_user=0 l1_iterations=0 l2_iterations=0 vmruns=0\n"
            )
        };
        let events = [
            ("marker-1", 10),
            ("marker-3", 20),
            ("marker-5", 23),
            ("marker-5", 24),
            ("marker-4", 30),
            ("marker-2", 40),
        ];
        let output: String = events.iter().map(|(event, count)| line(event, *count)).collect();
        let [span] = &spans(&output).unwrap()[..] else { panic!("one program was started") };
        let of = |count| Counts { l1_kernel: count, ..Counts::default() };
        assert_eq!((span.program, span.up), (Some(of(13)), Some(of(30))));
        assert_eq!(span.parts, [Part { whole: of(10), program: Some(of(3)) }]);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let damaged = OUTPUT.replace("vmruns=9", "vmruns");
        assert!(matches!(spans(&damaged), Err(Error::Output { line: 4, .. })));
    }
}
