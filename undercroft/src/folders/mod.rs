//! Folders of the host's in distributions, where the configuration or somebody at the command line asks for them.
//!
//! Each folder of each distribution has a process, virtiofsd, that serves it as this user: nobody in the VM can do more with it
//! than this user could. `program` finds one that can, and says how it is called; `server` keeps it; `wanted` reads the
//! configuration, and what somebody asked for.
//!
//! A folder that is wanted when the machine starts has a device of the VM's (virtio-fs), which the server works for by itself.
//! How many devices there are is decided then; one that is wanted later comes by a stream, whose messages `carrier` carries to
//! the server and back. That is slower, and ends with the distribution; when it starts again, it is brought again.
//!
//! A server that has ended does not come back: what it knew of the guest's open files went with it, and virtiofsd has no way to
//! learn it again. Its folder is brought by a stream when the distribution starts next, or somebody asks.

mod carrier;
mod program;
mod server;
mod wanted;

use std::{
    fmt, fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use undercroft_protocol::command::{Command, FOLDERS_MAX, FUSE_MESSAGE_MAX, Folder, Share, Users};
use undercroft_vmm::{config::FolderConfig, vhost_user::Driver};

use crate::{
    board::Board,
    door::Expected,
    error::{Error, Result, chain},
    guest::{Guest, spawn},
    users::UserRanges,
};
use carrier::End;
use program::Ids;
pub use program::{Program, Style, find};
use server::{About, Server};
pub(crate) use wanted::{Asked, inside, of, status, wanted};

/// The most folders with a device, of all distributions together.
const MOST: usize = 64;
/// Who the host's user is in a distribution that has no other default user: its first person, by the custom of adduser(8) and of
/// `oobe.defaultUid`.
pub const OWNER: u32 = 1000;

/// What is wanted of the host's folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// The virtiofsd program; the best one that is found otherwise.
    pub program: Option<PathBuf>,
    /// The folders.
    pub shared: Vec<SharedFolder>,
}

/// A folder of the host's in a distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFolder {
    /// The distribution's name.
    pub distribution: String,
    /// The folder.
    pub host: PathBuf,
    /// Where the distribution sees it: an absolute path.
    pub guest: String,
    /// Whether the distribution can only read.
    pub read_only: bool,
    /// Whether the distribution has users of its own.
    pub own_users: bool,
    /// Whose the host user's files are in the distribution: a user's number, and a group's.
    pub owner: u32,
    /// Where this is written, for messages.
    pub origin: String,
}

/// How it is with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderStatus {
    /// Which.
    pub folder: SharedFolder,
    /// Whether it was added while the machine ran.
    pub later: bool,
    /// Its server's process id, as long as it runs.
    pub pid: Option<u32>,
    /// Why it cannot be had.
    pub trouble: Option<String>,
}

impl fmt::Display for FolderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SharedFolder { distribution, host, guest, read_only, .. } = &self.folder;
        let how = if *read_only { ", read-only" } else { "" };
        let later = if self.later { ", added later" } else { "" };
        write!(f, "{guest} in {distribution} is {}{how}{later}", host.display())?;
        match &self.trouble {
            Some(trouble) => write!(f, ": {trouble}"),
            None => Ok(()),
        }
    }
}

/// The folders of a running machine.
#[derive(Debug)]
pub(crate) struct Folders {
    /// The program that is to be used.
    program: Option<PathBuf>,
    /// For sockets and logs.
    directory: PathBuf,
    board: Arc<Board>,
    kept: Arc<Mutex<Vec<Kept>>>,
    /// How many there have been, for names. One at a time is brought.
    count: Mutex<usize>,
}

#[derive(Debug)]
struct Kept {
    folder: SharedFolder,
    tag: String,
    way: Way,
    /// Or why there is none.
    server: std::result::Result<Server, String>,
}

