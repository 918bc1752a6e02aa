//! What is done with a distribution as a whole: it goes out, is copied, called otherwise, put elsewhere, made larger.
//!
//! None of it is for one that runs: it is stopped first, and excluded from everything else until it is done. What can be seen to
//! fail is refused before that, and where nothing is to be done nothing is stopped. A client that goes ends it, and nothing is
//! left of it.

use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    host::explained,
    jobs::{Gone, Reporter},
    state::Service,
    wire::{Answer, Doing, Export, Format, receive_descriptors},
};
use crate::{
    error::{Error, Result},
    export::{Compression, Target},
    store::StoreError,
};

/// Whether somebody still wants it.
struct Wanted<'a> {
    gone: Arc<AtomicBool>,
    _watch: Gone<'a>,
}

impl<'a> Wanted<'a> {
    fn by(stream: &'a UnixStream) -> Result<Self> {
        let gone = Arc::new(AtomicBool::new(false));
        let seen = gone.clone();
        let watch = Gone::watch(stream, move || seen.store(true, Ordering::Release))?;
        Ok(Self { gone, _watch: watch })
    }

    /// An error when nobody does.
    fn still(&self) -> Result<()> {
        match self.gone.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::System { what: "go on", source: std::io::ErrorKind::Interrupted.into() }),
        }
    }
}

impl Service {
    /// Stops a distribution and does something with it that excludes everything else.
    fn alone<T>(
        self: &Arc<Self>,
        name: &str,
        doing: Doing,
        reason: &str,
        act: impl FnOnce(&str) -> Result<T>,
    ) -> Result<T> {
        let name = self.name(Some(name))?;
        self.stop_distribution(&name, reason)?;
        let _turn = self.turn(&name, doing)?;
        act(&name)
    }

    /// Writes a distribution's root into a file that the client hands over.
    pub(super) fn export(self: &Arc<Self>, export: &Export, stream: &UnixStream) -> Result<Answer> {
        let file = receive_descriptors(stream, 1)?.pop().map(File::from);
        let Some(file) = file else { return Ok(Answer::Nothing) };
        self.alone(&export.name, Doing::Exporting, "it is exported", |name| {
            let held = self.store.hold(name)?;
            let machine = self.machine()?;
            let attached = machine.attach(held).map_err(|error| explained(&machine, error))?;
            let wanted = Wanted::by(stream)?;
            let reporter = Mutex::new(Reporter::new(stream));
            let what = format!("exporting {name}");
            let tell = |so_far: crate::export::Exporting| {
                let mut reporter = reporter.lock().unwrap_or_else(PoisonError::into_inner);
                // What was foreseen may be too little.
                let total = (so_far.about > 0).then(|| so_far.about.max(so_far.read));
                reporter.progress(&what, so_far.read, total);
                wanted.still()
            };
            let written = match export.format {
                Format::Image => {
                    machine.export_image(&attached, &file, &export.to, None, tell).map(|()| Vec::new())
                }
                format => {
                    let target = Target { file: &file, name: &export.to, compression: format.compression() };
                    machine.export(attached.root(), &target, tell).map(|exported| exported.warnings)
                }
            };
            let detached = machine.detach(attached);
            let warnings = written.map_err(|error| explained(&machine, error))?;
            detached.map_err(|error| explained(&machine, error))?;
            let mut reporter = reporter.into_inner().unwrap_or_else(PoisonError::into_inner);
            for warning in warnings {
                reporter.warn(&warning);
            }
            Ok(Answer::Nothing)
        })
    }

    /// Makes a second one of it.
    pub(super) fn clone_distribution(
        self: &Arc<Self>,
        name: &str,
        new_name: &str,
        stream: &UnixStream,
    ) -> Result<Answer> {
        self.store.check_free(new_name)?;
        let _new = self.turn(new_name, Doing::Installing)?;
        self.alone(name, Doing::Exporting, "it is cloned", |name| {
            self.telling(stream, &format!("cloning {name}"), |tell| {
                self.store.clone_as(name, new_name, tell)
            })?;
            Ok(Answer::Text(vec![format!("{new_name} is a clone of {name}")]))
        })
    }

    /// Calls it otherwise.
    pub(super) fn rename(self: &Arc<Self>, name: &str, new_name: &str) -> Result<Answer> {
        // A name may be written otherwise only.
        let same = name.eq_ignore_ascii_case(new_name);
        if !same {
            self.store.check_free(new_name)?;
        }
        let _new = (!same).then(|| self.turn(new_name, Doing::Installing)).transpose()?;
        self.alone(name, Doing::Converting, "it is renamed", |name| {
            let record = self.store.rename(name, new_name)?;
            Ok(Answer::Text(vec![format!("{name} is called {} now", record.name)]))
        })
    }

    /// Puts its disk into another directory, or back into the store.
    pub(super) fn relocate(
        self: &Arc<Self>,
        name: &str,
        directory: Option<&Path>,
        stream: &UnixStream,
    ) -> Result<Answer> {
        if !self.store.can_relocate(name, directory)? {
            return Ok(Answer::Nothing);
        }
        self.alone(name, Doing::Converting, "it is moved", |name| {
            self.telling(stream, &format!("moving {name}"), |tell| {
                self.store.relocate(name, directory, tell)
            })?;
            Ok(Answer::Nothing)
        })
    }

