//! The service's side of the socket: who may connect, one thread a connection.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Seek, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use undercroft_protocol::write_frame;

use super::{
    error::ServiceError,
    greeting::read_request,
    paths::Paths,
    settings::Settings,
    state::Service,
    wire::{Answer, Event, Request},
};
use crate::{
    error::{Error, Result, chain},
    guest::spawn,
};

/// The line that says that clients may connect.
pub(super) const READY: &str = "ready";
/// How long one that systemd started waits for another to leave, which was there before systemd had the socket: longer than
/// that stays when nobody needs it.
const TURN: Duration = Duration::from_secs(15);

/// Serves this user until nobody needs it. Standard output says `ready` or why not, in one line, and is closed then.
pub fn serve(paths: Paths) -> Result<()> {
    let mut told = false;
    let say = |line: &str| {
        let mut stdout = io::stdout();
        writeln!(stdout, "{line}")?;
        stdout.flush()?;
        // Who started it reads to the end.
        let null = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null).map_err(io::Error::from)
    };
    let served = serve_with(paths, || {
        told = true;
        say(READY)
    });
    if let Err(error) = &served
        && !told
    {
        // It may not listen.
        let _ = say(&chain(error));
    }
    served
}

fn serve_with(paths: Paths, ready: impl FnOnce() -> io::Result<()>) -> Result<()> {
    paths.make()?;
    let given = given();
    let patience = if given.is_some() { TURN } else { Duration::ZERO };
    let (_lock, killed) = Lock::take(&paths, patience)?;
    room_for_descriptors();
    let settings = Settings::read(&paths);
    let service = Arc::new(Service::new(paths, settings)?);
    if let Some(pid) = killed {
        service.note(format!(
            "the service (process {pid}) ended without a word, killed most likely, and its virtual machine with it, if it had \
             one: what distributions had not synced is lost, as in a power cut"
        ));
    }
    let (listener, own) = match given {
        Some(listener) => (listener, None),
        None => own(&service.paths.socket())?,
    };
    let failed = |what| move |source| Error::System { what, source };
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(failed("watch for signals"))?;
    let stopped = service.clone();
    spawn("signals", move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("signal {signal}: shutting down");
            stopped.update(|state| state.closing = true);
            for complaint in stopped.stop_machine(false) {
                eprintln!("{complaint}");
            }
            leave(&stopped.paths, own)
        }
    })?;
    let idle = service.clone();
    spawn("idle", move || {
        idle.stop_the_idle();
        leave(&idle.paths, own)
    })?;
    ready().map_err(failed("say that the service is ready"))?;
    let starting = service.clone();
    spawn("start", move || starting.start_those_that_start_by_themselves())?;
    let tidying = service.clone();
    spawn("tidy", move || tidying.tidy())?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let service = service.clone();
                if let Err(error) = spawn("client", move || service.client(&stream)) {
                    busy(&chain(&error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => busy(&error.to_string()),
        }
    }
}

/// Out of descriptors or threads, most likely: those who are connected are served on, and may leave some.
fn busy(why: &str) {
    eprintln!("cannot serve one more connection: {why}");
    std::thread::sleep(Duration::from_millis(100));
}

/// That there is one service. The file has its process id until it has ended in order.
struct Lock(File);

