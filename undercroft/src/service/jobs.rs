//! What takes long, or takes something away: import, removal.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;
use undercroft_config::{PackageConfig, Settings, keys::PACKAGE};
use undercroft_protocol::{command::Imported, write_frame};

use super::{
    error::ServiceError,
    host::explained,
    state::Service,
    wire::{Answer, Doing, Event, Import, Offer, Origin, receive_descriptors},
};
use crate::{
    Archive,
    error::{Error, Result, chain},
    guest::spawn,
    source::{Cache, Cancel, Content, Lists, Obtained, Order, Source},
    store::{StoreError, check_name},
};

/// How often a client hears how far something is.
const OFTEN: Duration = Duration::from_millis(100);
/// What a stream's copy is called while it is imported, before what makes it its own.
const SPOOL: &str = "import-";
/// How long what was downloaded, and not imported, waits for who begins anew.
const DOWNLOADED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Tells a client how far something is.
pub(super) struct Reporter<'a> {
    stream: &'a UnixStream,
    last: Option<Instant>,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(stream: &'a UnixStream) -> Self {
        Self { stream, last: None }
    }

    pub(super) fn progress(&mut self, what: &str, done: u64, total: Option<u64>) {
        if self.last.is_none_or(|last| last.elapsed() >= OFTEN) {
            self.last = Some(Instant::now());
            self.tell(&Event::Progress { what: what.into(), done, total });
        }
    }

    pub(super) fn warn(&mut self, line: &str) {
        self.tell(&Event::Warning(line.into()));
    }

    fn tell(&mut self, event: &Event) {
        // Who has gone does not hear it; what was begun is finished all the same.
        let _ = write_frame(&mut self.stream, event);
    }
}

/// A distribution that does something which excludes everything else, until this goes.
pub(super) struct Turn<'a> {
    service: &'a Service,
    name: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.service.update(|state| state.end(&self.name));
    }
}

/// Does something when the client goes, until this is dropped.
pub(super) struct Gone<'a> {
    stream: &'a UnixStream,
    over: Arc<AtomicBool>,
}

impl<'a> Gone<'a> {
    pub(super) fn watch(stream: &'a UnixStream, gone: impl FnOnce() + Send + 'static) -> Result<Self> {
        let failed = |source| Error::System { what: "listen to a client", source };
        let mut reader = stream.try_clone().map_err(failed)?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        spawn("client's end", move || {
            // A client says nothing more: what comes is its end.
            let _ = reader.read(&mut [0]);
            if !seen.load(Ordering::Acquire) {
                gone();
            }
        })?;
        Ok(Self { stream, over })
    }
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Nothing more is read from it; the thread ends.
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}

