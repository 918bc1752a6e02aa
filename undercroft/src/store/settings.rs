//! What is set for one distribution.

use serde::{Deserialize, Serialize};
use undercroft_protocol::command::Limits;

/// What somebody has set for a distribution, or was found out about it. [`Store::configure`](super::Store::configure)
/// changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Who its sessions are, by number; `None` leaves it to its own configuration.
    pub default_uid: Option<u32>,
    /// It is not stopped for being idle.
    pub keep_alive: bool,
    /// Its users are nobody outside it. Without, its root is the virtual machine's.
    pub own_users: bool,
    /// How much of the virtual machine it may take.
    pub limits: Limits,
    /// Whether its own first-run command (`oobe.command`) is still to be run.
    pub setup: Setup,
    /// The manifest's name for its kind, or `ID` of its os-release.
    pub flavour: Option<String>,
    /// `VERSION_ID` of its os-release.
    pub os_version: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_uid: None,
            keep_alive: false,
            own_users: true,
            limits: Limits::default(),
            setup: Setup::Done,
            flavour: None,
            os_version: None,
        }
    }
}

impl Settings {
    /// Of one that is made from what its makers packed: it has not been set up yet.
    pub(super) fn of_a_new_one() -> Self {
        Self { setup: Setup::Pending, ..Self::default() }
    }
}

/// Whether a distribution has been set up by its own means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setup {
    /// Nothing is to be done, or it has been.
    #[default]
    Done,
    /// Its first interactive session is to begin with it.
    Pending,
}
