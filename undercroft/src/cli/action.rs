//! What can be asked of the command line.

use std::{ffi::OsString, path::PathBuf};

use undercroft::digest::Digest;
use undercroft_config::{Mount, Published};

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
    Ports {
        json: bool,
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
    /// The default distribution, as `wsl --status` tells it.
    Defaults,
    /// Nothing is to be done, and this is why.
    Note {
        /// A distribution that has to be there.
        of: Option<String>,
        text: String,
    },
    Terminate {
        name: String,
        force: bool,
    },
    Shutdown {
        force: bool,
    },
    Unregister(String),
    SetDefault(String),
    Export {
        name: String,
        /// `-` is standard output.
        file: PathBuf,
        format: Option<Format>,
    },
    Clone {
        name: String,
        new_name: String,
    },
    Rename {
        name: String,
        new_name: String,
    },
    Move {
        name: String,
        directory: Option<PathBuf>,
    },
    Resize {
        name: String,
        size: u64,
    },
    Adopt {
        name: String,
        image: PathBuf,
    },
    KeepAlive {
        name: String,
        keep: bool,
    },
    SetDefaultUser {
        name: String,
        user: String,
    },
    Version {
        style: Style,
    },
    Doctor {
        json: bool,
    },
    Parts {
        archive: String,
        sha256: Option<Digest>,
    },
    Config(Config),
    Completions(clap_complete::Shell),
    Man(PathBuf),
}

/// What a distribution is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A tar archive
    Tar,
    /// A tar archive, by gzip
    #[value(name = "tar.gz")]
    TarGz,
    /// A tar archive, by xz
    #[value(name = "tar.xz")]
    TarXz,
    /// A tar archive, by zstd
    #[value(name = "tar.zst")]
    TarZst,
    /// A raw disk image with an ext4 file system
    #[value(alias = "vhd")]
    Image,
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
    pub(crate) making: Making,
    pub(crate) launch: Launch,
}

/// Whether a shell in it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    Never,
    /// If somebody is there who would use it.
    AtTerminal,
    Always,
}

/// Which keys of the configuration are wanted.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Config {
    /// Only keys that contain this
    #[arg(value_name = "KEY")]
    pub(crate) wanted: Option<String>,
    /// Also what this distribution's own files say, /etc/wsl.conf and /etc/wsl-distribution.conf; it is started if need be
    #[arg(short, long, value_name = "NAME")]
    pub(crate) distribution: Option<String>,
    /// For machines
    #[arg(long)]
    pub(crate) json: bool,
}

/// How its disk is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Making {
    /// Keep everything on its own disk, instead of sharing what was imported with others of the same archive
    #[arg(long)]
    pub(crate) flat: bool,
    /// The most that its disk can hold, such as 64G
    #[arg(long, value_parser = super::ours::bytes)]
    pub(crate) size: Option<u64>,
    /// Put its disk into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) location: Option<PathBuf>,
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file or folder; `-` is standard input.
    File(PathBuf),
    /// Anything that is understood as a source.
    Text(String),
    /// An ext4 image, to be copied.
    Image(PathBuf),
    /// What the list has as its default.
    Default,
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
    /// The user's home is wanted, wherever this is.
    pub(crate) at_home: bool,
    pub(crate) publish: Vec<Published>,
    /// Of the host's.
    pub(crate) folders: Vec<Mount>,
    pub(crate) program: Program,
}

/// What of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The user's shell, as at a login.
    LoginShell,
    /// A line for the user's shell.
    Line(OsString),
    /// The same, for the shell as at a login.
    LoginLine(OsString),
    /// A program and its arguments, without a shell.
    Argv(Vec<OsString>),
}
