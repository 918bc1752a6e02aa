//! Everything that can go wrong on the way to a kernel.

use std::{io, path::PathBuf};

use crate::merge::Lost;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Neither `UNDERCROFT_CACHE`, `XDG_CACHE_HOME` nor `HOME` is an absolute path.
    #[error("there is no place for a cache: set UNDERCROFT_CACHE to a directory")]
    NoCache,
    /// A program that is needed is not installed.
    #[error("{program} is needed and not installed: sudo apt-get install {package}")]
    NoProgram {
        /// What was called.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ended with another status than 0.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// What was called.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines of what it said.
        stderr: String,
    },
    /// apt knows no package of this kind.
    #[error(
        "apt knows no package {wanted}: run `sudo apt-get update`, on a Debian that has it (12 with \
         security or backports, 13), or give a kernel with --kernel PATH"
    )]
    NoPackage {
        /// The package's name, or a pattern for it.
        wanted: String,
    },
    /// A package does not hold what its name promises.
    #[error("{}: expected {expected} in it; delete the directory to have it fetched again", path.display())]
    Package {
        /// Where it was unpacked.
        path: PathBuf,
        /// What is missing.
        expected: String,
    },
    /// A file is no kernel, or one that this machine cannot run.
    #[error("{}: {problem}; expected an x86-64 Linux kernel, vmlinux (ELF) or bzImage", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A compressed file cannot be decompressed.
    #[error("{}: damaged or unknown compression ({format})", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// What it looked like.
        format: &'static str,
        /// What the decompressor says.
        #[source]
        source: io::Error,
    },
    /// A module file that is not an ELF object with module information.
    #[error("{}: not a kernel module ({problem})", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A module is asked for by name and not there.
    #[error("{}: no module {module}, and it is not built in either", modules.display())]
    NoModule {
        /// The module's name.
        module: String,
        /// The directory that was searched.
        modules: PathBuf,
    },
    /// An initramfs entry does not fit the newc format.
    #[error("{}: {size} bytes are too many for an initramfs entry (4 GiB is the most)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A fragment's line is no option.
    #[error("{fragment}:{line}: expected CONFIG_NAME=value or `# CONFIG_NAME is not set`, and got {text:?}")]
    Fragment {
        /// The fragment's file name.
        fragment: String,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// An option stands in two fragments.
    #[error("{option} stands in {first} and in {second}: one feature a file, one place an option")]
    Twice {
        /// The option.
        option: String,
        /// Fragment and line of its first place.
        first: String,
        /// Fragment and line of its second.
        second: String,
    },
    /// An optional fragment that does not exist.
    #[error("there is no optional fragment {name}; there are: {}", known.join(", "))]
    NoFragment {
        /// What was asked for.
        name: String,
        /// Those that exist.
        known: Vec<&'static str>,
    },
    /// Options that Kconfig did not take over as asked.
    #[error("{}", crate::merge::describe_lost(lost))]
    Lost {
        /// Each of them.
        lost: Vec<Lost>,
    },
    /// The source is not what the checksum says.
    #[error("{}: expected sha256 {expected}, and it is {actual}", path.display())]
    Checksum {
        /// The tarball.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// A source from the network without a checksum.
    #[error("{url}: a source from the network needs --sha256")]
    NoChecksum {
        /// Where it lies.
        url: String,
    },
    /// A tarball without a kernel in it.
    #[error("{}: expected one folder with a kernel's Makefile and Kconfig in it", path.display())]
    NotASource {
        /// The tarball.
        path: PathBuf,
    },
    /// The compiler or the linker refused.
    #[error("the kernel does not build:\n{tail}\nthe whole log: {}", log.display())]
    Build {
        /// The lines around the first error.
        tail: String,
        /// The log's path.
        log: PathBuf,
    },
    /// A requirements file's line is not understood.
    #[error("{file}:{line}: {problem}")]
    Requirement {
        /// The file's name.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
