//! The second step of a boot: the machine, the distribution, the command.

use std::{fs::File, io::IsTerminal, path::Path, time::Duration};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use undercroft::{
    Archive, Cause, Error, LaunchOptions, Machine, MachineOptions, NewDisk, Pipes, Program, Root, Signals,
    disk, import::Progress, terminal,
};
use undercroft_harness::lab;

use super::{distribution::Distribution, prepare::Plan};

/// How long distributions get to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Boots, runs the command, powers off; gives the command's status.
pub(crate) fn boot(plan: &Plan) -> anyhow::Result<u8> {
    let signals = Signals::watch()?;
    match with_machine(plan, &signals) {
        Ok(status) => Ok(status),
        Err(error) => match error.downcast_ref::<Error>() {
            // Who interrupted it knows; a shell says it so.
            Some(Error::Ended(ending)) => match ending.cause {
                Cause::Interrupted(signal) => Ok(shell_status(128 + signal)),
                _ => Err(error),
            },
            _ => Err(error),
        },
    }
}

fn with_machine(plan: &Plan, signals: &Signals) -> anyhow::Result<u8> {
    // What a person asked for and cannot be had is said before a machine is made.
    let options = MachineOptions {
        vmm: plan.vmm.clone(),
        config: plan.config.clone(),
        modules_disk: plan.modules_disk.clone(),
        console_log: Some(plan.console_log.clone()),
        patience: plan.patience,
    };
    let machine = Machine::start_with(options, |stopper| signals.to_machine(stopper))?;
    let outcome = in_machine(plan, &machine, signals);
    for warning in machine.warnings() {
        eprintln!("warning: {warning}");
    }
    if plan.timeline {
        eprint!("{}", machine.timeline());
        if lab::inside() {
            // Software emulates some instructions a thousand times slower than others.
            eprintln!(
                "these are the lab's milliseconds: they say nothing of hardware, not even in proportion"
            );
        }
    }
    if machine.end().is_some() {
        return outcome;
    }
    signals.to_machine(machine.stopper());
    let grace = GRACE * plan.patience.min(4);
    let end = machine.power_off(grace);
    for complaint in end.complaints {
        eprintln!("warning: {complaint}");
    }
    if end.forced {
        eprintln!(
            "warning: the machine did not power off in time and was killed; its files are as after a power cut"
        );
    }
    outcome
}

fn in_machine(plan: &Plan, machine: &Machine, signals: &Signals) -> anyhow::Result<u8> {
    let mut chosen = None;
    for (index, distribution) in plan.distributions.iter().enumerate() {
        if !distribution.disk.exists() {
            let (address, _) = import(machine, distribution)?;
            if index == plan.chosen {
                chosen = Some(address);
            } else {
                machine.detach_disk(address)?;
            }
        } else if index == plan.chosen {
            let file = disk::open(&distribution.disk, false)?;
            chosen = Some(machine.attach_disk(&file, false)?);
        }
    }
    let name = &plan.distributions[plan.chosen].name;
    let address = chosen.context("the plan chooses no distribution")?;
    let distribution = machine.launch(&LaunchOptions {
        hostname: hostname(name),
        ..LaunchOptions::new(name, Root::Flat { disk: address })
    })?;
    let program = program(plan);
    let session = if terminal::is_interactive() {
        distribution.exec_terminal(&program, terminal::size())
    } else {
        distribution.exec(&program, Pipes::ALL)
    };
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            let Some(status) = error.shell_status() else { return Err(error.into()) };
            eprintln!("error: {error}");
            return Ok(shell_status(status));
        }
    };
    let status = if terminal::is_interactive() {
        terminal::relay(session, signals)?
    } else {
        terminal::relay_pipes(session, signals)?
    };
    Ok(shell_status(status.shell()))
}

fn program(plan: &Plan) -> Program {
    let mut program = if plan.command.is_empty() {
        Program::login_shell()
    } else {
        Program::new(plan.command.iter().cloned())
    };
    if let Some(user) = &plan.user {
        program = program.user(user.as_str());
    }
    for name in ["TERM", "COLORTERM"] {
        if let Some(value) = std::env::var_os(name).filter(|_| terminal::is_interactive()) {
            program = program.env(name, std::os::unix::ffi::OsStringExt::into_vec(value));
        }
    }
    program
}

/// A name may hold what a host name may not.
fn hostname(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' });
    let hostname: String = letters.take(63).collect();
    let hostname = hostname.trim_matches('-');
    if hostname.is_empty() { "undercroft".into() } else { hostname.into() }
}

fn shell_status(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

fn import(machine: &Machine, distribution: &Distribution) -> anyhow::Result<(undercroft::DiskAddress, File)> {
    let archive = Archive::open(&distribution.archive)?;
    let new = NewDisk::create(&distribution.disk, disk::DEFAULT_SIZE)?;
    let imported = machine.attach_disk(new.file(), false).and_then(|address| {
        let bar = Bar::new(&distribution.name, &distribution.archive);
        let imported = machine.import(address.clone(), archive, |progress| bar.show(progress));
        bar.end();
        imported.map(|imported| (address, imported))
    });
    let (address, imported) = imported.map_err(|error| new.explain(error))?;
    for warning in &imported.warnings {
        eprintln!("warning: {}: {warning}", distribution.name);
    }
    let file = new.keep()?;
    eprintln!(
        "imported {}: {} entries, {} MiB",
        distribution.name,
        imported.entries,
        imported.bytes.div_ceil(1 << 20)
    );
    Ok((address, file))
}

/// Progress on a terminal; otherwise one line, and again every quarter of a minute: nothing is silent for long.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(name: &str, archive: &Path) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("importing {name} from {}", archive.display());
            return Self(None);
        }
        let style = ProgressStyle::with_template("importing {msg} {bar:30} {bytes}/{total_bytes}  {eta}");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(name.to_owned());
        Self(Some(bar))
    }

    fn show(&self, progress: Progress) {
        if let Some(bar) = &self.0 {
            bar.set_length(progress.total.unwrap_or(progress.read));
            bar.set_position(progress.read);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_host_names() {
        assert_eq!(hostname("deb_12.x"), "deb-12-x");
        assert_eq!(hostname("..."), "undercroft");
    }
}
