//! systemctl, asked without waiting for ever.

use std::{process::Command, time::Duration};

use crate::output::{self, Which};

/// What systemctl prints, whatever its status says of it; `None` if it could not be executed or took longer than that.
pub(super) fn ask(arguments: &[&str], limit: Duration) -> Option<String> {
    let mut command = Command::new("systemctl");
    command.arg("--no-pager").arg("--no-ask-password").args(arguments);
    output::of(&mut command, Which::Out, limit).ok()
}
