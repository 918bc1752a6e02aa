//! What the first thread does while the vCPUs run: it waits for the end, for signals, for requests and for typed input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use crate::control::{Action, Message, Request};
use crate::end::End;
use crate::machine::Machine;
use crate::virtio::disk::Disk;

/// Standard input as the guest's terminal; it is as it was before when this is dropped.
#[derive(Debug)]
pub(crate) struct Input {
    before: Option<Termios>,
}

impl Input {
    /// Puts the terminal, if standard input is one, into raw mode.
    pub(crate) fn new() -> io::Result<Self> {
        let stdin = io::stdin();
        let Ok(before) = termios::tcgetattr(&stdin) else { return Ok(Self { before: None }) };
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Who has something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    End,
    Signals,
    Control,
    Input,
}

/// While the guest does not read its input, it is looked at again so often.
const INPUT_RETRY_MS: u16 = 20;

/// Works until the machine has ended.
pub(crate) fn until_end(machine: &mut Machine) {
    while !machine.ending.ended() {
        match wait(machine) {
            Ok(ready) => ready.into_iter().for_each(|source| serve(machine, source)),
            Err(nix::Error::EINTR) => {}
            Err(errno) => {
                eprintln!("undercroft-vmm: poll: {errno}");
                machine.ending.set(End::Killed);
            }
        }
    }
}

fn wait(machine: &Machine) -> nix::Result<Vec<Source>> {
    let stdin = io::stdin();
    let end = machine.ending.event();
    let mut fds: Vec<(Source, BorrowedFd<'_>)> = vec![(Source::End, crate::kvm::borrow(end))];
    if let Some(signals) = &machine.signals {
        fds.push((Source::Signals, signals.as_fd()));
    }
    if let Some(control) = &machine.control {
        fds.push((Source::Control, control.socket().as_fd()));
    }
    let mut timeout = PollTimeout::NONE;
    if machine.input.is_some() {
        if machine.serial.input_room() > 0 {
            fds.push((Source::Input, stdin.as_fd()));
        } else {
            timeout = PollTimeout::from(INPUT_RETRY_MS);
        }
    }
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    poll(&mut polled, timeout)?;
    Ok(fds
        .iter()
        .zip(&polled)
        .filter(|(_, fd)| fd.any() == Some(true))
        .map(|((source, _), _)| *source)
        .collect())
}

fn serve(machine: &mut Machine, source: Source) {
    match source {
        Source::End => {}
        Source::Signals => machine.ending.set(End::Killed),
        Source::Input => type_in(machine),
        Source::Control => {
            let Some(mut control) = machine.control.take() else { return };
            // Whoever has closed the socket has no more to say, and the machine runs on.
            let Ok(requests) = control.receive() else { return };
            for request in requests {
                let descriptor = match &request {
                    Ok(Request { action: Action::Attach { .. } | Action::Link, .. }) => control.descriptor(),
                    _ => None,
                };
                let reply = match request {
                    Ok(Request { id, action }) => match act(machine, action, descriptor) {
                        Ok(ok) => Message::Done { id, ok },
                        Err(error) => Message::Failed { id, error },
                    },
                    Err(failed) => failed,
                };
                if control.send(&reply).is_err() {
                    return;
                }
            }
            machine.control = Some(control);
        }
    }
}

fn type_in(machine: &mut Machine) {
    let mut bytes = [0; 64];
    let room = machine.serial.input_room().min(bytes.len());
    match nix::unistd::read(io::stdin(), &mut bytes[..room]) {
        Ok(count) if count > 0 => machine.serial.input(&bytes[..count]),
        Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
        // Its end; the machine runs on without.
        _ => machine.input = None,
    }
}

fn act(
    machine: &mut Machine,
    action: Action,
    descriptor: Option<std::os::fd::OwnedFd>,
) -> Result<serde_json::Value, String> {
    const NO_SCSI: &str = "the machine has no SCSI controller; start it with scsi = true";
    match action {
        Action::Stop => {
            machine.ending.set(End::Killed);
            Ok(serde_json::Value::Null)
        }
        Action::Statistics => serde_json::to_value(machine.statistics()).map_err(|error| error.to_string()),
        Action::Link => {
            const NO_NETWORK: &str = "the machine has no network card; start it with one";
            let descriptor = descriptor.ok_or("link needs the link's file descriptor (SCM_RIGHTS)")?;
            machine.slots.net.as_ref().ok_or(NO_NETWORK)?.connect(descriptor).map_err(words)?;
            Ok(serde_json::Value::Null)
        }
        Action::Balloon { mib } => {
            let balloon =
                machine.slots.balloon.as_ref().ok_or("the machine has no balloon; start it with one")?;
            let mib = u32::try_from(mib).map_err(|_| format!("{mib} MiB are more than a balloon can be"))?;
            balloon.set_target(mib);
            Ok(serde_json::Value::Null)
        }
        Action::Memory { mib } => {
            machine.set_memory(mib)?;
            Ok(serde_json::Value::Null)
        }
        Action::Attach { lun, read_only } => {
            let descriptor = descriptor.ok_or("attach needs the disk's file descriptor (SCM_RIGHTS)")?;
            let scsi = machine.slots.scsi.as_ref().ok_or(NO_SCSI)?;
            let name = format!("lun {lun}");
            let disk = Disk::from_fd(descriptor, Path::new(&name), read_only, &name).map_err(words)?;
            let disk = if machine.page_cache { disk } else { disk.past_page_cache() };
            scsi.attach(number(lun)?, disk).map_err(words)?;
            Ok(serde_json::Value::Null)
        }
        Action::Detach { lun } => {
            let scsi = machine.slots.scsi.as_ref().ok_or(NO_SCSI)?;
            scsi.detach(number(lun)?).map_err(words)?;
            Ok(serde_json::Value::Null)
        }
    }
}

fn number(lun: u16) -> Result<u8, String> {
    u8::try_from(lun).map_err(|_| format!("lun = {lun}: expected 0 to 255"))
}

/// An error and its causes in a reply.
fn words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
