//! Memory that the distributions only use as a cache goes back to the host when they have nothing to do.
//!
//! The reference system's way (`notes/wsl2.md`, "Reclaim"), but for who looks and at what. A thread that wakes every ten
//! seconds for ever is work of its own in a machine that has none. Here PID 1 looks, in the poll that it sleeps in anyway, at one
//! number: the CPU time of the distributions' cgroup, which is exact where /proc/stat's ticks are samples, and which leaves
//! out this work itself. Once everything is done for an idle time the next look is as late as an idle time is long.
//!
//! | phase | until | looks |
//! | --- | --- | --- |
//! | watching | the distributions were idle for long enough | each poll time |
//! | working | there is nothing left to give (at once, with `dropCache`) | each poll time |
//! | done | the distributions were busy | each idle time |
//!
//! The work is a child's ([`work`]): the kernel can take its time to write back and to move pages.

use std::{
    collections::VecDeque,
    fs, io,
    time::{Duration, Instant},
};

use undercroft_protocol::command::{Done, Failure, FailureKind, Reclaim, ReclaimMode};

use crate::{early, jobs::Mouth, jobs::Word};

/// Of the CPUs' time, the part that the distributions use at most when they are idle: 0.5 %.
const IDLE_PART: u128 = 200;
/// A step is a part of the machine's memory, within bounds.
const STEP_PART: u64 = 32;
const LEAST_STEP: u64 = 256 << 20;
const MOST_STEP: u64 = 1 << 30;
/// A step that brings less than this part of what was asked for was the last one.
const WORTHWHILE_PART: u64 = 8;

/// Documentation/admin-guide/sysctl/vm.rst: 3 is the page cache, and what the kernel remembers of files.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// The same, "compact_memory": free page reporting only sees blocks of 2 MiB.
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// The distributions' cgroup's files (Documentation/admin-guide/cgroup-v2.rst).
fn cgroup(file: &str) -> String {
    format!("{}/{file}", early::DISTRIBUTIONS)
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) now: Instant,
    /// CPU time that the distributions have used so far.
    pub(crate) used: Duration,
    pub(crate) cpus: u32,
}

impl Sample {
    /// As it is now; without a cgroup tree there is nothing to know, and the machine is taken for busy.
    pub(crate) fn take() -> Option<Self> {
        let text = fs::read_to_string(cgroup("cpu.stat")).ok()?;
        let used = usage(&text)?;
        Some(Self { now: Instant::now(), used, cpus: early::cpus() })
    }
}

fn usage(cpu_stat: &str) -> Option<Duration> {
    let line = cpu_stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    line.trim().parse().ok().map(Duration::from_micros)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Watching,
    /// A child is at it.
    Working,
    Done,
}

/// When to look, and when to work. Knows no clock and no file.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    settings: Option<Reclaim>,
    /// Oldest first; the first one is the youngest that is at least an idle time old, if there is one.
    samples: VecDeque<Sample>,
    phase: Phase,
    next: Option<Instant>,
}

impl Reclaimer {
    /// Does nothing until it is told to.
    pub(crate) fn new() -> Self {
        Self { settings: None, samples: VecDeque::new(), phase: Phase::Watching, next: None }
    }

    /// Begins anew with these settings.
    pub(crate) fn configure(&mut self, settings: Reclaim, now: Instant) {
        let enabled = settings.mode != ReclaimMode::Disabled;
        self.settings = enabled.then_some(Reclaim {
            poll_ms: settings.poll_ms.max(1),
            idle_ms: settings.idle_ms.max(settings.poll_ms).max(1),
            ..settings
        });
        self.samples.clear();
        // A child that is at it finishes, and finds nothing to go on with.
        if self.phase != Phase::Working {
            self.phase = Phase::Watching;
        }
        self.next = enabled.then_some(now);
    }

    /// When the next look is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.phase != Phase::Working)
    }

    /// Takes a look; what to start [working](work) at, if anything.
    pub(crate) fn look(&mut self, sample: Sample) -> Option<Reclaim> {
        let settings = self.settings?;
        let idle_time = Duration::from_millis(settings.idle_ms.into());
        self.samples.push_back(sample);
        while self.samples.get(1).is_some_and(|second| second.now + idle_time <= sample.now) {
            self.samples.pop_front();
        }
        let poll = sample.now + Duration::from_millis(settings.poll_ms.into());
        match (self.phase, self.was_idle(sample, idle_time)) {
            (Phase::Working, _) => return None,
            (Phase::Watching, Some(true)) => {
                self.phase = Phase::Working;
                return Some(settings);
            }
            (Phase::Done, None | Some(true)) => self.next = Some(sample.now + idle_time),
            (Phase::Watching, None | Some(false)) | (Phase::Done, Some(false)) => {
                self.phase = Phase::Watching;
                self.next = Some(poll);
            }
        }
        None
    }

    /// Whether the distributions were idle for an idle time; `None` where they were not watched for so long.
    fn was_idle(&self, sample: Sample, idle_time: Duration) -> Option<bool> {
        let first = self.samples.front().filter(|first| first.now + idle_time <= sample.now)?;
        let used = sample.used.saturating_sub(first.used).as_micros();
        let there_was = (sample.now - first.now).as_micros() * u128::from(sample.cpus.max(1));
        Some(used * IDLE_PART <= there_was)
    }

    /// The child has ended; `more` if it says that there is more to give.
    pub(crate) fn worked(&mut self, more: bool, now: Instant) {
        let Some(settings) = self.settings else {
            self.phase = Phase::Watching;
            return;
        };
        let wait = if more { settings.poll_ms } else { settings.idle_ms };
        self.phase = if more { Phase::Watching } else { Phase::Done };
        self.next = Some(now + Duration::from_millis(wait.into()));
    }

    /// Gives up: the kernel cannot do it.
    pub(crate) fn give_up(&mut self) {
        *self = Self::new();
    }
}

