//! What the ruler tells its machine to do, and what the machine answers on its console.

pub mod marker;
pub mod residence;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file in the machine's initramfs that holds the [`Plan`] as JSON.
pub const PLAN: &str = "/plan.json";

/// The port at which the answerer listens in a guest: it sends back what comes first on a connection, and closes it.
pub const ANSWERER: u16 = 7007;

/// What a line of the console begins with that holds an [`Answer`] as JSON.
pub const ANSWER: &str = "ruler: ";

/// What a line of the console begins with that holds something [`Said`] by a program, as JSON.
pub const SAID: &str = "ruler-said: ";

/// What a measured program tells the ruler, besides its markers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// The name of the span between the two markers that were executed last; one for each, in order.
    Span {
        /// What was done in it. Spans of one name are repetitions, and the first of several is not counted.
        name: String,
        /// Moments in it and the nanoseconds from its begin to each, by the machine's clock.
        moments: Vec<(String, u64)>,
    },
    /// A number that is no instruction count.
    Value {
        /// What it is.
        name: String,
        /// How many.
        value: u64,
        /// Of what.
        unit: String,
    },
}

impl Said {
    /// Says it: prints it on a line of its own.
    pub fn say(&self) {
        match serde_json::to_string(self) {
            Ok(json) => println!("{SAID}{json}"),
            Err(error) => println!("{SAID}{error}"),
        }
    }
}

/// What the machine does from its start until it switches off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Modules to load, in this order, with their parameters.
    pub modules: Vec<(PathBuf, String)>,
    /// Programs to run, one after the other.
    pub runs: Vec<Run>,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What its answers are called.
    pub name: String,
    /// Its path, absolute, then its arguments.
    pub program: Vec<String>,
    /// How often it is run. The first time fills caches and is not to be counted.
    pub repetitions: u32,
    /// What the run waits for.
    pub until: Until,
    /// Seconds of the machine's time after which the program is killed.
    pub limit_seconds: u64,
    /// A file that the program writes and that is put on the console if the run did not go as expected.
    pub log: Option<PathBuf>,
}

/// How far a program is let run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// To its own end, with status 0.
    Exit,
    /// Until something connects to this unix socket, which the runner listens on: the guest is up. Then the program's
    /// memory is looked at, and the program is killed.
    Connection {
        /// Where to listen.
        socket: PathBuf,
        /// Mappings of at least so many MiB are the guest's memory.
        guest_mib: u64,
    },
}

/// What became of one repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The run's name.
    pub name: String,
    /// Counted from 0.
    pub repetition: u32,
    /// Memory beyond the guest's in KiB, if it was asked for.
    pub resident_kib: Option<u64>,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// The tag of the marker just before a program starts; the plugin begins a new count of firsts there.
pub const TAG_BEGIN: u16 = 1;
/// The tag of the marker when the program has got to where the run ends.
pub const TAG_UP: u16 = 2;
/// The tags of the markers around a span that a program has within its run.
pub const TAG_SPAN_BEGIN: u16 = 3;
/// The other one.
pub const TAG_SPAN_END: u16 = 4;
/// The tag of the marker that is the first instruction of a program which others start, in L1 or in L2.
pub const TAG_PROGRAM: u16 = 5;
