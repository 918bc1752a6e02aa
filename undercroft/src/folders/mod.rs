//! Folders of the host's in distributions, where the configuration asks for them.
//!
//! Each folder of each distribution has a device of the VM (virtio-fs) and a process, virtiofsd, that serves it as this user: nobody
//! in the VM can do more with it than this user could. `program` finds one that can, and says how it is called; `server` keeps
//! it; `wanted` reads the configuration, and what somebody asked for at the command line.
//!
//! How many devices there are is decided when the machine starts. A folder whose server has ended is gone until the machine is
//! started anew: what the server knew of the guest's open files went with it, and virtiofsd has no way to learn it again.

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
    sync::Arc,
};

use undercroft_protocol::command::{FOLDERS_MAX, Folder, Users};
use undercroft_vmm::config::FolderConfig;

use crate::{board::Board, users::UserRanges};
use program::Ids;
pub use program::{Program, Style, find};
use server::Server;
pub(crate) use wanted::{Asked, inside, not_shared, status, wanted};

/// The most folders of all distributions together: a device and a process each.
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
    /// Its server's process id, as long as it runs.
    pub pid: Option<u32>,
    /// Why it cannot be had.
    pub trouble: Option<String>,
}

impl fmt::Display for FolderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SharedFolder { distribution, host, guest, read_only, .. } = &self.folder;
        let how = if *read_only { ", read-only" } else { "" };
        write!(f, "{guest} in {distribution} is {}{how}", host.display())?;
        match &self.trouble {
            Some(trouble) => write!(f, ": {trouble}"),
            None => Ok(()),
        }
    }
}

/// The folders of a running machine.
#[derive(Debug, Default)]
pub(crate) struct Folders(Vec<Kept>);

#[derive(Debug)]
struct Kept {
    folder: SharedFolder,
    tag: String,
    /// Or why there is none.
    server: Result<Server, String>,
}

impl Kept {
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
        if options.shared.is_empty() {
            return (Self::default(), devices);
        }
        let program = match options.program {
            Some(path) => Program::look(&path),
            None => find(),
        };
        let mut all = Vec::new();
        for (number, folder) in options.shared.into_iter().enumerate() {
            let tag = format!("folder-{number}");
            let served = if number < MOST {
                program.clone().and_then(|program| serve(&program, &folder, &tag, users, directory, board))
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
            all.push(Kept { folder, tag, server });
        }
        (Self(all), devices)
    }

    /// Those of a distribution, for its launch; what it will not have is a warning.
    pub(crate) fn of(&self, distribution: &str, board: &Board) -> Vec<Folder> {
        let mut folders = Vec::new();
        for kept in self.0.iter().filter(|kept| kept.folder.distribution.eq_ignore_ascii_case(distribution)) {
            let SharedFolder { guest, read_only, .. } = &kept.folder;
            match kept.trouble() {
                None if folders.len() < FOLDERS_MAX => {
                    let (tag, place) = (kept.tag.clone(), guest.clone());
                    folders.push(Folder { tag, place, read_only: *read_only });
                }
                None => board.warn(format!("{distribution}: {guest} is one folder more than {FOLDERS_MAX}")),
                Some(why) => board.warn(format!("{distribution} has no {guest}: {why}")),
            }
        }
        folders
    }

    pub(crate) fn status(&self) -> Vec<FolderStatus> {
        let pid = |kept: &Kept| kept.server.as_ref().ok().and_then(Server::pid);
        let status = |kept: &Kept| FolderStatus {
            folder: kept.folder.clone(),
            pid: pid(kept),
            trouble: kept.trouble(),
        };
        self.0.iter().map(status).collect()
    }
}

/// Starts a server; gives it, and the VMM's end of its socket.
fn serve(
    program: &Program,
    folder: &SharedFolder,
    tag: &str,
    users: &UserRanges,
    directory: &Path,
    board: &Arc<Board>,
) -> Result<(Server, OwnedFd), String> {
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
    let path = directory.join(format!("{tag}.sock"));
    let connected =
        UnixListener::bind(&path).and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
    let _ = fs::remove_file(&path);
    let (listener, socket) = connected.map_err(|error| format!("no socket for its server: {error}"))?;
    let what = format!("{} ({} in {})", folder.host.display(), folder.guest, folder.distribution);
    let messages = directory.join(format!("{tag}.log"));
    let server = Server::start(&program.path, arguments, listener, messages, what, board.clone())?;
    Ok((server, socket.into()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use super::*;

    /// A virtiofsd that can do everything, as it says.
    fn program(folder: &Path, otherwise: &str) -> PathBuf {
        let path = folder.join("virtiofsd");
        let script = format!("[ \"$1\" = --help ] && exec echo --shared-dir --translate-uid\n{otherwise}");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
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
        assert!(folders.of("other", &board).is_empty());
        let places: Vec<_> =
            folders.of("deb", &board).into_iter().map(|f| (f.tag, f.place, f.read_only)).collect();
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
        const SAID: &str =
            "is gone until the virtual machine is started anew: virtiofsd ended (exit status: 3): no sandbox";
        assert_eq!(warnings(&board), format!("/ (/0 in Deb) {SAID}"));
        assert!(folders.of("Deb", &board).is_empty() && folders.status()[0].pid.is_none());
        assert!(folders.status()[0].to_string().contains("no sandbox; it is gone until"));
    }
}
