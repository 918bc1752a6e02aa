//! The command line: two grammars, one set of actions.
//!
//! | module | holds |
//! | --- | --- |
//! | [`action`] | what can be asked, whichever way |
//! | [`ours`] | `undercroft list -v`: verbs |
//! | [`wsl`] | `undercroft --list --verbose`, `-d NAME -e CMD`: what WSL's users have in their fingers |
//! | [`perform`] | doing it |
//! | [`import`] | making a distribution, and a shell in it |
//! | [`run`] | a process in a distribution, and this terminal |
//! | [`show`] | tables and JSON |
//! | [`bar`] | progress |
//! | [`console`] | the machine's console, while it boots |
//! | [`completions`] | what shells complete |
//! | [`config`] | every key and where its value comes from |
//! | [`doctor`] | what this host has and lacks |
//! | [`man`] | the manual pages |

mod action;
mod bar;
mod completions;
mod config;
mod console;
mod doctor;
#[cfg(test)]
mod hints;
mod import;
mod man;
mod ours;
mod perform;
mod run;
mod show;
mod wsl;

use std::{ffi::OsString, path::Path, process::ExitCode};

use action::Action;

/// The status of our own failures, told apart from the command's: what docker and env(1) use.
const FAILED: u8 = 125;
/// The same as WSL says it: minus one.
const FAILED_AS_WSL: u8 = 255;

/// What the words of a command line mean.
enum Meaning {
    /// Something to do.
    Do(Action),
    /// Something that was printed already (a help text, a mistake), and the status.
    Said(u8),
}

pub(crate) fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let name = if words.is_empty() { OsString::new() } else { words.remove(0) };
    let called = Path::new(&name).file_name().unwrap_or_default();
    let as_wsl = called == "wsl" || called == "wsl.exe";
    let meaning =
        if as_wsl || wsl::looks_like(&words) { wsl::parse(words, as_wsl) } else { ours::parse(words) };
    let action = match meaning {
        Meaning::Do(action) => action,
        Meaning::Said(status) => return ExitCode::from(status),
    };
    match perform::perform(action) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {}", undercroft::error::chain(error.as_ref()));
            let shell = error.downcast_ref::<undercroft::Error>().and_then(undercroft::Error::shell_status);
            let own = if as_wsl { FAILED_AS_WSL } else { FAILED };
            ExitCode::from(shell.and_then(|status| u8::try_from(status).ok()).unwrap_or(own))
        }
    }
}
