//! What the host asks of mini-init, and what mini-init tells.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{
    network::{Names, Network, Wire},
    opening::Mark,
    opening::Token,
    session::ExitStatus,
};

/// A request, with a number of the host's own that its [`Reply`] repeats. Requests may be answered out of order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What the host can ask of mini-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Answer [`Done::Nothing`]: shows that mini-init lives.
    Ping,
    /// Make a disk that the VMM has attached known to the kernel: answered when its block device is there.
    AttachDisk(DiskAddress),
    /// Let the kernel forget a disk, after what is on it was unmounted and flushed.
    DetachDisk(DiskAddress),
    /// The kernel's modules are on this disk; the kernel's requests for modules are served from it from now on.
    Modules {
        /// A disk with an ext4 file system holding `lib/modules/RELEASE`, mounted read-only.
        disk: DiskAddress,
    },
    /// Unpack a root file system.
    Import(Import),
    /// Start a distribution. Answered with [`Done::Launched`] when its init has been executed; that it is ready is said
    /// by itself, on its own connection.
    Launch(Launch),
    /// Stop a distribution: its init gets SIGTERM (which it passes on), after the grace time SIGKILL. Its file system
    /// is unmounted and flushed before the reply.
    Terminate {
        /// [`Launch::id`].
        distribution: u32,
        /// Milliseconds between the two signals.
        grace_ms: u32,
    },
    /// Stop every distribution, sync, unmount, and power the VM off. The reply comes before the power goes; it names
    /// what could not be stopped or unmounted.
    PowerOff {
        /// Milliseconds that the distributions get, together.
        grace_ms: u32,
    },
    /// Start the CPUs that are not running, and wait for memory that the VMM is adding: answered with [`Done::Nothing`] when
    /// all of it is in use.
    Grow {
        /// Bytes of memory that the kernel will have to give away then (MemTotal).
        memory: u64,
        /// Milliseconds after which it is a failure that it has not.
        limit_ms: u32,
    },
    /// How memory that is only a cache is given back, from now on. Until it is told, mini-init gives back none.
    Reclaim(Reclaim),
    /// Give the machine swap. It is used until the power goes.
    SwapOn(Swap),
    /// Set the clock to the host's. Answered with [`Done::Clock`].
    SetTime {
        /// The host's CLOCK_REALTIME, in nanoseconds.
        realtime_ns: u64,
        /// Milliseconds by which the guest's may be off without being set.
        tolerance_ms: u32,
    },
    /// Stream the root file system of a distribution that does not run to the host, as a tar archive.
    Export(Export),
    /// Set the network card up; again, when something of it has changed.
    Network(Network),
    /// Write down what names mean, in place of what was written before.
    Names(Names),
    /// Start the relay between the host's loopback and the VM's listeners: answered with [`Done::Nothing`] when it has
    /// connected to the host. It runs as long as that connection.
    Relay {
        /// With which it connects.
        token: Token,
    },
    /// Give the loopback device this address, and pass what is asked of a name server there on to the host: answered with
    /// [`Done::Nothing`] when it can be asked. It can as long as the connection with this token.
    Resolver {
        /// With which it connects.
        token: Token,
        /// Where it is asked, at port 53.
        address: Ipv4Addr,
    },
    /// Mount a folder of the host's in a distribution that runs: answered with [`Done::Nothing`] when it is in its place. It is
    /// there until the distribution stops, or the stream with this token ends.
    Share(Share),
    /// Say what is used now. Answered with [`Done::Usage`].
    Usage,
}

/// Giving back memory that the distributions use as a cache, when the machine has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// In which way.
    pub mode: ReclaimMode,
    /// Milliseconds for which the distributions must have used nearly no CPU.
    pub idle_ms: u32,
    /// Milliseconds between two looks, and between two steps of [`ReclaimMode::Gradual`].
    pub poll_ms: u32,
    /// Bytes that [`ReclaimMode::Gradual`] leaves them.
    pub floor: u64,
}

impl Reclaim {
    /// As the reference system has it: idle is two minutes, with a look each ten seconds; 128 MiB stay.
    pub fn new(mode: ReclaimMode) -> Self {
        Self { mode, idle_ms: 120_000, poll_ms: 10_000, floor: 128 << 20 }
    }
}

/// The ways of giving memory back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReclaimMode {
    /// Not at all. What is free goes back in any case, by free page reporting.
    Disabled,
    /// Everything that the kernel can drop, once in each idle time.
    DropCache,
    /// A part at each look, what was used longest ago first; to swap too, if there is some.
    Gradual,
}

