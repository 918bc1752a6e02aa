//! What the command line and the service say to each other, on a unix socket: the protocol's frames, one connection a request.
//!
//! ```text
//! client  → which messages these are, Request
//! service → Event …            progress, warnings; Started with the session's streams as descriptors
//! client  → Steer …            signals and sizes, while a session runs
//! service → Event::Done, Exited or Failed, and the end
//! ```
//!
//! Descriptors travel beside one byte after the frame that announces them (unix(7), SCM_RIGHTS). Both sides are this program, of
//! one user; a service from before an update is told apart (`greeting`).

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use undercroft_config::{Mount, Published};
use undercroft_protocol::{
    network::{Endpoint, Transport},
    session::{ExitStatus, Program, WindowSize},
};

use crate::error::{Error, Result};

/// The most descriptors that come with one message: a session's streams.
const DESCRIPTORS: usize = 3;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Start a process in a distribution.
    Run(Run),
    /// Every distribution. Answered with [`Answer::List`].
    List,
    /// What is listened for inside, and where it is reached. Answered with [`Answer::Ports`].
    Ports,
    /// The service, its machine, its distributions. Answered with [`Answer::Status`].
    Status,
    /// Make a distribution from something.
    Import(Import),
    /// What can be installed by name; `None` is WSL's list. Answered with [`Answer::Catalogue`].
    Catalogue(Option<String>),
    /// Stop a distribution.
    Terminate {
        /// Which.
        name: String,
        /// Without waiting for anybody.
        force: bool,
    },
    /// Stop everything, the virtual machine too.
    Shutdown {
        /// Without waiting for anybody.
        force: bool,
    },
    /// Remove a distribution and its files.
    Unregister(String),
    /// Which one is meant when none is named.
    SetDefault(String),
    /// Write a distribution's root into a file, which comes as a descriptor behind the request.
    Export(Export),
    /// Make a second one of a distribution.
    Clone {
        /// Which.
        name: String,
        /// What the second one is called.
        new_name: String,
    },
    /// Call a distribution otherwise.
    Rename {
        /// Which.
        name: String,
        /// How.
        new_name: String,
    },
    /// Put a distribution's disk elsewhere.
    Move {
        /// Which.
        name: String,
        /// The directory; `None` is the store.
        directory: Option<PathBuf>,
    },
    /// Make a distribution's disk larger or smaller.
    Resize {
        /// Which.
        name: String,
        /// Bytes.
        size: u64,
    },
    /// Make an ext4 image a distribution, where it stands.
    Adopt {
        /// The new distribution's name.
        name: String,
        /// The image's absolute path.
        image: PathBuf,
    },
    /// Change what is set for a distribution; `None` leaves it.
    Configure {
        /// Which.
        name: String,
        /// Who its sessions are.
        default_uid: Option<u32>,
        /// Whether it stays when it is idle.
        keep_alive: Option<bool>,
    },
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// In which distribution; `None` is the default one.
    pub distribution: Option<String>,
    /// Whether a stopped distribution is started for it.
    pub start: bool,
    /// As whom, by name or number; `None` is the distribution's default user.
    pub user: Option<String>,
    /// Where; `None` is `here`, or the user's home.
    pub directory: Option<Vec<u8>>,
    /// Where the client is on the host, which one of the distribution's folders may have.
    pub here: Option<Vec<u8>>,
    /// What.
    pub program: Program,
    /// Variables beside those that the distribution sets.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// The size of its terminal; `None` is three pipes.
    pub terminal: Option<WindowSize>,
    /// Where on the host everybody reaches a port of the distribution's, as long as the process runs.
    pub publish: Vec<Endpoint>,
    /// Folders of the host's that the distribution is to have, as long as the machine runs.
    pub folders: Vec<Folder>,
}

impl Run {
    /// A program by its words, with pipes, as the default user at home.
    pub fn words(distribution: &str, words: &[&str]) -> Self {
        Self {
            distribution: Some(distribution.into()),
            start: true,
            user: None,
            directory: None,
            here: None,
            program: Program::Argv(words.iter().map(|word| word.as_bytes().to_vec()).collect()),
            environment: Vec::new(),
            terminal: None,
            publish: Vec::new(),
            folders: Vec::new(),
        }
    }
}