    /// Makes its disk larger or smaller.
    pub(super) fn resize(self: &Arc<Self>, name: &str, size: u64, stream: &UnixStream) -> Result<Answer> {
        if !self.store.can_resize(name, size)? {
            return Ok(Answer::Nothing);
        }
        self.alone(name, Doing::Converting, "it is resized", |name| {
            self.telling(stream, &format!("resizing {name}"), |tell| self.store.resize(name, size, tell))?;
            Ok(Answer::Nothing)
        })
    }

    /// Makes an image a distribution, where it stands.
    pub(super) fn adopt(&self, name: &str, image: &Path) -> Result<Answer> {
        if self.store.distribution(name)?.is_some() {
            return Err(StoreError::Taken(name.into()).into());
        }
        let _turn = self.turn(name, Doing::Installing)?;
        self.store.adopt(name, image)?;
        Ok(Answer::Text(vec![format!("{name} uses {} where it is", image.display())]))
    }

    /// Sets who a distribution's sessions are, or whether it stays.
    pub(super) fn configure(
        &self,
        name: &str,
        default_uid: Option<u32>,
        keep_alive: Option<bool>,
    ) -> Result<Answer> {
        let name = self.name(Some(name))?;
        self.store.configure(&name, |settings| {
            settings.default_uid = default_uid.or(settings.default_uid);
            settings.keep_alive = keep_alive.unwrap_or(settings.keep_alive);
        })?;
        if keep_alive.is_some() {
            self.look_who_stays();
        }
        let live = self.update(|state| state.entry(&name)?.live.clone());
        let own = live.filter(|_| default_uid.is_some()).and_then(|live| live.distribution.default_user());
        Ok(own.map_or(Answer::Nothing, |own| {
            Answer::Text(vec![format!(
                "{name} has {own} for its default user in its own /etc/wsl.conf, and that counts for as long as it is there"
            )])
        }))
    }

    /// Does something that tells bytes done and of how many, as long as the client is there.
    pub(super) fn telling<T>(
        &self,
        stream: &UnixStream,
        what: &str,
        act: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        let wanted = Wanted::by(stream)?;
        let mut reporter = Reporter::new(stream);
        act(&mut |done, total| {
            reporter.progress(what, done, Some(total));
            wanted.still()
        })
    }
}

impl Format {
    fn compression(self) -> Compression {
        match self {
            Self::Tar | Self::Image => Compression::None,
            Self::Gzip => Compression::Gzip,
            Self::Xz => Compression::Xz,
            Self::Zstd => Compression::Zstd,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        disk::NewDisk,
        service::{paths::Paths, settings::Settings},
    };

    /// A service with `a` and `b`, which do something that keeps them from being stopped: who is told so was not refused.
    fn service(folder: &Path) -> Option<Arc<Service>> {
        let paths = Paths::below(folder);
        let settings = Settings::read(&paths);
        let service = Arc::new(Service::new(paths, settings).unwrap());
        for name in ["a", "b"] {
            let image = folder.join(name);
            match NewDisk::create(&image, 48 << 20) {
                Err(Error::NoProgram { .. }) => {
                    eprintln!("skipped: mke2fs is not installed");
                    return None;
                }
                made => made.unwrap().keep().unwrap(),
            };
            service.store.adopt(name, &image).unwrap();
            service.update(|state| state.begin(name, Doing::Exporting)).unwrap();
        }
        Some(service)
    }

    fn refused(outcome: Result<Answer>) -> String {
        crate::error::chain(&outcome.unwrap_err())
    }

    #[test]
    fn what_cannot_be_done_stops_nothing() {
        const BUSY: &str = "a is exporting: try again";
        let folder = tempfile::tempdir().unwrap();
        let Some(service) = service(folder.path()) else { return };
        let (stream, _client) = UnixStream::pair().unwrap();
        for taken in ["b", "B"] {
            let expected = format!("there is already a distribution called {taken}");
            assert_eq!(refused(service.clone_distribution("a", taken, &stream)), expected);
            assert_eq!(refused(service.rename("a", taken)), expected);
        }
        assert!(refused(service.clone_distribution("a", "x/y", &stream)).contains("is no name"));
        assert!(refused(service.rename("a", "x/y")).contains("is no name"));
        for free in
            [refused(service.clone_distribution("a", "c", &stream)), refused(service.rename("a", "A"))]
        {
            assert!(free.starts_with(BUSY), "{free}");
        }

        let (there, new) = (folder.path().join("there"), folder.path().join("new/folder"));
        fs::create_dir(&there).unwrap();
        fs::write(there.join("a.ext4"), "somebody's").unwrap();
        let relocated = |to: &Path| refused(service.relocate("a", Some(to), &stream));
        assert!(relocated(&there).starts_with("cannot move a disk to "), "{}", relocated(&there));
        assert!(relocated(&there.join("a.ext4")).starts_with("cannot create "));
        assert!(relocated(&new).starts_with(BUSY), "{}", relocated(&new));

        let resized = |size| service.resize("a", size, &stream);
        assert_eq!(resized(48 << 20).unwrap(), Answer::Nothing);
        assert!(refused(resized(20)).starts_with("a cannot be made 0 MiB large"), "{}", refused(resized(20)));
        let most = refused(resized(u64::MAX));
        assert!(most.starts_with("cannot resize "), "{most}");
        assert!(refused(resized(64 << 20)).starts_with(BUSY));
    }
}
