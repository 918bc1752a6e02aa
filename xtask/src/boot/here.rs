//! The second step of a boot: the machine, the distribution, the command.

use std::time::Duration;

use anyhow::bail;
use undercroft::{
    Cause, Error, KnownFile, LaunchOptions, Machine, MachineOptions, Pipes, Program, Signals, Store, disk,
    store::{Held, StoreError},
    terminal,
};
use undercroft_harness::lab;

use super::{bar::Bar, distribution::Distribution, prepare::Plan};

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
    let store = Store::open(&plan.store)?;
    for cleared in store.cleared() {
        eprintln!("note: {cleared}");
    }
    let chosen = &plan.distributions[plan.chosen];
    let held = match store.distribution(&chosen.stored)? {
        Some(_) => Some(hold(&store, chosen)?),
        None => None,
    };
    let options = MachineOptions {
        vmm: plan.vmm.clone(),
        config: plan.config.clone(),
        modules_disk: plan.modules_disk.clone(),
        console_log: Some(plan.console_log.clone()),
        network: Default::default(),
        folders: Default::default(),
        patience: plan.patience,
    };
    let machine = Machine::start_with(options, |stopper| signals.to_machine(stopper))?;
    let outcome = in_machine(plan, &store, held, &machine, signals);
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

fn in_machine(
    plan: &Plan,
    store: &Store,
    held: Option<Held>,
    machine: &Machine,
    signals: &Signals,
) -> anyhow::Result<u8> {
    for distribution in &plan.distributions {
        if store.distribution(&distribution.stored)?.is_none() {
            make(plan, store, machine, distribution)?;
        }
    }
    let chosen = &plan.distributions[plan.chosen];
    let held = match held {
        Some(held) => held,
        None => hold(store, chosen)?,
    };
    // Its disk is this process's own until the machine has ended.
    let attached = machine.attach(held)?;
    let distribution = machine.launch(&LaunchOptions::new(&chosen.name, attached.root().clone()))?;
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

fn shell_status(status: i32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// Takes a distribution of the store for this boot alone.
fn hold(store: &Store, distribution: &Distribution) -> anyhow::Result<Held> {
    match store.hold(&distribution.stored) {
        Err(Error::Store(StoreError::InUse(_))) => bail!(
            "{} is in use by another `cargo xtask boot`: end that one, or give the archive another name (--distro NAME={})",
            distribution.name,
            distribution.archive.display()
        ),
        other => Ok(other?),
    }
}

/// Makes a distribution in the store; what has to be unpacked for it is unpacked in the machine.
fn make(plan: &Plan, store: &Store, machine: &Machine, distribution: &Distribution) -> anyhow::Result<()> {
    let Distribution { name, stored, archive, digest } = distribution;
    let file = KnownFile::told(archive, *digest)?;
    let mut bar = Bar::new("importing", name, archive);
    let mut unpacker = machine.unpacker(|progress| bar.show(progress.read, progress.total));
    let made = if plan.flat {
        let made = store.create_flat(stored, &file, disk::DEFAULT_SIZE, &mut unpacker);
        made.map(|(_, imported)| Some(imported))
    } else {
        store.import_base(&file, &mut unpacker).and_then(|(base, imported)| {
            store.create(stored, &base, disk::DEFAULT_SIZE)?;
            Ok(imported)
        })
    };
    drop(unpacker);
    bar.end();
    let imported = match made {
        // Another boot was quicker.
        Err(Error::Store(StoreError::Taken(_))) => None,
        other => other?,
    };
    let Some(imported) = imported else { return Ok(()) };
    for warning in &imported.warnings {
        eprintln!("warning: {name}: {warning}");
    }
    eprintln!("imported {name}: {} entries, {} MiB", imported.entries, imported.bytes.div_ceil(1 << 20));
    Ok(())
}
