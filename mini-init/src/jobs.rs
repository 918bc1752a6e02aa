//! Work that takes long, in forked children: mini-init itself always answers.
//!
//! A child says what there is to say in frames on a pipe. The pipe is closed on exec and with its last holder, so whatever
//! becomes another program has succeeded when the pipe ends without an answer; that is how a launch is answered.

use std::{fs::File, io::Write, os::fd::OwnedFd};

use nix::{
    fcntl::OFlag,
    unistd::{ForkResult, pipe2},
};
use serde::{Deserialize, Serialize};
use undercroft_guest::{
    channel::Channel,
    process::{exit_child, fork},
};
use undercroft_protocol::{
    command::{Done, Event, Failure, FailureKind},
    frame::encode,
    opening::Mark,
};

use crate::log;

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// To be passed to the host.
    Event(Event),
    /// For the answer's timeline.
    Mark(Mark),
    /// A launch: the distribution's first process is this one.
    Born(i32),
    /// A reclaim: there is more to give back.
    More,
    /// The answer, and the last word.
    Answer(Result<Done, Failure>),
}

/// The child's end of the pipe.
#[derive(Debug)]
pub(crate) struct Mouth(File);

impl Mouth {
    /// Says something. If mini-init does not listen there is nobody to tell.
    pub(crate) fn say(&mut self, word: &Word) {
        if let Ok(bytes) = encode(word) {
            let _ = self.0.write_all(&bytes);
        }
    }

    /// Says that something did not go, without being a reason to stop.
    pub(crate) fn warn(&mut self, text: String) {
        self.say(&Word::Event(Event::Warning(text)));
    }
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Job {
    /// The pipe's end here.
    pub(crate) ear: Channel,
    /// What it is for.
    pub(crate) purpose: Purpose,
    /// Marks that it made.
    pub(crate) marks: Vec<Mark>,
}

/// What a child works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The request with this number.
    Request(u64),
    /// A launch, asked for by `request`: it will be the init of `distribution`.
    Launch {
        /// [`Request::id`](undercroft_protocol::command::Request::id).
        request: u64,
        /// [`Launch::id`](undercroft_protocol::command::Launch::id).
        distribution: u32,
    },
    /// Clearing up after a distribution that has ended.
    Cleanup {
        /// [`Launch::id`](undercroft_protocol::command::Launch::id).
        distribution: u32,
    },
    /// Giving memory back, for nobody who waits; and whether there is more to give.
    Reclaim {
        /// As the child has said.
        more: bool,
    },
}

/// The two ends of a child's pipe.
fn pipe() -> std::io::Result<(OwnedFd, Mouth)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((read, Mouth(write.into())))
}

/// Starts a child that carries something out, and answers what came of it.
pub(crate) fn start(
    purpose: Purpose,
    work: impl FnOnce(&mut Mouth) -> Result<Done, Failure>,
) -> Result<Job, Failure> {
    begin(purpose, |mouth| {
        let answer = work(mouth);
        mouth.say(&Word::Answer(answer));
    })
}

/// The same for work whose success is that the pipe ends without an answer.
pub(crate) fn start_silent(
    purpose: Purpose,
    work: impl FnOnce(&mut Mouth) -> Result<(), Failure>,
) -> Result<Job, Failure> {
    begin(purpose, |mouth| {
        if let Err(failure) = work(mouth) {
            mouth.say(&Word::Answer(Err(failure)));
        }
    })
}

fn begin(purpose: Purpose, work: impl FnOnce(&mut Mouth)) -> Result<Job, Failure> {
    let (read, mut mouth) = pipe().map_err(system("making a pipe"))?;
    match fork().map_err(system("starting a process"))? {
        ForkResult::Child => {
            drop(read);
            work(&mut mouth);
            exit_child(0)
        }
        ForkResult::Parent { .. } => {
            let ear = Channel::new(read).map_err(system("listening to a child"))?;
            Ok(Job { ear, purpose, marks: Vec::new() })
        }
    }
}

/// Turns an error into a failure that says what was tried.
pub(crate) fn system<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure + use<E> {
    failure(FailureKind::System, what)
}

/// As [`system`], of another kind.
pub(crate) fn failure<E: std::fmt::Display>(
    kind: FailureKind,
    what: &str,
) -> impl FnOnce(E) -> Failure + use<E> {
    let what = what.to_owned();
    move |error| {
        let message = format!("{what}: {error}");
        log::line(log::Level::Warning, &message);
        Failure { kind, message }
    }
}
