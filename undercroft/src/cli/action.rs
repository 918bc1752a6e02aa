//! What can be asked of the command line.

use std::{ffi::OsString, path::PathBuf};

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Be the service.
    Serve,
    Run(Run),
    List {
        style: Style,
        running: bool,
    },
    Status {
        json: bool,
        watch: bool,
    },
    Vms {
        json: bool,
    },
    Import(Import),
    /// What can be installed by name, of a list.
    Online {
        list: Option<String>,
        json: bool,
    },
    Terminate(String),
    Shutdown {
        force: bool,
    },
    Unregister(String),
    SetDefault(String),
    Version {
        style: Style,
    },
    Doctor,
    Config {
        wanted: Option<String>,
        json: bool,
    },
    Completions(clap_complete::Shell),
    Man(PathBuf),
}

/// Whose tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Ours: names, with why they run if it is wanted.
    Ours { verbose: bool },
    /// Names alone, a line each.
    Quiet,
    /// For machines.
    Json,
    /// As the reference system prints it.
    Wsl { verbose: bool },
}

/// A distribution to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) name: Option<String>,
    pub(crate) origin: Origin,
    pub(crate) list: Option<String>,
    pub(crate) flat: bool,
    pub(crate) size: Option<u64>,
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file or folder; `-` is standard input.
    File(PathBuf),
    /// Anything that is understood as a source.
    Text(String),
}

/// A process in a distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// `None` is the default one.
    pub(crate) distribution: Option<String>,
    /// Whether it is started if it does not run.
    pub(crate) start: bool,
    pub(crate) user: Option<String>,
    pub(crate) directory: Option<OsString>,
    pub(crate) program: Program,
}

/// What of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The user's shell, as at a login.
    LoginShell,
    /// A line for the user's shell.
    Line(OsString),
    /// A program and its arguments, without a shell.
    Argv(Vec<OsString>),
}
