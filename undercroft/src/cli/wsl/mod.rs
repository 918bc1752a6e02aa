//! WSL's grammar: options that are verbs, and everything else a command for the default distribution.

mod manage;
mod refused;
#[cfg(test)]
mod tests;

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use super::{
    Meaning,
    action::{Action, Program, Run},
    ours::line,
};

/// What `wsl --help` prints; the manual page has it, too.
pub(super) const HELP: &str = include_str!("help.txt");

/// Words that begin a line of this grammar; the rest of it is [`action`]'s to understand or refuse.
const WORDS: [&str; 33] = [
    "--version",
    "--list",
    "-l",
    "--set-default",
    "-s",
    "--set-version",
    "--set-default-version",
    "--terminate",
    "-t",
    "--unregister",
    "--shutdown",
    "--status",
    "--import",
    "--install",
    "--uninstall",
    "--export",
    "--import-in-place",
    "--manage",
    "--mount",
    "--unmount",
    "--update",
    "--debug-shell",
    "--system",
    "-d",
    "--distribution",
    "--distribution-id",
    "-e",
    "--exec",
    "-u",
    "--user",
    "--cd",
    "--shell-type",
    "--",
];

/// Whether words are of this grammar, when the program has its own name: `undercroft --list`, `undercroft -d debian`.
pub(super) fn looks_like(words: &[OsString]) -> bool {
    words.first().is_some_and(|first| WORDS.iter().any(|word| first == word))
}

pub(super) fn parse(words: Vec<OsString>, only: bool) -> Meaning {
    match action(words) {
        Ok(Some(action)) => Meaning::Do(action),
        Ok(None) => {
            print!("{HELP}");
            Meaning::Said(0)
        }
        Err(mistake) => {
            eprintln!("error: {mistake}\nTry `{} --help`.", if only { "wsl" } else { "undercroft" });
            Meaning::Said(if only { super::FAILED_AS_WSL } else { super::FAILED })
        }
    }
}

/// Words that were not looked at yet.
struct Rest(std::vec::IntoIter<OsString>);

impl Rest {
    fn next(&mut self) -> Option<OsString> {
        self.0.next()
    }

    fn value(&mut self, of: &str) -> Result<OsString, String> {
        self.next().ok_or_else(|| format!("{of}: expected {} after it", form(of)))
    }

    fn text(&mut self, of: &str) -> Result<String, String> {
        let value = self.value(of)?;
        value.into_string().map_err(|value| format!("{of} {}: it is not UTF-8", value.display()))
    }

    /// Nothing may follow.
    fn end(&mut self, of: &str) -> Result<(), String> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(format!("{}: not known after {of}", word.display())),
        }
    }

    fn all(self) -> Vec<OsString> {
        self.0.collect()
    }
}

/// What an option has behind it.
fn form(option: &str) -> &'static str {
    match option {
        "--exec" => "a command",
        "--user" | "--set-default-user" => "USER",
        "--cd" | "--move" | "--location" => "DIR",
        "--shell-type" => "standard, login or none",
        "--import" => "NAME DIR FILE",
        "--import-in-place" | "--export" => "NAME FILE",
        "--from-file" => "FILE",
        "--vhd-size" | "--resize" => "a size, such as 64G,",
        "--format" => "tar, tar.gz, tar.xz, tar.zst or vhd",
        "--manage" => "NAME and what of it is to be changed",
        "--set-sparse" => "true or false",
        "--set-version" => "NAME and a version",
        "--set-default-version" | "--version" => "a version",
        _ => "NAME",
    }
}

/// `None` is the help text.
fn action(words: Vec<OsString>) -> Result<Option<Action>, String> {
    let mut rest = Rest(words.into_iter());
    let mut run = Run {
        distribution: None,
        start: true,
        user: None,
        directory: None,
        at_home: false,
        publish: Vec::new(),
        folders: Vec::new(),
        program: Program::LoginShell,
    };
    let mut shell = "standard".to_owned();
    loop {
        let Some(word) = rest.next() else { return Ok(Some(Action::Run(run))) };
        let option = if word.as_bytes().starts_with(b"-") { word.to_str() } else { None };
        match option {
            Some("-d" | "--distribution") => run.distribution = Some(rest.text("--distribution")?),
            Some("-u" | "--user") => run.user = Some(rest.text("--user")?),
            Some("--cd") => {
                run.directory = Some(rest.value("--cd")?).filter(|directory| directory != "~");
                run.at_home = run.directory.is_none();
            }
            Some("--shell-type") => {
                shell = rest.text("--shell-type")?;
                if !matches!(shell.as_str(), "standard" | "login" | "none") {
                    return Err(format!("--shell-type {shell}: expected standard, login or none"));
                }
            }
            Some("-e" | "--exec") => {
                let first = rest.value("--exec")?;
                run.program = Program::Argv(std::iter::once(first).chain(rest.all()).collect());
                return Ok(Some(Action::Run(run)));
            }
            Some("--") => return Ok(Some(Action::Run(with(run, &shell, rest.all())))),
            Some(verb) => return manage::action(verb, rest),
            None => {
                let command = std::iter::once(word).chain(rest.all()).collect();
                return Ok(Some(Action::Run(with(run, &shell, command))));
            }
        }
    }
}

fn with(run: Run, shell: &str, command: Vec<OsString>) -> Run {
    let program = match (command.is_empty(), shell) {
        (true, _) => Program::LoginShell,
        (_, "none") => Program::Argv(command),
        (_, "login") => Program::LoginLine(line(&command)),
        _ => Program::Line(line(&command)),
    };
    Run { program, ..run }
}
