//! Why something in the lab, or the lab itself, did not work.

use std::io;
use std::path::PathBuf;

use undercroft_lab::pump::PumpError;

/// Why there is no lab, or no result of a command in it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A step on this host failed.
    #[error("{doing} failed")]
    Step {
        /// The step.
        doing: String,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A program that the lab is made with is not installed.
    #[error("the lab needs {what}: apt-get install {package}")]
    Missing {
        /// The program or file.
        what: String,
        /// Debian's package.
        package: &'static str,
    },
    /// The Rust virtiofsd, which a user who is not root needs, cannot be installed.
    #[error(
        "virtiofsd could not be installed by cargo ({reason}); its libraries: apt-get install libcap-ng-dev libseccomp-dev"
    )]
    Virtiofsd {
        /// What cargo said last.
        reason: String,
    },
    /// No kernel for L1.
    #[error("no kernel for the lab: {0}")]
    Kernel(String),
    /// The kernel's cache.
    #[error(transparent)]
    Cache(#[from] undercroft_kernel_config::Error),
    /// The lab's own program could not be built.
    #[error(transparent)]
    Program(#[from] crate::guest::BuildError),
    /// The broker's reason.
    #[error("the lab did not come up: {0}")]
    NotUp(String),
    /// The connection to the broker failed.
    #[error("the connection to the lab failed")]
    Connection(#[from] PumpError),
    /// The broker went away while a command ran.
    #[error("the lab ended while the command ran; its console: {}", console.display())]
    Lost {
        /// L1's console log.
        console: PathBuf,
    },
    /// The agent could not start the command.
    #[error("in the lab: {0}")]
    Refused(String),
    /// There is no lab in the lab.
    #[error("this runs in the lab already; a lab in the lab is not made")]
    Inside,
}

impl LabError {
    /// For `map_err`: what was being done.
    pub(crate) fn at(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| LabError::Step { doing, source }
    }
}
