//! Calling other programs: the same surroundings everywhere, and one line when they fail.

use std::{
    io,
    process::{Command, Output, Stdio},
};

use crate::Error;

/// A command whose output depends neither on the user's language nor on standard input.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs it and gives its standard output; `package` has the program if it is not installed.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    let output = command.output().map_err(|source| not_started(command, package, source))?;
    if output.status.success() { Ok(output.stdout) } else { Err(failed(command, &output)) }
}

/// Why a program did not even start.
pub(crate) fn not_started(command: &Command, package: &'static str, source: io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::NoProgram { program, package },
        _ => Error::Io { doing: "run", path: program.into(), source },
    }
}

fn failed(command: &Command, output: &Output) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(3)..].join("; ");
    Error::Program {
        program: command.get_program().to_string_lossy().into_owned(),
        status: output.status.to_string(),
        stderr: if tail.is_empty() { "it said nothing".into() } else { tail },
    }
}
