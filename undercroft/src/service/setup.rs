//! Setting a new distribution up: what its makers want run before anybody gets a shell in it.
//!
//! /etc/wsl-distribution.conf says what (`oobe.command`) and who sessions are afterwards (`oobe.defaultUid`). It is a file of the
//! distribution's, read when the first interactive shell is asked for: what it holds, and how it is read, is a stranger's.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
};

use undercroft_config::{LONGEST, PackageConfig, Settings, keys::PACKAGE};
use undercroft_protocol::{
    session::{ExitStatus, StartError, WindowSize},
    write_frame,
};

use super::{error::ServiceError, host::explained, lifecycle::Use, state::Service, wire::Event};
use crate::{
    Distribution, Input, Pipes, Program, Relayed,
    error::{Error, Result, chain},
    guest::spawn,
    store::Setup,
};

/// As root.
const ROOT: &str = "0";

/// Somebody's turn to set a distribution up.
struct Turn<'a> {
    service: &'a Service,
    name: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.service.update(|state| {
            if let Some(entry) = state.entry(self.name) {
                entry.setting_up = false;
            }
        });
    }
}

impl Service {
    /// Sets a distribution up, if that is still to be done and there is something to do. Then the client has been served:
    /// it had the set-up's command as its session, and asks again for what it wanted.
    pub(super) fn set_up(
        &self,
        place: &Use,
        size: WindowSize,
        environment: &[(Vec<u8>, Vec<u8>)],
        mut stream: &UnixStream,
    ) -> Result<bool> {
        let name = place.name();
        let Some(_turn) = self.turn_to_set_up(name)? else { return Ok(false) };
        let distribution = &place.live().distribution;
        let package = self.package(name, distribution);
        let package = package.map_err(|error| explained(&place.live().machine, error))?;
        for warning in &package.warnings {
            let _ = write_frame(&mut stream, &Event::Warning(format!("{name}: {warning}")));
        }
        let PackageConfig { command, default_uid, .. } = PackageConfig::new(&package);
        let Some(command) = command else {
            self.is_set_up(name, default_uid)?;
            return Ok(false);
        };
        let told = Event::SetUp { name: name.into(), command: command.clone() };
        write_frame(&mut stream, &told).map_err(ServiceError::Wire)?;
        let mut program = Program::new(["/bin/sh", "-c", &command]).user(ROOT);
        for (variable, value) in environment {
            program = program.env(variable.clone(), value.clone());
        }
        let session = distribution.exec_terminal(&program, size);
        let session = session.map_err(|error| explained(&place.live().machine, error))?;
        self.attend(session, stream, |status| match status {
            ExitStatus::Code(0) => self.is_set_up(name, default_uid),
            _ => Ok(()),
        })?;
        Ok(true)
    }

    /// `None` if it is set up.
    fn turn_to_set_up<'a>(&'a self, name: &'a str) -> Result<Option<Turn<'a>>> {
        let pending = || -> Result<bool> {
            Ok(self.store.distribution(name)?.is_some_and(|record| record.settings.setup == Setup::Pending))
        };
        if !pending()? {
            return Ok(None);
        }
        let taken = self.update(|state| {
            state.entry(name).is_none_or(|entry| std::mem::replace(&mut entry.setting_up, true))
        });
        if taken {
            return Err(ServiceError::BeingSetUp(name.into()).into());
        }
        let turn = Turn { service: self, name };
        // Whoever had the turn before may just have finished.
        Ok(pending()?.then_some(turn))
    }

    fn is_set_up(&self, name: &str, default_uid: Option<u32>) -> Result<()> {
        self.store.configure(name, |settings| {
            settings.setup = Setup::Done;
            settings.default_uid = default_uid.or(settings.default_uid);
        })?;
        Ok(())
    }

    /// What the distribution's makers say of it.
    fn package(&self, name: &str, distribution: &Distribution) -> Result<Settings> {
        let path = Path::new(PACKAGE.file);
        let text = self.read_inside(distribution, PACKAGE.file).map_err(|error| match error {
            Error::Ended(_) => error,
            error => ServiceError::Package { name: name.into(), reason: chain(&error) }.into(),
        })?;
        Ok(Settings::parse(&PACKAGE, path, &text))
    }

    /// The first [`LONGEST`] bytes of a file in a distribution, by a program of its own; none of what is not there.
    fn read_inside(&self, distribution: &Distribution, path: &str) -> Result<Vec<u8>> {
        let script = format!("if [ -f {path} ]; then cat {path}; fi");
        let program = Program::new(["/bin/sh", "-c", &script]).user(ROOT);
        let session = match distribution.exec(&program, Pipes { stdout: true, stdin: false, stderr: false }) {
            // It cannot have a command for a shell then, either.
            Err(Error::NotStarted(StartError::NotFound(_))) => return Ok(Vec::new()),
            other => other?,
        };
        let (control, limit) = (session.control(), self.limit(10));
        let (done, over) = mpsc::channel::<()>();
        spawn("set-up's file", move || {
            if over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Of a session that has ended nothing is left to abandon.
                let _ = control.abandon();
            }
        })?;
        let mut text = Beginning(Vec::new());
        let status = session.relay(Input::Null, &mut text, io::sink())?;
        drop(done);
        match status {
            ExitStatus::Code(0) => Ok(text.0),
            // It was longer, and was not read on.
            _ if text.0.len() as u64 > LONGEST => Ok(text.0),
            status => Err(Error::System {
                what: "read it",
                source: io::Error::other(crate::error::describe(status)),
            }),
        }
    }
}

/// Takes a little more than [`LONGEST`] bytes.
struct Beginning(Vec<u8>);

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() as u64 > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