/// A folder of the host's, see [`Mount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// The folder's absolute path.
    pub host: String,
    /// Where the distribution sees it.
    pub guest: String,
    /// Whether it can only read.
    pub read_only: bool,
}

impl From<Mount> for Folder {
    fn from(Mount { host, guest, read_only, .. }: Mount) -> Self {
        Self { host, guest, read_only }
    }
}

impl From<Folder> for Mount {
    fn from(Folder { host, guest, read_only }: Folder) -> Self {
        Self { host, guest, read_only, line: 0 }
    }
}

/// Where something is published, in the protocol's words.
pub fn endpoint(one: &Published) -> Endpoint {
    let transport = if one.is_udp { Transport::Udp } else { Transport::Tcp };
    Endpoint { transport, address: one.address }
}

/// What to make a distribution of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The new distribution's name; `None` is what its source calls it.
    pub name: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// A list to look names up in, instead of WSL's.
    pub list: Option<String>,
    /// Everything on its own disk.
    pub flat: bool,
    /// Bytes of its own disk; `None` is the configuration's.
    pub size: Option<u64>,
    /// The directory of its own disk, by its absolute path; `None` is the configuration's.
    pub location: Option<PathBuf>,
}

/// What to export, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Which distribution.
    pub name: String,
    /// What the file is called, for messages.
    pub to: PathBuf,
    /// As what.
    pub format: Format,
}

/// What a distribution is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A tar archive.
    Tar,
    /// The same, by gzip.
    Gzip,
    /// The same, by xz.
    Xz,
    /// The same, by zstd.
    Zstd,
    /// A raw disk image with an ext4 file system.
    Image,
}

/// Where a distribution comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A file or folder, by its absolute path.
    Path(PathBuf),
    /// What somebody typed in a folder ([`Source::parse`](crate::source::Source::parse)).
    Text(String, PathBuf),
    /// An archive that comes as a descriptor behind the request.
    Stream,
    /// An ext4 image, by its absolute path, that is copied.
    Image(PathBuf),
}

/// What the service tells while it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// What is being done, and how far it is.
    Progress {
        /// A verb and its object: `importing debian`.
        what: String,
        /// Bytes done.
        done: u64,
        /// Of how many.
        total: Option<u64>,
    },
    /// Something that a person should read.
    Warning(String),
    /// The session's process runs; its streams come as descriptors: one of a terminal, or stdin, stdout, stderr.
    Started {
        /// Process id in the distribution.
        pid: u32,
        /// How many descriptors come.
        streams: u8,
    },
    /// The session's process ended. The last event.
    Exited(ExitStatus),
    /// It is done. The last event.
    Done(Answer),
    /// It could not be done. The last event.
    Failed {
        /// Why, and what to do next.
        message: String,
        /// What a shell would give as status (126, 127), if it is about the program.
        status: Option<i32>,
    },
    /// The distribution has to be set up first: what is started now is this, and what was asked for is to be asked again.
    SetUp {
        /// The distribution.
        name: String,
        /// Its `oobe.command`.
        command: String,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Eq)]
pub enum Answer {
    /// Nothing but that it is done.
    Nothing,
    /// Lines to show.
    Text(Vec<String>),
    /// [`Request::Ports`].
    Ports(Vec<Listening>),
    /// [`Request::Catalogue`].
    Catalogue(Vec<Offer>),
    /// [`Request::List`], the default first.
    List(Vec<Listed>),
    /// [`Request::Status`].
    Status(Box<Status>),
    /// [`Request::Import`].
    Imported {
        /// What the new distribution is called.
        name: String,
        /// A line to show.
        line: String,
    },
}

/// Something that is listened for in a distribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Where, in the machine.
    pub inside: String,
    /// Where it is reached on the host; `None` if it is not.
    pub outside: Option<String>,
    /// In which distribution, if it is in one.
    pub distribution: Option<String>,
    /// By which program.
    pub program: String,
    /// Why it is not the same port, or none.
    pub trouble: Option<String>,
}

/// Something that can be installed by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What to ask for.
    pub name: String,
    /// The same for people.
    pub friendly_name: String,
    /// Whether it is meant when no name is given.
    pub default: bool,
}

