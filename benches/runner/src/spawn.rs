//! Starting a program with a marker as the last thing before execve(2).
#![allow(unsafe_code)]

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use undercroft_ruler_runner::{TAG_BEGIN, marker};

/// Starts `program`; its output goes to the console.
pub(crate) fn spawn(program: &[String]) -> io::Result<Child> {
    let (path, arguments) = program.split_first().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "a run needs a program, and this one has none")
    })?;
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    // SAFETY: between fork and exec the closure executes one NOP: nothing that is not async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            marker::mark::<TAG_BEGIN>();
            Ok(())
        });
    }
    command.spawn()
}
