//! What can go wrong while measuring.

use std::{io, path::PathBuf};

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program that is needed could not be run, or failed.
    #[error("{program} failed; {help}")]
    Program {
        /// Its name.
        program: String,
        /// What to do about it.
        help: String,
        /// How.
        source: io::Error,
    },
    /// A static program.
    #[error(transparent)]
    Build(#[from] undercroft_harness::guest::BuildError),
    /// A shared library that a program needs is not there.
    #[error("{} needs {library}, which this machine does not have", program.display())]
    Library {
        /// The program.
        program: PathBuf,
        /// The library's name.
        library: String,
    },
    /// There is no kernel to measure with.
    #[error("no kernel for the ruler's machine")]
    Kernel(#[from] undercroft_kernel_config::Error),
    /// The plugin's output is not what was expected.
    #[error("the plugin's output, line {line}: expected EVENT NAME=COUNT …, and it is {text:?}")]
    Output {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// The machine did not come to the end of its plan.
    #[error("the ruler's machine: {problem}; the end of its console:\n{console}")]
    Machine {
        /// What is missing.
        problem: String,
        /// Its last lines.
        console: String,
    },
    /// The machine said nothing more, each time that it was switched on.
    #[error("the ruler's machine said nothing for {seconds} s; the end of its console:\n{console}")]
    Still {
        /// For how long.
        seconds: u64,
        /// Its last lines.
        console: String,
    },
    /// The budget file.
    #[error("{}: expected [[budget]] tables with name, value, unit and reason", path.display())]
    Budget {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