/// Files of the kernel's, or a test's.
pub(crate) trait Files {
    fn read(&mut self, path: &str) -> io::Result<String>;
    fn write(&mut self, path: &str, value: &str) -> io::Result<()>;
}

/// The kernel's own.
#[derive(Debug)]
pub(crate) struct Kernel;

impl Files for Kernel {
    fn read(&mut self, path: &str) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        fs::write(path, value)
    }
}

/// A child's work. It says [`Word::More`] if there is more to give.
pub(crate) fn run(settings: Reclaim, mouth: &mut Mouth) -> Result<Done, Failure> {
    // Whoever else wants the CPU goes first.
    let _ = rustix::process::nice(19);
    let more = work(&mut Kernel, settings, early::memory()).map_err(|error| Failure {
        kind: FailureKind::System,
        message: format!("memory cannot be given back to the host ({error}); it is not tried again"),
    })?;
    if more {
        mouth.say(&Word::More);
    }
    Ok(Done::Nothing)
}

/// Gives back what is to be given back now; whether there is more.
fn work(files: &mut impl Files, settings: Reclaim, memory: u64) -> io::Result<bool> {
    let more = match settings.mode {
        ReclaimMode::Disabled => return Ok(false),
        ReclaimMode::DropCache => {
            write(files, DROP_CACHES, "3")?;
            false
        }
        ReclaimMode::Gradual => step(files, settings.floor, memory)?,
    };
    // Once in an idle time is enough: it walks through all of memory.
    if !more {
        write(files, COMPACT, "1")?;
    }
    Ok(more)
}

/// Takes one step from the distributions; whether another one is worth it.
fn step(files: &mut impl Files, floor: u64, memory: u64) -> io::Result<bool> {
    let before = current(files)?;
    let step = (memory / STEP_PART).clamp(LEAST_STEP, MOST_STEP).min(before.saturating_sub(floor));
    if step == 0 {
        return Ok(false);
    }
    match files.write(&cgroup("memory.reclaim"), &step.to_string()) {
        // It took less than it was asked for.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(named(&cgroup("memory.reclaim"), &error)),
        Ok(()) => {}
    }
    let after = current(files)?;
    Ok(after > floor && before.saturating_sub(after) >= step / WORTHWHILE_PART)
}

fn current(files: &mut impl Files) -> io::Result<u64> {
    let path = cgroup("memory.current");
    let text = files.read(&path).map_err(|e| named(&path, &e))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path} is {text:?}")))
}

fn write(files: &mut impl Files, path: &str, value: &str) -> io::Result<()> {
    files.write(path, value).map_err(|error| named(path, &error))
}

fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn settings(mode: ReclaimMode) -> Reclaim {
        Reclaim { mode, idle_ms: 120_000, poll_ms: 10_000, floor: 128 * MIB }
    }

    /// A machine of 2 CPUs whose clock is moved by hand.
    struct Life {
        reclaimer: Reclaimer,
        start: Instant,
        second: u64,
        used_ms: u64,
        looks: usize,
    }

    impl Life {
        fn new(mode: ReclaimMode) -> Self {
            let start = Instant::now();
            let mut reclaimer = Reclaimer::new();
            reclaimer.configure(settings(mode), start);
            Self { reclaimer, start, second: 0, used_ms: 0, looks: 0 }
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_secs(self.second)
        }

        /// So many seconds go by, each with so many milliseconds of the distributions' CPU time; the seconds at which work
        /// was to be done, which says that there is more as long as `more` is left.
        fn live(&mut self, seconds: u64, busy_ms: u64, mut more: usize) -> Vec<u64> {
            let mut worked = Vec::new();
            for _ in 0..seconds {
                self.second += 1;
                self.used_ms += busy_ms;
                if self.reclaimer.due().is_none_or(|due| due > self.now()) {
                    continue;
                }
                self.looks += 1;
                let used = Duration::from_millis(self.used_ms);
                if self.reclaimer.look(Sample { now: self.now(), used, cpus: 2 }).is_some() {
                    assert!(self.reclaimer.due().is_none(), "it looks while it works");
                    worked.push(self.second);
                    self.reclaimer.worked(more > 0, self.now());
                    more = more.saturating_sub(1);
                }
            }
            worked
        }
    }

    #[test]
    fn caches_are_dropped_once_in_an_idle_time() {
        let mut life = Life::new(ReclaimMode::DropCache);
        // 0.5 % of two CPUs is 10 ms a second.
        assert_eq!(life.live(600, 11, 0), [0; 0], "it is busy");
        assert_eq!(life.live(3600, 9, 0).len(), 1);
        assert_eq!(life.live(30, 500, 0), [0; 0]);
        assert_eq!(life.live(3600, 0, 0).len(), 1, "a new idle time");
        assert_eq!(life.live(36_000, 0, 0), [0; 0]);
    }

    #[test]
    fn an_idle_machine_is_looked_at_rarely() {
        let mut life = Life::new(ReclaimMode::DropCache);
        life.live(600, 0, 0);
        life.looks = 0;
        life.live(3600, 0, 0);
        assert!(life.looks <= 30, "{} looks in an idle hour", life.looks);
        let mut disabled = Life::new(ReclaimMode::Disabled);
        disabled.live(3600, 0, 0);
        assert_eq!(disabled.looks, 0);
    }

    #[test]
    fn gradual_goes_on_as_long_as_there_is_more_and_it_is_idle() {
        let mut life = Life::new(ReclaimMode::Gradual);
        let worked = life.live(600, 0, 4);
        assert_eq!(worked.len(), 5);
        assert!(worked.windows(2).all(|pair| pair[1] - pair[0] == 10), "{worked:?}");
        let mut life = Life::new(ReclaimMode::Gradual);
        assert_eq!(life.live(125, 0, 100).len(), 1);
        assert_eq!(life.live(100, 1000, 100), [0; 0], "somebody works again");
    }

    #[test]
    fn settings_can_change_while_a_child_works() {
        let mut life = Life::new(ReclaimMode::DropCache);
        let first = Sample { now: life.now(), used: Duration::ZERO, cpus: 2 };
        assert!(life.reclaimer.look(first).is_none());
        let later = Sample { now: life.now() + Duration::from_secs(120), ..first };
        assert!(life.reclaimer.look(later).is_some());
        life.reclaimer.configure(settings(ReclaimMode::Disabled), later.now);
        life.reclaimer.worked(false, later.now);
        assert_eq!(life.reclaimer.due(), None);
    }

    /// What was read and written; reads of memory.current are answered in their order.
    #[derive(Default)]
    struct Recording {
        current: Vec<u64>,
        written: Vec<String>,
        short: bool,
    }

    impl Files for Recording {
        fn read(&mut self, path: &str) -> io::Result<String> {
            assert!(path.ends_with("/distributions/memory.current"));
            Ok(format!("{}\n", self.current.remove(0)))
        }

        fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
            let name = path.rsplit('/').next().unwrap_or_default();
            self.written.push(format!("{name}={value}"));
            if self.short && name == "memory.reclaim" {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        }
    }

    fn gradual(memory: u64, current: [u64; 2], short: bool) -> (bool, Vec<String>) {
        let mut files =
            Recording { current: current.map(|mib| mib * MIB).into(), short, ..Recording::default() };
        let more = work(&mut files, settings(ReclaimMode::Gradual), memory).unwrap();
        (more, files.written)
    }

    #[test]
    fn a_step_is_a_part_of_memory_down_to_the_floor() {
        let reclaim = |mib: u64| format!("memory.reclaim={}", mib * MIB);
        assert_eq!(gradual(1 << 30, [900, 640], false), (true, vec![reclaim(256)]));
        assert_eq!(gradual(16 << 30, [9000, 8500], false), (true, vec![reclaim(512)]));
        assert_eq!(gradual(64 << 30, [9000, 8000], false), (true, vec![reclaim(1024)]));
        let last = (false, vec![reclaim(72), "compact_memory=1".into()]);
        assert_eq!(gradual(1 << 30, [200, 128], false), last);
        let nothing = (false, vec!["compact_memory=1".to_owned()]);
        assert_eq!(gradual(1 << 30, [100, 100], false), nothing);
        let fruitless = (false, vec![reclaim(256), "compact_memory=1".into()]);
        assert_eq!(gradual(1 << 30, [900, 890], true), fruitless, "all of it is in use");
    }

    #[test]
    fn dropping_is_all_at_once() {
        let mut files = Recording::default();
        assert!(!work(&mut files, settings(ReclaimMode::DropCache), 1 << 30).unwrap());
        assert_eq!(files.written, ["drop_caches=3", "compact_memory=1"]);
        assert_eq!(usage("usage_usec 1500\nuser_usec 3\n"), Some(Duration::from_micros(1500)));
    }
}
