//! One process for one client: started, its streams handed over, steered, its end told.

use std::{
    ffi::OsStr,
    io,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::UnixStream,
        },
    },
    path::Path,
    sync::Arc,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_config::Mount;
use undercroft_protocol::{
    network::Endpoint,
    read_frame,
    session::{ExitStatus, Program as What},
    write_frame,
};

use super::{
    ServiceError,
    host::explained,
    state::Service,
    wire::{Event, Run, send_descriptors},
};
use crate::{
    Pipes, Program, Streams,
    error::{Error, Result},
    folders::inside,
    guest::spawn,
    session::{Control, Session, Steer, Steering},
};

impl Service {
    /// Serves a client until its process has ended. That the client is gone ends the session.
    pub(super) fn run(self: &Arc<Self>, run: Run, stream: &UnixStream) -> Result<()> {
        let name = self.name(run.distribution.as_deref())?;
        let folders: Vec<_> = run.folders.into_iter().map(Mount::from).collect();
        self.share(&name, &folders)?;
        let place = self.using(&name, run.start)?;
        self.bring(&place, &folders)?;
        // It may have been a while: what nobody waits for any more is not begun.
        if is_gone(stream) {
            return Err(Error::System { what: "go on", source: io::ErrorKind::Interrupted.into() });
        }
        if let (Some(size), What::LoginShell) = (run.terminal, &run.program)
            && self.set_up(&place, size, &run.environment, stream)?
        {
            return Ok(());
        }
        let distribution = &place.live().distribution;
        let publish = |at: &Endpoint| place.live().machine.publish(distribution, *at);
        // Gone when this returns.
        let _published = run.publish.iter().map(publish).collect::<Result<Vec<_>>>()?;
        let mut program = Program::what(run.program);
        for (variable, value) in run.environment {
            program = program.env(variable, value);
        }
        // Of somebody who is not named it is known that the folder's files are his.
        let here = run.here.filter(|_| run.user.is_none());
        let shared = || inside(&place.live().machine, &name, Path::new(OsStr::from_bytes(&here?)));
        if let Some(directory) = run.directory.or_else(|| Some(shared()?.into_os_string().into_vec())) {
            program = program.directory(directory);
        }
        // Its own file has the first word: its init goes by that if it is told nothing.
        let recorded = || match distribution.default_user() {
            Some(_) => None,
            None => self.store.distribution(&name).ok().flatten()?.settings.default_uid,
        };
        if let Some(user) = run.user.or_else(|| recorded().map(|uid| uid.to_string())) {
            program = program.user(user);
        }
        self.tell_notes(stream);
        let session = match run.terminal {
            Some(size) => distribution.exec_terminal(&program, size),
            None => distribution.exec(&program, Pipes::ALL),
        };
        let session = session.map_err(|error| explained(&place.live().machine, error))?;
        self.attend(session, stream, |_| Ok(()))
    }

    /// Hands a session's streams to a client, passes on what it says, and tells the end, before which `ended` is called.
    pub(super) fn attend(
        &self,
        mut session: Session,
        mut stream: &UnixStream,
        ended: impl FnOnce(ExitStatus) -> Result<()>,
    ) -> Result<()> {
        let streams = session.take_streams();
        let handed: Vec<_> = match &streams {
            Some(Streams::Terminal(stream)) => vec![stream.as_fd()],
            Some(Streams::Pipes { stdin, stdout, stderr }) => {
                [stdin, stdout, stderr].into_iter().flatten().map(AsFd::as_fd).collect()
            }
            None => Vec::new(),
        };
        let started = Event::Started { pid: session.pid(), streams: handed.len() as u8 };
        write_frame(&mut stream, &started).map_err(ServiceError::Wire)?;
        send_descriptors(stream, &handed)?;
        // The client's alone from now on: its end is the stream's end.
        drop(handed);
        drop(streams);
        let failed = |source| Error::System { what: "listen to a client", source };
        let (reader, control) = (stream.try_clone().map_err(failed)?, session.control());
        let listener = spawn("session", move || listen(reader, &control))?;
        let status = session.wait();
        let told = status.and_then(|status| {
            ended(status)?;
            // A client that is gone does not mind.
            let _ = write_frame(&mut stream, &Event::Exited(status));
            Ok(())
        });
        // Ends the listener, too.
        let _ = stream.shutdown(Shutdown::Read);
        let _ = listener.join();
        told
    }
}

/// Whether the client has gone; until its process runs it says nothing.
fn is_gone(stream: &UnixStream) -> bool {
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut descriptors, PollTimeout::ZERO).is_ok() && descriptors[0].any().unwrap_or(true)
}

/// Passes on what the client says; its silence for good is the session's end.
fn listen(mut stream: UnixStream, control: &Control) {
    while let Ok(steer) = read_frame::<Steer>(&mut stream) {
        if control.steer(steer).is_err() {
            return;
        }
    }
    // Of a session that has ended nothing is left to abandon.
    let _ = control.abandon();
}
