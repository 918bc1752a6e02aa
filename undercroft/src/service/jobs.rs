//! What takes long, or takes something away: import, removal.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::unix::{ffi::OsStringExt, net::UnixStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use undercroft_protocol::write_frame;

use super::{
    error::ServiceError,
    host::explained,
    state::Service,
    wire::{Answer, Doing, Event, Import, receive_descriptors},
};
use crate::{
    KnownFile,
    error::{Error, Result},
    store::StoreError,
};

/// How often a client hears how far something is.
const OFTEN: Duration = Duration::from_millis(100);

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

impl Service {
    /// Takes a distribution's name for something that excludes everything else.
    pub(super) fn turn(&self, name: &str, doing: Doing) -> Result<Turn<'_>> {
        let begun = self.update(|state| state.begin(name, doing));
        begun.map_err(|doing| ServiceError::Busy { name: name.into(), doing })?;
        Ok(Turn { service: self, name: name.into() })
    }

    /// Makes a distribution from an archive.
    pub(super) fn import(self: &Arc<Self>, import: &Import, stream: &UnixStream) -> Result<Answer> {
        let name = import.name.as_str();
        let mut reporter = Reporter::new(stream);
        if self.store.distribution(name)?.is_some() {
            return Err(StoreError::Taken(name.into()).into());
        }
        let _turn = self.turn(name, Doing::Installing)?;
        // A spool is removed when this goes.
        let (path, _spool) = match &import.archive {
            Some(path) => (PathBuf::from(OsString::from_vec(path.clone())), None),
            None => {
                let spool = self.spool(stream, &mut reporter)?;
                (spool.path().to_owned(), Some(spool))
            }
        };
        // A file that is no archive is told before a machine is started for it.
        crate::Archive::open(&path)?;
        let digests = self.store.digests();
        let file = KnownFile::read(&path, Some(&digests), |done, total| {
            reporter.progress("reading the archive", done, Some(total));
        })?;
        let machine = self.machine()?;
        let what = format!("importing {name}");
        let mut unpacker =
            machine.unpacker(|progress| reporter.progress(&what, progress.read, progress.total));
        let size = import.size.unwrap_or(self.settings().host.default_disk_size);
        let made = if import.flat || self.settings().of(name).flat_root {
            self.store.create_flat(name, &file, size, &mut unpacker).map(|(_, imported)| Some(imported))
        } else {
            self.store.import_base(&file, &mut unpacker).and_then(|(base, imported)| {
                self.store.create(name, &base, size)?;
                Ok(imported)
            })
        };
        drop(unpacker);
        let imported = made.map_err(|error| explained(&machine, error))?;
        for warning in imported.iter().flat_map(|imported| &imported.warnings) {
            reporter.warn(warning);
        }
        let line = match imported {
            Some(of) => {
                format!("imported {name}: {} entries, {} MiB", of.entries, of.bytes.div_ceil(1 << 20))
            }
            None => format!("imported {name}: nothing to unpack, another distribution has the same base"),
        };
        Ok(Answer::Text(vec![line]))
    }

    /// Copies an archive that comes as a stream to a file: it is read twice.
    fn spool(&self, stream: &UnixStream, reporter: &mut Reporter<'_>) -> Result<tempfile::NamedTempFile> {
        let folder = &self.paths.cache;
        let failed = |what| move |source| Error::File { what, path: folder.clone(), source };
        let mut spool = tempfile::Builder::new()
            .prefix("import-")
            .tempfile_in(folder)
            .map_err(failed("make a file in"))?;
        let from = receive_descriptors(stream, 1)?.pop().map(File::from);
        let Some(mut from) = from else { return Ok(spool) };
        let (mut buffer, mut done) = (vec![0; 1 << 20], 0);
        loop {
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
