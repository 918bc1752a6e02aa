//! How far it is, and how to stop it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::error::{Result, SourceError};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A server is asked what there is.
    Asking,
    /// A file comes over the network.
    Downloading,
    /// A file is read to see whether it is what it should be.
    Checking,
    /// An image's layers are decompressed and looked through.
    Unpacking,
    /// An image's layers are written into one archive.
    Merging,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asking => "asking",
            Self::Downloading => "downloading",
            Self::Checking => "checking",
            Self::Unpacking => "unpacking",
            Self::Merging => "merging",
        })
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: Phase,
    /// With what, in words for people.
    pub what: &'a str,
    /// Bytes of it that are done. After a download was cut, the bytes that were there before count.
    pub done: u64,
    /// Bytes of all of it, where that is known.
    pub total: Option<u64>,
}

/// Stops what is under way, from any thread. Clones are the same one.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    /// Connections that somebody may be waiting at.
    agents: Mutex<Vec<ureq::Agent>>,
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

impl Cancel {
    /// One that was not called yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops it, now and for good. A wait for a server's bytes ends at once; one for a name server or for a connection may
    /// last until its timeout.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// Whether it was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Makes it end this agent's connections too.
    pub(super) fn ends(&self, agent: &ureq::Agent) {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner).push(agent.clone());
        if self.is_cancelled() {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        let agents = std::mem::take(&mut *self.0.agents.lock().unwrap_or_else(PoisonError::into_inner));
        agents.into_iter().for_each(ureq::Agent::shutdown);
    }
}

/// Who is told, and who may stop it.
pub(super) struct Watch<'a> {
    tell: &'a mut dyn FnMut(Progress<'_>),
    cancel: Cancel,
    told: Option<(Phase, Instant)>,
    /// What is told is a part: bytes of the parts before it, and of all of them.
    part_of: Option<(u64, u64)>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(cancel: &Cancel, tell: &'a mut dyn FnMut(Progress<'_>)) -> Self {
        Self { tell, cancel: cancel.clone(), told: None, part_of: None }
    }

    /// From here on, what is told is a part of something larger; `None` ends that.
    pub(super) fn part_of(&mut self, before_and_whole: Option<(u64, u64)>) {
        self.part_of = before_and_whole;
    }

    /// Tells it, if it is time again; an error if somebody wants this to stop.
    pub(super) fn step(&mut self, phase: Phase, what: &str, done: u64, total: Option<u64>) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let (done, total) = match self.part_of {
            Some((before, whole)) => (before.saturating_add(done), Some(whole)),
            None => (done, total),
        };
        let recently = self.told.is_some_and(|(last, at)| last == phase && at.elapsed() < TELL);
        if !recently || total == Some(done) {
            self.told = Some((phase, Instant::now()));
            (self.tell)(Progress { phase, what, done, total });
        }
        Ok(())
    }
}
