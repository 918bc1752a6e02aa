//! Unpacking a root file system into an empty disk.

use undercroft_protocol::command::{Done, Failure, Import};

use crate::jobs::{Mouth, system};

/// Carries out an import, in a process of its own.
pub(crate) fn run(_what: &Import, _mouth: &mut Mouth) -> Result<Done, Failure> {
    Err(system("import")("not there yet"))
}