impl Service {
    /// Takes a distribution's name for something that excludes everything else.
    pub(super) fn turn(&self, name: &str, doing: Doing) -> Result<Turn<'_>> {
        let begun = self.update(|state| state.begin(name, doing));
        begun.map_err(|doing| ServiceError::Busy { name: name.into(), doing })?;
        Ok(Turn { service: self, name: name.into() })
    }

    /// Makes a distribution from whatever it is to come from. A client that goes stops what is downloaded; what is being
    /// unpacked is finished.
    pub(super) fn import(self: &Arc<Self>, import: &Import, stream: &UnixStream) -> Result<Answer> {
        let mut reporter = Reporter::new(stream);
        let free = |name: &str| match self.store.distribution(name)? {
            Some(_) => Err(Error::from(StoreError::Taken(name.into()))),
            None => self.turn(name, Doing::Installing),
        };
        // Said before anything is downloaded.
        let turn = import.name.as_deref().map(free).transpose()?;
        let (source, spool) = match &import.origin {
            Origin::Path(path) => (Source::Path(path.clone()), None),
            Origin::Text(text, folder) => (Source::parse(text, folder)?, None),
            Origin::Stream => {
                let spool = self.spool(stream, &mut reporter)?;
                (Source::Path(spool.path().to_owned()), Some(spool))
            }
            Origin::Image(image) => {
                let name = import.name.as_deref().ok_or(ServiceError::NoName)?;
                return self.import_image(name, import, image, stream, &mut reporter);
            }
        };
        let obtained = self.obtain(&source, import.list.clone(), stream, &mut reporter)?;
        // It goes with this function, and no sooner.
        let _spool = spool;
        let name = match &import.name {
            Some(name) => name.clone(),
            None => {
                let spooled = matches!(import.origin, Origin::Stream);
                let named = obtained.name.clone().filter(|_| !spooled);
                self.own_name(&source, &obtained, named, &mut reporter)?.ok_or(ServiceError::NoName)?
            }
        };
        let _turn = match turn {
            Some(turn) => turn,
            None => free(&name)?,
        };
        for warning in &obtained.warnings {
            reporter.warn(warning);
        }
        let place = self.place(import)?;
        let imported = self.make(&name, import, &obtained, &mut reporter)?;
        obtained.discard();
        self.put(&name, place.as_deref(), &mut reporter);
        for warning in imported.iter().flat_map(|imported| &imported.warnings) {
            reporter.warn(warning);
        }
        let line = match imported {
            Some(of) => {
                format!("imported {name}: {} entries, {} MiB", of.entries, of.bytes.div_ceil(1 << 20))
            }
            None => format!("imported {name}: nothing to unpack, another distribution has the same base"),
        };
        Ok(Answer::Imported { name, line })
    }

    /// Makes a distribution with a copy of an ext4 image. A client that goes ends it.
    fn import_image(
        self: &Arc<Self>,
        name: &str,
        import: &Import,
        image: &Path,
        stream: &UnixStream,
        reporter: &mut Reporter<'_>,
    ) -> Result<Answer> {
        let place = self.place(import)?;
        self.telling(stream, &format!("importing {name}"), |tell| {
            self.store.create_from_image(name, image, tell)
        })?;
        self.put(name, place.as_deref(), reporter);
        Ok(Answer::Imported {
            name: name.into(),
            line: format!("imported {name}: a copy of {}", image.display()),
        })
    }

    /// The directory that a new distribution's disk is to be in, made before anything takes long; `None` is the store.
    fn place(&self, import: &Import) -> Result<Option<PathBuf>> {
        let place =
            import.location.clone().or_else(|| self.settings().host.distribution_install_path.clone());
        if let Some(place) = &place {
            let made = fs::create_dir_all(place);
            made.map_err(|source| Error::File { what: "create", path: place.clone(), source })?;
        }
        Ok(place)
    }

    /// Puts a new distribution's disk where it is to be. One that cannot be there is a distribution all the same.
    fn put(&self, name: &str, place: Option<&Path>, reporter: &mut Reporter<'_>) {
        let Some(place) = place else { return };
        let what = format!("moving the disk of {name} to {}", place.display());
        let tell = &mut |done, total| {
            reporter.progress(&what, done, Some(total));
            Ok(())
        };
        if let Err(error) = self.store.relocate(name, Some(place), tell) {
            reporter.warn(&format!(
                "the disk of {name} stays in the store ({}): `undercroft move {name} DIRECTORY` puts it elsewhere",
                chain(&error)
            ));
        }
    }

    /// What a distribution is called that nobody gave a name: a list's name for it, what its makers say, its file's name.
    fn own_name(
        &self,
        source: &Source,
        obtained: &Obtained,
        named: Option<String>,
        reporter: &mut Reporter<'_>,
    ) -> Result<Option<String>> {
        let file = match (source, &obtained.content) {
            (Source::Name(_), _) => return Ok(named),
            (_, Content::File(file)) => file.path(),
            // Its content is here already, and was not looked at.
            (Source::Path(path), Content::Held(_)) if path.is_file() => path,
            (_, Content::Held(_)) => return Ok(named),
        };
        let path = Path::new(PACKAGE.file);
        let text = Archive::open(file)?.file(PACKAGE.file.trim_start_matches('/'))?.unwrap_or_default();
        let package = PackageConfig::new(&Settings::parse(&PACKAGE, path, &text));
        let Some(name) = package.default_name else { return Ok(named) };
        match check_name(&name) {
            Ok(()) => Ok(Some(name)),
            Err(error) => {
                reporter.warn(&format!("{} has a name for it that cannot be used: {error}", path.display()));
                Ok(named)
            }
        }
    }

    /// Brings an archive here.
    fn obtain(
        &self,
        source: &Source,
        list: Option<String>,
        stream: &UnixStream,
        reporter: &mut Reporter<'_>,
    ) -> Result<Obtained> {
        let cache = Cache::open(&self.paths.cache.join("downloads"))?;
        let have = |digest: &_| self.store.base(digest).is_ok_and(|base| base.is_some());
        let order = Order {
            lists: Lists::new(list, Vec::new()),
            memory: Some(self.store.digests()),
            have: &have,
            ..Order::new(&cache)
        };
        let cancel = Cancel::new();
        let stopped = cancel.clone();
        let _gone = Gone::watch(stream, move || stopped.cancel())?;
        source.obtain(&order, &cancel, &mut |progress| {
            reporter.progress(
                &format!("{} {}", progress.phase, progress.what),
                progress.done,
                progress.total,
            );
        })
    }

    /// Makes a distribution of an archive that is here; tells what was unpacked, if it was not here already.
    fn make(
        self: &Arc<Self>,
        name: &str,
        import: &Import,
        obtained: &Obtained,
        reporter: &mut Reporter<'_>,
    ) -> Result<Option<Imported>> {
        let size = import.size.unwrap_or(self.settings().host.default_disk_size);
        let flat = import.flat || self.settings().of(name).flat_root;
        let file = match &obtained.content {
            Content::Held(digest) => match self.store.base(digest)? {
                Some(base) => return self.store.create(name, &base, size).map(|_| None),
                // Its last distribution went meanwhile.
                None => return Err(ServiceError::BaseGone.into()),
            },
            Content::File(file) => file,
        };
        // A file that is no archive is told before a machine is started for it.
        Archive::open(file.path())?;
        let machine = self.machine()?;
        let what = format!("importing {name}");
        let mut unpacker =
            machine.unpacker(|progress| reporter.progress(&what, progress.read, progress.total));
        let made = if flat {
            self.store.create_flat(name, file, size, &mut unpacker).map(|(_, imported)| Some(imported))
        } else {
            self.store.import_base(file, &mut unpacker).and_then(|(base, imported)| {
                self.store.create(name, &base, size)?;
                Ok(imported)
            })
        };
        drop(unpacker);
        made.map_err(|error| explained(&machine, error))
    }

    /// What can be installed by name.
    pub(super) fn catalogue(&self, list: Option<String>, stream: &UnixStream) -> Result<Answer> {
        let mut reporter = Reporter::new(stream);
        let cache = Cache::open(&self.paths.cache.join("downloads"))?;
        let order = Order { lists: Lists::new(list, Vec::new()), ..Order::new(&cache) };
        let cancel = Cancel::new();
        let stopped = cancel.clone();
        let _gone = Gone::watch(stream, move || stopped.cancel())?;
        let catalogue = order.catalogue(&cancel, &mut |progress| {
            reporter.progress(
                &format!("{} {}", progress.phase, progress.what),
                progress.done,
                progress.total,
            );
        })?;
        // A list's default may be a kind, of which one is meant.
        let default = catalogue.default_name().and_then(|name| catalogue.find(name).ok());
        let offers = catalogue.list(order.architecture).into_iter().map(|entry| Offer {
            name: entry.name.clone(),
            friendly_name: entry.friendly_name.clone(),
            default: default.is_some_and(|(meant, _)| meant.name.eq_ignore_ascii_case(&entry.name)),
        });
        Ok(Answer::Catalogue(offers.collect()))
    }

    /// Copies an archive that comes as a stream to a file: it is read twice.
    fn spool(&self, stream: &UnixStream, reporter: &mut Reporter<'_>) -> Result<NamedTempFile> {
        let folder = &self.paths.cache;
        let failed = |what| move |source| Error::File { what, path: folder.clone(), source };
        let mut spool = new_spool(folder).map_err(failed("make a file in"))?;
        let from = receive_descriptors(stream, 1)?.pop().map(File::from);
        let Some(mut from) = from else { return Ok(spool) };
        let (mut buffer, mut done) = (vec![0; 1 << 20], 0);
        loop {
            // Whoever writes may do so for ever, or not at all.
            wait_for_bytes(&from, stream)?;
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::System { what: "read the archive", source }),
            };
            let written = spool.write_all(&buffer[..n]).map_err(failed("write a copy of the archive in"));
            written.map_err(|error| crate::disk::explain(folder, error))?;
            done += n as u64;
            reporter.progress("reading the archive", done, None);
        }
        Ok(spool)
    }

    /// Removes from the cache what killed services left, and what was downloaded and nobody came back for.
    pub(super) fn tidy(&self) {
        remove_spools(&self.paths.cache);
        let tidied =
            Cache::open(&self.paths.cache.join("downloads")).and_then(|cache| cache.tidy(DOWNLOADED));
        match tidied {
            Ok(0) => {}
            Ok(freed) => eprintln!("removed {} MiB of old downloads", freed.div_ceil(1 << 20)),
            // Nothing depends on it, and the next service tries again.
            Err(error) => eprintln!("old downloads could not be removed: {}", chain(&error)),
        }
    }

    /// Stops a distribution, and removes it and its files.
    pub(super) fn unregister(self: &Arc<Self>, name: &str) -> Result<Answer> {
        // One whose record is damaged can be removed, too.
        let name = self.name(Some(name)).unwrap_or_else(|_| name.to_owned());
        self.stop_distribution(&name, "it is removed")?;
        let _turn = self.turn(&name, Doing::Uninstalling)?;
        self.store.remove(&name)?;
        Ok(Answer::Text(vec![format!("removed {name} and its files")]))
    }
}