/// How a folder's messages come to its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By a device of the VM's.
    Device,
    /// By a stream, as long as this distribution runs.
    Stream {
        /// [`Launch::id`](undercroft_protocol::command::Launch::id).
        distribution: u32,
    },
}

impl Kept {
    fn is_of(&self, distribution: &str) -> bool {
        self.folder.distribution.eq_ignore_ascii_case(distribution)
    }

    fn trouble(&self) -> Option<String> {
        match &self.server {
            Ok(server) => server.trouble(),
            Err(why) => Some(why.clone()),
        }
    }
}

impl Folders {
    /// Starts a server for each folder; gives the devices that the VMM is to have, with their sockets. What cannot be served is a
    /// warning, and no reason for there to be no VM. `directory` is for sockets and logs.
    pub(crate) fn start(
        options: FolderOptions,
        users: &UserRanges,
        directory: &Path,
        board: &Arc<Board>,
    ) -> (Self, Vec<(FolderConfig, OwnedFd)>) {
        let mut devices = Vec::new();
        let (count, kept) = (Mutex::new(options.shared.len()), Arc::default());
        let (program, directory) = (options.program, directory.to_owned());
        let this = Self { program, directory, board: board.clone(), kept, count };
        if options.shared.is_empty() {
            return (this, devices);
        }
        let program = this.program();
        for (number, folder) in options.shared.into_iter().enumerate() {
            let tag = tag(number);
            let served = if number < MOST {
                program.clone().and_then(|program| this.serve(&program, &folder, &tag, users))
            } else {
                Err(format!("there are more than {MOST} folders"))
            };
            let server = match served {
                Ok((server, socket)) => {
                    devices.push((FolderConfig { tag: tag.clone(), fd: socket.as_raw_fd() }, socket));
                    Ok(server)
                }
                Err(why) => {
                    board.warn(format!("{}: {} is not shared: {why}", folder.origin, folder.host.display()));
                    Err(why)
                }
            };
            lock(&this.kept).push(Kept { folder, tag, way: Way::Device, server });
        }
        (this, devices)
    }

    /// Those of a distribution that have a device, for its launch; that there are too many of them is a warning.
    pub(crate) fn of(&self, distribution: &str) -> Vec<Folder> {
        let kept = lock(&self.kept);
        let its = kept.iter().filter(|kept| kept.is_of(distribution) && kept.way == Way::Device);
        let mut usable = its.filter(|kept| kept.trouble().is_none());
        let folders =
            usable.by_ref().take(FOLDERS_MAX).map(|kept| described(&kept.folder, &kept.tag)).collect();
        for Kept { folder: SharedFolder { guest, .. }, .. } in usable {
            self.board.warn(format!("{distribution}: {guest} is one folder more than {FOLDERS_MAX}"));
        }
        folders
    }

    /// Those of a distribution that the machine was started with, and that it cannot have by their devices.
    pub(crate) fn lost(&self, distribution: &str) -> Vec<SharedFolder> {
        let kept = lock(&self.kept);
        let its = kept.iter().filter(|kept| kept.is_of(distribution) && kept.way == Way::Device);
        its.filter(|kept| kept.trouble().is_some()).map(|kept| kept.folder.clone()).collect()
    }