/// A distribution, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether it is the default one.
    pub default: bool,
    /// What it does.
    pub state: Doing,
    /// Sessions in it.
    pub sessions: u32,
    /// Why it still runs, or will stop and when; empty of a stopped one.
    pub why: String,
    /// Seconds until it stops, if nobody uses it until then; `None` if nothing stops it.
    pub stops_in: Option<u64>,
    /// What it uses in the machine; `None` of one that does not run, and where only the list was asked for.
    pub used: Option<Used>,
    /// Bytes that its own disk takes on the host.
    pub disk: u64,
    /// Seconds since 1970 when it was made.
    pub created: u64,
}

/// What a distribution does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // They say it.
pub enum Doing {
    Stopped,
    Starting,
    Running,
    Stopping,
    Installing,
    Uninstalling,
    Converting,
    Exporting,
}

impl Doing {
    /// As `wsl --list --verbose` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Installing => "Installing",
            Self::Uninstalling => "Uninstalling",
            Self::Converting => "Converting",
            Self::Exporting => "Exporting",
        }
    }
}

/// What a distribution uses in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes of memory, without what is only a cache of files.
    pub memory: u64,
    /// Bytes of files that the kernel remembers because of it.
    pub cache: u64,
    /// Microseconds of CPU time since it was started.
    pub cpu_us: u64,
}

/// What the machine's kernel says of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// Bytes that it has now.
    pub total: u64,
    /// Bytes that programs can still have, caches included.
    pub available: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Bytes of it that are in use.
    pub swap_used: u64,
}

/// The service and its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This program's version.
    pub version: String,
    /// The service's process id.
    pub pid: u32,
    /// The virtual machine, if it runs.
    pub vm: Option<Vm>,
    /// What was cleared away, warned of, and ended unexpectedly since the service runs.
    pub notes: Vec<String>,
    /// Distributions.
    pub distributions: Vec<Listed>,
}

/// The virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The VMM's process id.
    pub pid: u32,
    /// The kernel's release.
    pub kernel: String,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Bytes that the guest may have.
    pub memory: u64,
    /// What its kernel says of its memory; `None` if it does not answer.
    pub guest: Option<GuestMemory>,
    /// Microseconds of CPU time that the VMM has used, the guest's included.
    pub cpu_us: u64,
    /// Bytes that the VMM holds on the host now.
    pub resident: u64,
    /// Seconds since it was started.
    pub up: u64,
    /// How it reaches the world: `none`, `nat` or `tap`, and what is the matter with it.
    pub network: String,
    /// The host's folders in distributions, a line each, and what is the matter with them.
    pub folders: Vec<String>,
    /// Why it still runs, or when it will stop.
    pub why: String,
    /// The boot, step by step.
    pub timeline: String,
}

/// Sends descriptors; the frame before has told how many.
pub(super) fn send_descriptors(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(b"F")], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|error| Error::System { what: "hand streams over", source: error.into() })
}

/// Takes descriptors that were announced; with another number of them it is an error.
pub(super) fn receive_descriptors(stream: &UnixStream, count: usize) -> Result<Vec<OwnedFd>> {
    let failed = |source| Error::System { what: "take what was handed over", source };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
    received.map_err(|error| failed(error.into()))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() == count {
        Ok(descriptors)
    } else {
        let message = format!("expected {count} descriptors and got {}", descriptors.len());
        Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, message)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use undercroft_protocol::{read_frame, write_frame};

    use super::*;

    #[test]
    fn streams_travel_behind_their_frame() -> Result<()> {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        write_frame(&mut here, &Event::Started { pid: 7, streams: 1 }).unwrap();
        send_descriptors(&here, &[writer.as_fd()])?;
        write_frame(&mut here, &Event::Exited(ExitStatus::Code(3))).unwrap();
        drop(writer);

        let Event::Started { pid: 7, streams } = read_frame(&mut there).unwrap() else {
            panic!("another event")
        };
        let mut taken = receive_descriptors(&there, streams.into())?;
        assert_eq!(read_frame::<Event>(&mut there).unwrap(), Event::Exited(ExitStatus::Code(3)));
        std::fs::File::from(taken.remove(0)).write_all(b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        Ok(())
    }

    #[test]
    fn too_few_descriptors_are_told() {
        let (here, there) = UnixStream::pair().unwrap();
        send_descriptors(&here, &[here.as_fd()]).unwrap();
        assert!(receive_descriptors(&there, 2).is_err());
    }
}