/// Room for memory that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Swap {
    /// All of a disk, whatever is on it.
    Disk(DiskAddress),
    /// So many bytes of the machine's own memory, compressed. Used before any disk.
    Zram {
        /// Bytes before compression.
        bytes: u64,
    },
}

/// Directories that the host binds from the own disk of each layered distribution: container engines keep there what they
/// stack by overlayfs themselves, and overlayfs is refused as an upper layer (fs/overlayfs/params.c of Linux 6.12, `not
/// supported as upperdir`). Absolute paths.
pub const BOUND: [&str; 4] =
    ["/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/buildkit"];

/// Where a disk of the VM is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskAddress {
    /// A virtio-blk disk by its serial number (at most 20 ASCII bytes), present from the boot on.
    Serial(String),
    /// A logical unit of the virtio-scsi controller (target 0).
    Lun(u16),
}

/// Unpacking a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// An empty ext4 file system, which the archive is unpacked into.
    pub disk: DiskAddress,
    /// mini-init opens a stream with it, and reads the tar archive (not compressed) from there to its end marker.
    pub archive: Token,
}

/// Packing a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Where it is. Of the bound directories, those count that the own disk has.
    pub root: Root,
    /// mini-init opens a stream with it, and writes the tar archive (not compressed, with its end marker) there. Only the
    /// reply says that all of it was written.
    pub archive: Token,
}

/// Starting a distribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Chosen by the host, never used twice in one boot of the VM. Also the cgroup's name.
    pub id: u32,
    /// The distribution's name, `[a-zA-Z0-9._-]{1,256}`.
    pub name: String,
    /// Its UTS host name.
    pub hostname: String,
    /// Where its root file system is.
    pub root: Root,
    /// Who its users are in the VM.
    pub users: Users,
    /// How much of the VM it may take.
    pub limits: Limits,
    /// Its own network, if it has one; the VM's otherwise, as all others.
    pub network: Option<Wire>,
    /// Folders of the host's that it sees, at most [`FOLDERS_MAX`].
    pub folders: Vec<Folder>,
    /// The token with which its init connects to the host.
    pub token: Token,
}

/// The most folders that a distribution can have.
pub const FOLDERS_MAX: usize = 32;

/// A folder of the host's in a distribution: a virtio-fs device of the VM. That it cannot be had is a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// The device's tag.
    pub tag: String,
    /// Where it is seen: an absolute path in the distribution, without links or `..`. Directories on the way are made.
    pub place: String,
    /// Whether it is mounted read-only. (That nothing can be written is for the host to see to.)
    pub read_only: bool,
}

/// Sharing a folder with a distribution that runs, by a stream instead of a device.
///
/// On the stream are FUSE's messages as /dev/fuse has them (linux/fuse.h, version 7): to the host requests, each of
/// `fuse_in_header.len` bytes, to the guest answers, each of `fuse_out_header.len` bytes; neither is longer than
/// [`FUSE_MESSAGE_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// [`Launch::id`].
    pub distribution: u32,
    /// The folder. Its tag is only the name that it has in the distribution's list of mounts.
    pub folder: Folder,
    /// mini-init opens a stream with it.
    pub token: Token,
}

/// The most bytes of a file in one message on a [`Share`]'s stream: those that the kernel reads ahead, and FUSE's own limit for who
/// names none (32 pages, `FUSE_DEFAULT_MAX_PAGES_PER_REQ`). What is larger is memory on both sides for as long as the folder is there.
pub const FUSE_PAYLOAD_MAX: usize = 128 << 10;
/// The longest message: those, and a page for what stands before them.
pub const FUSE_MESSAGE_MAX: usize = FUSE_PAYLOAD_MAX + 4096;

/// A distribution's root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// Everything on one disk of its own (ext4).
    Flat {
        /// The disk.
        disk: DiskAddress,
    },
    /// A base that others use too, and on its own disk what it changes.
    Layered {
        /// What was imported: ext4, never written to.
        base: DiskAddress,
        /// Its own disk (ext4), empty at the first launch.
        disk: DiskAddress,
        /// Directories that cannot live on overlayfs: absolute paths in the distribution, without links or `..`, each
        /// bound from the own disk.
        bound: Vec<String>,
    },
}

impl Root {
    /// The disk that the distribution writes to.
    pub fn own_disk(&self) -> &DiskAddress {
        match self {
            Self::Flat { disk } | Self::Layered { disk, .. } => disk,
        }
    }
}