    /// Gives a distribution that runs a folder, if it does not have it: by a stream.
    pub(crate) fn bring(
        &self,
        guest: &Guest,
        distribution: u32,
        folder: SharedFolder,
        users: &UserRanges,
    ) -> Result<()> {
        const WHAT: &str = "share a folder";
        let mut count = lock(&self.count);
        if self.has(distribution, &folder) {
            return Ok(());
        }
        let host = folder.host.clone();
        let refused = |why| Error::NotShared { host: host.clone(), why };
        if lock(&self.kept).iter().filter(|kept| kept.way == Way::Stream { distribution }).count()
            >= FOLDERS_MAX
        {
            return Err(refused(format!(
                "{} has {FOLDERS_MAX} that were added already",
                folder.distribution
            )));
        }
        let tag = tag(*count);
        let program = self.program().map_err(refused)?;
        let (server, socket) = self.serve(&program, &folder, &tag, users).map_err(refused)?;
        *count += 1;
        let driver = Driver::connect(socket, FUSE_MESSAGE_MAX).map_err(|error| refused(chain(&error)))?;
        let expected = Expected::new(&self.board)?;
        let (folder_there, token) = (described(&folder, &tag), expected.token());
        let share = Command::Share(Share { distribution, folder: folder_there, token });
        guest.ask_nothing(WHAT, share, guest.limit(30))?;
        let stream = expected.wait("a folder's messages", guest.limit(10))?;
        let way = Way::Stream { distribution };
        {
            let mut kept = lock(&self.kept);
            // One whose server has ended, or whose distribution has.
            kept.retain(|kept| kept.way == Way::Device || !kept.folder.is_same(&folder));
            kept.push(Kept { folder, tag: tag.clone(), way, server: Ok(server) });
        }
        let (kept, board) = (self.kept.clone(), self.board.clone());
        spawn("folder", move || {
            let end = carrier::carry(driver, &stream);
            drop(stream);
            // That its server has ended is told by who watches it.
            if let End::Server = end {
                return;
            }
            let removed = {
                let mut kept = lock(&kept);
                let place = kept.iter().position(|kept| kept.tag == tag);
                place.map(|place| kept.remove(place))
            };
            if let (Some(Kept { folder, .. }), false) = (removed, matches!(end, End::Stream)) {
                let SharedFolder { distribution, guest, .. } = folder;
                board.warn(format!("{distribution} has {guest} no more: {}", chain(&end)));
            }
        })?;
        Ok(())
    }

    /// Whether a distribution that runs has a folder that works.
    fn has(&self, distribution: u32, folder: &SharedFolder) -> bool {
        lock(&self.kept).iter().any(|kept| {
            kept.folder.is_same(folder)
                && [Way::Device, Way::Stream { distribution }].contains(&kept.way)
                && kept.trouble().is_none()
        })
    }

    /// Ends the servers of a distribution that is to stop and does not, or of all: a process that waits for a folder's answer cannot
    /// even be killed, until it gets one. `who` does not stop.
    pub(crate) fn let_go(&self, distribution: Option<&str>, who: &str) {
        for kept in lock(&self.kept).iter().filter(|kept| distribution.is_none_or(|name| kept.is_of(name))) {
            if let Ok(server) = &kept.server {
                server.end(format!("virtiofsd was killed because {who} did not stop while it ran"));
            }
        }
    }

    pub(crate) fn status(&self) -> Vec<FolderStatus> {
        let pid = |kept: &Kept| kept.server.as_ref().ok().and_then(Server::pid);
        let status = |kept: &Kept| FolderStatus {
            folder: kept.folder.clone(),
            later: kept.way != Way::Device,
            pid: pid(kept),
            trouble: kept.trouble(),
        };
        lock(&self.kept).iter().map(status).collect()
    }

    fn program(&self) -> std::result::Result<Program, String> {
        self.program.as_ref().map_or_else(find, |path| Program::look(path))
    }

    /// Starts a server; gives it, and the other end of its socket.
    fn serve(
        &self,
        program: &Program,
        folder: &SharedFolder,
        tag: &str,
        users: &UserRanges,
    ) -> std::result::Result<(Server, OwnedFd), String> {
        let host = fs::canonicalize(&folder.host).map_err(|error| error.to_string())?;
        if !host.is_dir() {
            return Err("it is no folder".into());
        }
        let range = match folder.own_users {
            true => users.of(&folder.distribution).map_err(|error| error.to_string())?,
            false => Users::Shared,
        };
        let arguments = program.arguments(&host, folder.read_only, Ids::new(range, folder.owner))?;
        // virtiofsd wants to accept a connection. It is made before, so that nobody else's can be the first.
        let path = self.directory.join(format!("{tag}.sock"));
        let connected =
            UnixListener::bind(&path).and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
        let _ = fs::remove_file(&path);
        let (listener, socket) = connected.map_err(|error| format!("no socket for its server: {error}"))?;
        let what = format!("{} ({} in {})", folder.host.display(), folder.guest, folder.distribution);
        let messages = self.directory.join(format!("{tag}.log"));
        let until = format!("until {} is started anew", folder.distribution);
        let about = About { what, until };
        let server = Server::start(&program.path, arguments, listener, messages, about, self.board.clone())?;
        Ok((server, socket.into()))
    }
}

