//! Traffic at localhost: who carries it, and how much of it is measured.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
pub use undercroft_ruler_runner::ANSWERER;

use crate::{Result, Setting};

/// The port at which iperf3 listens in the guest.
pub const IPERF: u16 = 5201;
/// The answerer's program in the guest.
pub const ANSWERER_PROGRAM: &str = "/bin/undercroft-ruler-answerer";
/// iperf3's program in the guest and beside it.
pub const IPERF_PROGRAM: &str = "/usr/bin/iperf3";
/// What is sent at once in a short connection, in bytes.
pub const QUESTION: usize = 64;

/// What is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Traffic {
    /// Who carries it.
    pub carrier: Carrier,
    /// How much goes each way, in MiB.
    pub mebibytes: u32,
    /// How many connections are made, one after the other.
    pub connections: u32,
}

/// Who carries a connection from the host's loopback to a server in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Carrier {
    /// Our relay: the servers run in a distribution.
    Undercroft(Box<Setting>),
    /// Another monitor, in whose guest the servers run from the start.
    Other {
        /// A program that runs beside it, and the socket that it makes when it is ready.
        helper: Option<(Vec<String>, PathBuf)>,
        /// The monitor.
        monitor: Vec<String>,
    },
}

impl Traffic {
    /// Reads what was written as JSON.
    pub fn read(path: &std::path::Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}