/// Who a distribution's users are in the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Users {
    /// In a user namespace of its own: user 0 of the distribution is `first` in the VM, and so on. Owners on its disks are
    /// those that it sees itself, whatever the range.
    Own {
        /// The first user and group id, in the VM.
        first: u32,
        /// How many ids there are, from 0 on, in the distribution.
        count: u32,
    },
    /// The VM's own: its root may do with the whole VM what it likes.
    Shared,
}

/// How much of the VM a distribution may take; what is `None` has no limit (cgroup v2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `memory.max`, in bytes.
    pub memory: Option<u64>,
    /// `cpu.max`, in thousandths of a CPU.
    pub cpu_milli: Option<u32>,
    /// `pids.max`: processes and threads.
    pub pids: Option<u32>,
    /// `io.max` of the own disk: bytes a second, read and written each.
    pub io_bytes: Option<u64>,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// [`Request::id`].
    pub id: u64,
    /// What came of it.
    pub outcome: Result<Done, Failure>,
}

/// A request that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// There is nothing more to say.
    Nothing,
    /// [`Command::AttachDisk`]: the block device's name (`sda`) and size in bytes.
    Attached {
        /// The name below /dev.
        device: String,
        /// Bytes.
        size: u64,
    },
    /// [`Command::Import`].
    Imported(Imported),
    /// [`Command::Launch`]: the init's process id in the VM's own PID namespace.
    Launched {
        /// Process id.
        pid: u32,
        /// What was done when, for the timeline.
        marks: Vec<Mark>,
    },
    /// [`Command::Terminate`] and [`Command::PowerOff`]: what did not go in order, a line each; empty if all did.
    Stopped {
        /// For people to read.
        complaints: Vec<String>,
    },
    /// [`Command::SetTime`].
    Clock {
        /// Nanoseconds that the guest's clock was behind the host's; negative if it was ahead. Within the tolerance it
        /// still is.
        behind_ns: i64,
    },
    /// [`Command::Export`].
    Exported(Exported),
    /// [`Command::Usage`].
    Usage(Usage),
}

/// What the machine and its distributions use at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of memory that the kernel has to give away (proc_meminfo(5), MemTotal).
    pub memory: u64,
    /// Bytes of it that programs can still have, what is only a cache included (MemAvailable).
    pub available: u64,
    /// Bytes of swap (SwapTotal).
    pub swap: u64,
    /// Bytes of it that are free (SwapFree).
    pub swap_free: u64,
    /// Those that run.
    pub distributions: Vec<DistributionUsage>,
}

/// What one distribution uses at a moment, by its cgroup (Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistributionUsage {
    /// [`Launch::id`].
    pub distribution: u32,
    /// Bytes of memory that only its end gives back: `memory.current` without the files' cache.
    pub memory: u64,
    /// Bytes of files that it read or wrote first, and that the kernel remembers (`file` without `shmem` in `memory.stat`).
    pub cache: u64,
    /// Microseconds of CPU time since it was started (`usage_usec` in `cpu.stat`).
    pub cpu_us: u64,
}

/// What an export packed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Archive entries.
    pub entries: u64,
    /// Bytes of archive.
    pub bytes: u64,
    /// What an archive cannot hold, a line each, at most a hundred.
    pub warnings: Vec<String>,
}

/// What an import unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Archive entries.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries that could not be taken as they were, a line each, at most a hundred.
    pub warnings: Vec<String>,
}

/// A request that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of thing went wrong, for programs.
    pub kind: FailureKind,
    /// What went wrong and where, in one sentence, for people.
    pub message: String,
}

/// The kinds of failure that a host acts on differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request makes no sense (an unknown distribution, an id used twice).
    Invalid,
    /// The disk is not there, or holds no file system that can be mounted.
    Disk,
    /// The archive is not a tar archive, is damaged or was cut off.
    Archive,
    /// The archive does not hold a root file system for this machine.
    NotARoot,
    /// No space is left on the disk.
    NoSpace,
    /// The kernel refused something else.
    System,
}

/// What mini-init tells without having been asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far an import is; about four a second.
    ImportProgress {
        /// Archive entries unpacked so far.
        entries: u64,
        /// Bytes of archive read so far.
        bytes: u64,
    },
    /// A distribution's init has ended, by itself or because it was asked to. Its processes are gone.
    DistributionEnded {
        /// [`Launch::id`].
        distribution: u32,
        /// How its PID 1 ended.
        status: ExitStatus,
    },
    /// Something that a person should read.
    Warning(String),
    /// How far an export is; about four a second.
    ExportProgress {
        /// [`Export::archive`].
        archive: Token,
        /// Archive entries packed so far.
        entries: u64,
        /// Bytes that the root's disks hold, of which a good part is content: about as long as the archive will be.
        about: u64,
    },
}
