//! Uses the product as a person does, in the ruler's machine, each part between two markers:
//!
//! | span | what is in it |
//! | --- | --- |
//! | `product-start` | `undercroft run` of a program in a distribution that is stopped, in a machine that runs |
//! | `product-exec` | the same in a distribution that runs |
//!
//! From the client's being executed to its end: with its service, its machine and the guest.

use std::{
    ffi::OsStr,
    fs,
    process::{Command, ExitCode, Stdio},
};

use undercroft_ruler_scenario::{
    PROGRAM, Result,
    product::{ARCHIVE, CONFIGURATION, HOME, UNDERCROFT},
    span,
};

/// How often each is done; the first time is not counted.
const TIMES: u32 = 4;

fn main() -> ExitCode {
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("product: {error}");
            for log in ["service.log", "console.log"] {
                let text = fs::read_to_string(format!("{HOME}/.local/state/undercroft/{log}"));
                println!("{log}: {}", text.unwrap_or_default());
            }
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<()> {
    let folder = format!("{HOME}/.config/undercroft");
    fs::create_dir_all(&folder)?;
    fs::write(format!("{folder}/.wslconfig"), CONFIGURATION)?;
    undercroft(["import", "measured", ARCHIVE])?;
    undercroft(["run", "measured", PROGRAM])?;
    for _ in 0..TIMES {
        undercroft(["terminate", "measured"])?;
        span("product-start", || undercroft(["run", "measured", PROGRAM]))?;
    }
    for _ in 0..TIMES {
        span("product-exec", || undercroft(["run", "measured", PROGRAM]))?;
    }
    undercroft(["shutdown"])
}

fn undercroft<A: AsRef<OsStr>>(words: impl IntoIterator<Item = A>) -> Result<()> {
    let mut command = Command::new(UNDERCROFT);
    command.args(words).env_clear().env("HOME", HOME).env("PATH", "/bin:/sbin").stdin(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