impl Drop for Folders {
    /// The servers go now, and not with the last of their carriers.
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *lock(&self.kept));
        drop(kept);
    }
}

fn tag(number: usize) -> String {
    format!("folder-{number}")
}

fn described(folder: &SharedFolder, tag: &str) -> Folder {
    Folder { tag: tag.into(), place: folder.guest.clone(), read_only: folder.read_only }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tests::install;

    /// A virtiofsd that can do everything, as it says.
    fn program(folder: &Path, otherwise: &str) -> PathBuf {
        let path = folder.join("virtiofsd");
        let script = format!("[ \"$1\" = --help ] && exec echo --shared-dir --translate-uid\n{otherwise}");
        install(&path, &script);
        path
    }

    fn start(otherwise: &str, hosts: &[&str]) -> (tempfile::TempDir, Folders, Vec<String>, Arc<Board>) {
        let directory = tempfile::tempdir().unwrap();
        let shared = hosts.iter().enumerate().map(|(number, host)| SharedFolder {
            distribution: "Deb".into(),
            host: host.into(),
            guest: format!("/{number}"),
            read_only: number > 0,
            own_users: true,
            owner: OWNER,
            origin: format!("/c:{number}"),
        });
        let program = Some(program(directory.path(), otherwise));
        let options = FolderOptions { program, shared: shared.collect() };
        let board = Arc::new(Board::new(None));
        let (folders, devices) = Folders::start(options, &UserRanges::default(), directory.path(), &board);
        (directory, folders, devices.into_iter().map(|device| device.0.tag).collect(), board)
    }

    fn warnings(board: &Board) -> String {
        board.lock().warnings.join("\n")
    }

    #[test]
    fn what_is_served_is_a_distributions_and_what_is_not_is_told() {
        let (_directory, folders, tags, board) = start("exec sleep 1000", &["/", "/nonexistent", "/etc"]);
        assert_eq!(tags, ["folder-0", "folder-2"]);
        assert_eq!(
            warnings(&board),
            "/c:1: /nonexistent is not shared: No such file or directory (os error 2)"
        );
        assert!(folders.of("other").is_empty());
        let places: Vec<_> = folders.of("deb").into_iter().map(|f| (f.tag, f.place, f.read_only)).collect();
        let place = |number: usize, read_only| (format!("folder-{number}"), format!("/{number}"), read_only);
        assert_eq!(places, [place(0, false), place(2, true)]);
        let status = folders.status();
        assert_eq!(status[2].to_string(), "/2 in Deb is /etc, read-only");
        let pid = nix::unistd::Pid::from_raw(status[0].pid.unwrap() as i32);
        drop(folders);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn a_server_that_ends_is_gone_for_good() {
        let (_directory, folders, _, board) = start("echo no sandbox >&2; exit 3", &["/"]);
        while warnings(&board).is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        const SAID: &str = "is gone until Deb is started anew: virtiofsd ended (exit status: 3): no sandbox";
        assert_eq!(warnings(&board), format!("/ (/0 in Deb) {SAID}"));
        assert!(folders.of("Deb").is_empty() && folders.status()[0].pid.is_none());
        assert!(folders.status()[0].to_string().contains("no sandbox; it is gone until"));
    }
}
