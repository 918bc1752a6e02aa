//! Others beside us: what they take for the same, on the same ruler.
//!
//! Everybody's span is the same: from the tool's execve(2) to the first instruction of the program that it was asked to
//! run. For [`containers`] that is a program in a root file system; for [`monitors`] of virtual machines it is `/init`.

pub mod containers;
pub mod monitors;
pub mod network;
pub mod report;
pub mod systemd;

use std::path::{Path, PathBuf};

use undercroft_ruler_runner::{Run, Until};

use crate::{
    Error,
    archive::Archive,
    counts::{Counts, Span},
    machine::{Machine, Repetition},
    tools,
};

/// Seconds of the machine's time for one start.
const LIMIT_SECONDS: u64 = 120;

/// How often each is counted, after a first time that is not.
const COUNTED: u32 = 3;

/// One tool, called in one way.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What the table calls it.
    pub name: &'static str,
    /// The program, by its name in PATH.
    pub program: &'static str,
    /// What brings it, for who does not have it.
    pub install: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it separates, or which devices its machine has.
    pub what: &'static str,
    /// Further files of the host that it needs, at their own paths.
    pub files: Vec<PathBuf>,
}

/// What came of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What the table calls it.
    pub name: String,
    /// What it separates, or which devices its machine has.
    pub what: String,
    /// From its execve(2) to the first instruction of its program; or why there is no number.
    pub counts: Result<Counts, String>,
}

impl Peer {
    /// Where it is on this host.
    fn found(&self) -> Option<PathBuf> {
        tools::in_path(self.program)
    }

    /// Puts it into the archive; gives what the machine is to run.
    fn place(&self, program: &Path, archive: &mut Archive) -> Result<Run, Error> {
        archive.program(program, program)?;
        for file in &self.files {
            archive.copy(file, file);
        }
        Ok(Run {
            name: self.name.into(),
            program: std::iter::once(program.display().to_string()).chain(self.arguments.clone()).collect(),
            repetitions: 1 + COUNTED,
            until: Until::Exit,
            limit_seconds: LIMIT_SECONDS,
            log: None,
        })
    }
}

/// Measures them in one machine, which first does what `before` says. Which moment ends a span is the caller's to say.
/// Who is not on this host, or does not do what it should, gets a row that says so.
fn measure(
    machine: &Machine,
    peers: &[Peer],
    mut archive: Archive,
    before: Vec<Run>,
    end: impl Fn(&Span) -> Option<Counts>,
    work: &Path,
) -> Result<Vec<Row>, Error> {
    let mut runs = before;
    for peer in peers {
        if let Some(program) = peer.found() {
            runs.push(peer.place(&program, &mut archive)?);
        }
    }
    let (repetitions, _) = machine.attempt(archive, runs, work)?;
    let row = |peer: &Peer| Row {
        name: peer.name.into(),
        what: peer.what.into(),
        counts: match peer.found() {
            None => Err(format!("not on this host; it comes with {}", peer.install)),
            Some(_) => median(&repetitions, peer.name, &end),
        },
    };
    Ok(peers.iter().map(row).collect())
}

fn median(
    repetitions: &[Repetition],
    name: &str,
    end: impl Fn(&Span) -> Option<Counts>,
) -> Result<Counts, String> {
    let of_it = || repetitions.iter().filter(|r| r.name == name);
    let mut counted: Vec<Counts> =
        of_it().filter(|r| r.repetition > 0).filter_map(|r| end(&r.span)).collect();
    counted.sort_by_key(Counts::total);
    counted.get(counted.len() / 2).copied().ok_or_else(|| {
        let error = of_it().find_map(|r| r.error.clone());
        format!("did not start its program: {}", error.unwrap_or_else(|| "no marker was seen".into()))
    })
}