impl Lock {
    /// Takes it, waiting so long for another to leave; gives the process id of a service that had it and did not end in order, too.
    fn take(paths: &Paths, patience: Duration) -> Result<(Self, Option<u32>)> {
        let until = Instant::now() + patience;
        let failed = |source| Error::File { what: "open", path: paths.lock(), source };
        let file = File::options().create(true).truncate(false).read(true).write(true).open(paths.lock());
        let file = file.map_err(failed)?;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return Err(ServiceError::Second.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let killed = io::read_to_string((&file).take(20)).ok().and_then(|text| text.trim().parse().ok());
        // For who must name it.
        let written = file.set_len(0).and_then(|()| (&file).rewind());
        let _ = written.and_then(|()| writeln!(&file, "{}", std::process::id()));
        Ok((Self(file), killed))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

/// Takes all the descriptors that it may have, for itself and the VMM, which inherits it: a session is three in each.
fn room_for_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, most) {
        eprintln!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// Which file it is: others may have put theirs in its place.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::symlink_metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// The socket that systemd opened (sd_listen_fds(3)), if it started us.
fn given() -> Option<UnixListener> {
    listenfd::ListenFd::from_env().take_unix_listener(0).ok().flatten()
}

/// A socket of our own, and which file it is.
fn own(path: &Path) -> Result<(UnixListener, Option<Identity>)> {
    // A killed service left it. Nobody else serves: the lock is ours.
    let _ = fs::remove_file(path);
    let failed = |what| move |source| Error::File { what, path: path.into(), source };
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    Ok((listener, identity(path)))
}

fn leave(paths: &Paths, own: Option<Identity>) -> ! {
    let path = paths.socket();
    if own.is_some() && own == identity(&path) {
        // Its file is of no use to anybody.
        let _ = fs::remove_file(path);
    }
    // It ends in order: the lock is held until the process is gone.
    let _ = File::options().write(true).truncate(true).open(paths.lock());
    eprintln!("nobody needs the service any more");
    std::process::exit(0)
}

impl Service {
    fn client(self: &Arc<Self>, mut stream: &UnixStream) {
        self.refresh();
        let closing = self.update(|state| {
            state.clients += 1;
            state.closing
        });
        let mut tells = false;
        let outcome =
            if closing { Err(ServiceError::ShuttingDown.into()) } else { self.answer(stream, &mut tells) };
        if tells {
            self.tell_notes(stream);
        }
        let last = match outcome {
            Ok(Some(answer)) => Some(Event::Done(answer)),
            Ok(None) => None,
            Err(error) => Some(Event::Failed { message: chain(&error), status: error.shell_status() }),
        };
        if let Some(event) = last {
            // It may have gone.
            let _ = write_frame(&mut stream, &event).map(|()| stream.flush());
        }
        self.update(|state| {
            state.clients -= 1;
            state.quiet = Instant::now();
        });
    }

    /// Carries out what a client asks; `None` if it was told all already. Whether it is one that shows warnings goes to `tells`.
    fn answer(self: &Arc<Self>, stream: &UnixStream, tells: &mut bool) -> Result<Option<Answer>> {
        let own = rustix::process::geteuid().as_raw();
        let peer = rustix::net::sockopt::socket_peercred(stream.as_fd());
        let peer = peer.map_err(|error| Error::System { what: "ask who connected", source: error.into() })?;
        if peer.uid.as_raw() != own {
            return Err(ServiceError::Stranger(peer.uid.as_raw(), own).into());
        }
        let request = read_request(stream).map_err(ServiceError::Wire)?;
        // Who runs something is told before that has the terminal.
        *tells = !matches!(request, Request::Run(_) | Request::List | Request::Status | Request::Ports);
        Ok(Some(match request {
            Request::Run(run) => return self.run(run, stream).map(|()| None),
            Request::List => Answer::List(self.list()?),
            Request::Status => self.status()?,
            Request::Ports => self.ports(),
            Request::Import(import) => self.import(&import, stream)?,
            Request::Catalogue(list) => self.catalogue(list, stream)?,
            Request::Terminate { name, force } => {
                const REASON: &str = "somebody asked for it";
                let name = self.name(Some(&name))?;
                Answer::Text(match force {
                    false => self.stop_distribution(&name, REASON)?,
                    true => self.kill_distribution(&name, REASON)?,
                })
            }
            Request::Shutdown { force } => Answer::Text(self.stop_machine(force)),
            Request::Unregister(name) => self.unregister(&name)?,
            Request::SetDefault(name) => {
                self.store.set_default(&name)?;
                Answer::Nothing
            }
            Request::Export(export) => self.export(&export, stream)?,
            Request::Clone { name, new_name } => self.clone_distribution(&name, &new_name, stream)?,
            Request::Rename { name, new_name } => self.rename(&name, &new_name)?,
            Request::Move { name, directory } => self.relocate(&name, directory.as_deref(), stream)?,
            Request::Resize { name, size } => self.resize(&name, size, stream)?,
            Request::Adopt { name, image } => self.adopt(&name, &image)?,
            Request::Configure { name, default_uid, keep_alive } => {
                self.configure(&name, default_uid, keep_alive)?
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_without_a_word_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        paths.make().unwrap();
        let (lock, killed) = Lock::take(&paths, Duration::from_secs(2)).unwrap();
        assert_eq!(killed, None);
        assert!(Lock::take(&paths, Duration::from_secs(2)).is_err(), "there is one");
        drop(lock);
        assert_eq!(Lock::take(&paths, Duration::from_secs(2)).unwrap().1, None, "it ended in order");
        fs::write(paths.lock(), "1234567\n").unwrap();
        assert_eq!(Lock::take(&paths, Duration::from_secs(2)).unwrap().1, Some(1_234_567));
        fs::write(paths.lock(), "not a number").unwrap();
        assert_eq!(Lock::take(&paths, Duration::from_secs(2)).unwrap().1, None);
    }
}