/// A file for a stream's copy, locked: one that nobody has locked is nobody's.
fn new_spool(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let spool = tempfile::Builder::new().prefix(SPOOL).tempfile_in(folder)?;
        flock(spool.as_file(), FlockOperation::LockExclusive)?;
        // Who tidies may have found it before that.
        if spool.as_file().metadata()?.nlink() > 0 {
            return Ok(spool);
        }
    }
}

/// Removes what a killed service had copied of streams.
fn remove_spools(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(SPOOL)) {
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits()).open(entry.path());
        if file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Waits until there is something to read, or its end; the end of the client who wanted it is an error.
fn wait_for_bytes(from: &File, client: &UnixStream) -> Result<()> {
    let mut both =
        [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut both, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(Error::System { what: "wait for the archive", source: error.into() }),
            Ok(_) => {}
        }
        let [input, client] = &both;
        // A client says nothing more: what comes is its end.
        if client.any() != Some(false) {
            return Err(Error::Cancelled);
        }
        if input.any() != Some(false) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::service::{paths::Paths, settings::Settings as OfHost, wire::send_descriptors};

    fn service(folder: &Path) -> Arc<Service> {
        let paths = Paths::below(folder);
        let settings = OfHost::read(&paths);
        Arc::new(Service::new(paths, settings).unwrap())
    }

    /// What is in the cache, but for folders.
    fn spools(service: &Service) -> usize {
        let entries = fs::read_dir(&service.paths.cache).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).count()
    }

    #[test]
    fn who_goes_ends_an_import_from_a_stream_that_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let (client, stream) = UnixStream::pair().unwrap();
        let (input, mut writer) = io::pipe().unwrap();
        send_descriptors(&client, &[input.as_fd()]).unwrap();
        let import = Import {
            name: Some("a".into()),
            origin: Origin::Stream,
            list: None,
            flat: false,
            size: None,
            location: None,
        };
        let importing = service.clone();
        let thread = std::thread::spawn(move || importing.import(&import, &stream));
        writer.write_all(&[7; 10_000]).unwrap();
        let begun = Instant::now();
        while fs::read_dir(&service.paths.cache)
            .unwrap()
            .flatten()
            .all(|one| one.metadata().unwrap().len() < 10_000)
        {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(client);
        let error = thread.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        // The stream goes on, and nothing else does.
        drop(writer);
        assert_eq!(spools(&service), 0);
        assert!(service.turn("a", Doing::Installing).is_ok());
    }

    #[test]
    fn a_service_tidies_what_one_before_it_left() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let cache = &service.paths.cache;
        fs::write(cache.join("import-left"), "half an archive").unwrap();
        let used = new_spool(cache).unwrap();
        let other = cache.join("other");
        fs::write(&other, "not its own").unwrap();
        let downloads = Cache::open(&cache.join("downloads")).unwrap();
        let partial = |name: &str| downloads.directory().join("partial").join(name);
        for name in ["old", "new"] {
            fs::write(partial(name), "half a file").unwrap();
        }
        let old = File::options().write(true).open(partial("old")).unwrap();
        old.set_modified(SystemTime::now() - DOWNLOADED).unwrap();
        drop(old);
        service.tidy();
        assert!(used.path().exists() && other.exists() && partial("new").exists());
        assert_eq!(spools(&service), 2);
        assert!(!partial("old").exists());
    }
}
