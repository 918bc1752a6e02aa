//! A utility VM: the VMM's process, mini-init in it, and what can be asked of the two.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use undercroft_protocol::{
    GUEST_CID,
    command::{Command, DiskAddress, Done, Exported, Imported, Root, Users},
    network::Endpoint,
    opening::GuestHello,
    port,
};
use undercroft_vmm::{
    config::{MachineConfig, Output, VsockConfig},
    control::Statistics,
    virtio::mem::BLOCK,
};

use crate::{
    board::Board,
    console::Log,
    distribution::{Distribution, Given, LaunchOptions},
    error::{Cause, Ending, Error, Result, chain},
    export::{Exporting, Target},
    folders::{FolderOptions, FolderStatus, Folders, SharedFolder},
    guest::{Guest, Pending, wrong},
    import::{Archive, Progress},
    network::{
        Carrier, Network, NetworkOptions, NetworkStatus, Plan,
        ports::{Port, Publication},
    },
    store::{Attached, Disks, Held, Unpack},
    timeline::Timeline,
    users::UserRanges,
    vmm::Vmm,
};
pub use crate::{guest::HELLO, vmm::Stopper};

/// Logical units of the SCSI controller.
const LUNS: u16 = 256;
/// The longest path of a unix socket, in bytes (unix(7), `sun_path` with its final zero).
const SUN_PATH: usize = 107;
/// A guest that writes and writes is powered off after this time all the same.
const FLUSH: Duration = Duration::from_secs(600);

/// What a utility VM is made of.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// The `undercroft-vmm` program.
    pub vmm: PathBuf,
    /// The machine. Its vsock, SCSI controller, serial output and control descriptor are set by [`Machine::start`].
    pub config: MachineConfig,
    /// A disk with the kernel's modules, if it has one.
    pub modules_disk: Option<PathBuf>,
    /// Where the guest's console is logged; `None` is a file that goes with the machine.
    pub console_log: Option<PathBuf>,
    /// How it reaches the world. Its network card in `config` is set by this.
    pub network: NetworkOptions,
    /// Folders of the host's in distributions. The VMM's devices for them in `config` are set by this.
    pub folders: FolderOptions,
    /// How many times longer than on hardware things may take: 1, or more in a machine made in software.
    pub patience: u32,
}

/// A running utility VM. Dropping it kills it; [`power_off`](Self::power_off) is the orderly end.
#[derive(Debug)]
pub struct Machine {
    guest: Arc<Guest>,
    network: Network,
    vmm: Vmm,
    // After the VMM, whose end ends them.
    folders: Folders,
    hello: GuestHello,
    luns: Mutex<BTreeSet<u16>>,
    users: UserRanges,
    disks: Disks,
    /// The request to grow, until it was answered.
    growing: Mutex<Option<Pending>>,
    // Last: the sockets and logs in it go after everything that uses them.
    _directory: tempfile::TempDir,
}

/// How an orderly end went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerOff {
    /// What did not go in order, a line each; empty if all did.
    pub complaints: Vec<String>,
    /// Whether the VMM had to be killed.
    pub forced: bool,
}

impl Machine {
    /// Starts the VMM and waits until mini-init has said hello. The machine may still be growing then: to the CPUs and the
    /// memory of its configuration ([`wait_grown`](Self::wait_grown)).
    pub fn start(options: MachineOptions) -> Result<Self> {
        Self::start_with(options, |_| ())
    }

    /// The same; `running` gets a handle to stop the machine as soon as its process runs.
    pub fn start_with(options: MachineOptions, running: impl FnOnce(Stopper)) -> Result<Self> {
        let limit = Duration::from_secs(30) * options.patience.max(1);
        Self::start_within(options, limit, running)
    }

    /// The same; mini-init has to say hello in this time, or it is an [`Error::Timeout`] of [`HELLO`].
    pub fn start_within(
        options: MachineOptions,
        limit: Duration,
        running: impl FnOnce(Stopper),
    ) -> Result<Self> {
        let directory = runtime_directory()?;
        let lasting = options.console_log.is_some();
        let path = options.console_log.unwrap_or_else(|| directory.path().join("console.log"));
        let log = Log { path, lasting };
        let kept = directory.path();
        File::create(&log.path).map_err(|source| Error::File {
            what: "create",
            path: log.path.clone(),
            source,
        })?;
        let board = Arc::new(Board::new(Some(log.clone())));
        let socket = kept.join("vsock.sock");
        let listening = kept.join(format!("vsock.sock_{}", port::UNDERCROFT));
        let guest = Arc::new(Guest::listen(&listening, board.clone(), options.patience)?);

        let mut config = options.config;
        config.scsi = true;
        let failed = |source| Error::System { what: "make a pair of sockets", source };
        let (carrier, carried) = Carrier::pair().map_err(failed)?;
        let carrier_fd = Some(carried.as_raw_fd());
        config.vsock = Some(VsockConfig { cid: GUEST_CID as u32, socket, carrier_fd });
        config.serial = Output::File(log.path);
        let plan = Plan::new(options.network);
        config.network = plan.card();
        let (cpus, boot_mib, most_mib) = (config.cpus, config.memory_mib, config.max_memory_mib);
        let users = UserRanges::default();
        let (folders, devices) = Folders::start(options.folders, &users, kept, &board);
        let (devices, mut inherited): (_, Vec<_>) = devices.into_iter().unzip();
        inherited.push(carried);
        config.folders = devices;
        let vmm = Vmm::start(&options.vmm, config, inherited, kept.join("vmm.log"), &board)?;
        running(vmm.stopper());
        let network = plan.start(&vmm, kept, &board)?;
        let hello = guest.greet(limit)?;
        let mut machine = Self {
            guest,
            network,
            vmm,
            folders,
            hello,
            luns: Mutex::default(),
            users,
            disks: Disks::default(),
            growing: Mutex::default(),
            _directory: directory,
        };
        machine.grow(cpus, boot_mib, most_mib.unwrap_or(boot_mib))?;
        if let Some(path) = options.modules_disk {
            let file = File::open(&path).map_err(|source| Error::File { what: "open", path, source })?;
            let disk = machine.attach_disk(&file, true)?;
            let limit = machine.guest.limit(30);
            machine.guest.ask_nothing("use the kernel's modules", Command::Modules { disk }, limit)?;
        }
        machine.network.introduce(&machine.guest, machine.vmm.control(), carrier)?;
        Ok(machine)
    }

    /// Begins to make the machine what it is to be: it has booted with one CPU and little memory, because a boot's cost
    /// grows with both.
    fn grow(&self, cpus: u8, boot_mib: u64, most_mib: u64) -> Result<()> {
        let more = (most_mib - boot_mib.min(most_mib)) << 20;
        if cpus == 1 && more == 0 {
            return Ok(());
        }
        let limit = self.guest.limit(60);
        if more > 0 {
            self.vmm.control().set_memory(most_mib, self.guest.limit(10))?;
        }
        let command = Command::Grow {
            memory: self.hello.memory + more / BLOCK * BLOCK,
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        };
        *self.growing.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.guest.send(command)?);
        Ok(())
    }

    /// Waits until the machine has all its CPUs and its memory. What it could not get is told once, here or, if nobody
    /// waits, as a [warning](Self::warnings).
    pub fn wait_grown(&self, limit: Duration) -> Result<()> {
        const WHAT: &str = "grow";
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = growing.as_ref() else { return Ok(()) };
        let outcome =
            self.guest.board.wait("the machine to grow", Some(limit), |state| pending.look(WHAT, state));
        if !matches!(outcome, Err(Error::Timeout { .. })) {
            *growing = None;
        }
        match outcome? {
            Done::Nothing => Ok(()),
            other => Err(wrong(WHAT, &other)),
        }
    }

    /// Asks the guest to have so many MiB of memory, from what it booted with to what its configuration allows. It gets
    /// there in its own time, down only as far as it can do without; [`statistics`](Self::statistics) tell.
    pub fn set_memory(&self, mib: u64) -> Result<()> {
        self.vmm.control().set_memory(mib, self.guest.limit(10))
    }

    /// How it is with the network.
    pub fn network(&self) -> NetworkStatus {
        self.network.status()
    }

    /// How it is with the host's folders.
    pub fn folders(&self) -> Vec<FolderStatus> {
        self.folders.status()
    }

    /// Gives a distribution that runs a folder of the host's, which it has until it stops. Without effect if it has it already.
    pub fn bring_folder(&self, distribution: &Distribution, folder: SharedFolder) -> Result<()> {
        self.folders.bring(&self.guest, distribution.id(), folder, &self.users)
    }

    /// Stops a distribution as [`Distribution::terminate`] does, even one whose processes wait for a folder that does not answer.
    pub fn terminate(&self, distribution: &Distribution, grace: Duration) -> Result<Vec<String>> {
        let name = distribution.name();
        distribution.terminate_or(grace, || self.folders.let_go(Some(name), name))
    }

    /// Has everybody who reaches this address of the host's reach the same port of a distribution's, as long as it listens there
    /// and as what this gives lasts.
    pub fn publish(&self, distribution: &Distribution, at: Endpoint) -> Result<Publication> {
        self.network.publish(at, distribution.id())
    }

    /// What distributions listen for, and where it is reached on the host.
    pub fn ports(&self) -> Vec<Port> {
        self.network.ports()
    }

    /// passt's process id, as long as it runs.
    pub fn passt_pid(&self) -> Option<u32> {
        self.network.passt_pid()
    }

    /// How the VMM says the machine is.
    pub fn statistics(&self) -> Result<Statistics> {
        self.vmm.control().statistics(self.guest.limit(10))
    }

    /// mini-init, connected.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What mini-init said of itself.
    pub fn hello(&self) -> &GuestHello {
        &self.hello
    }

    /// The VMM's process id, as long as it runs.
    pub fn vmm_pid(&self) -> Option<u32> {
        self.vmm.pid()
    }

    /// A handle to stop it from any thread.
    pub fn stopper(&self) -> Stopper {
        self.vmm.stopper()
    }

    /// Asks mini-init for a sign of life.
    pub fn ping(&self) -> Result<()> {
        self.guest.ask_nothing("answer", Command::Ping, self.guest.limit(10))
    }

    /// Plugs a disk in: a raw file or block device, opened for writing unless it is read-only.
    pub fn attach_disk(&self, disk: &File, read_only: bool) -> Result<DiskAddress> {
        let lun = {
            let mut luns = self.luns.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(free) = (0..LUNS).find(|lun| !luns.contains(lun)) else {
                let message = format!("all {LUNS} places for disks are taken");
                return Err(Error::Vmm { what: "attach a disk", message });
            };
            luns.insert(free);
            free
        };
        let free = || {
            self.luns.lock().unwrap_or_else(PoisonError::into_inner).remove(&lun);
        };
        let limit = self.guest.limit(10);
        self.vmm.control().attach(lun, read_only, disk.as_fd(), limit).inspect_err(|_| free())?;
        let address = DiskAddress::Lun(lun);
        let known =
            self.guest.ask("find the disk", Command::AttachDisk(address.clone()), Some(self.guest.limit(30)));
        match known {
            Ok(Done::Attached { .. }) => Ok(address),
            Ok(other) => Err(wrong("find the disk", &other)),
            Err(error) => {
                // The guest does not know it: taking it away again surprises nobody, and the first error counts.
                if self.vmm.control().detach(lun, limit).is_ok() {
                    free();
                }
                Err(error)
            }
        }
    }

    /// Unplugs a disk that nothing uses any more; what was written to it is flushed before.
    pub fn detach_disk(&self, disk: DiskAddress) -> Result<()> {
        let limit = self.guest.limit(30);
        let lun = if let DiskAddress::Lun(lun) = disk { Some(lun) } else { None };
        self.guest.ask_nothing("let go of the disk", Command::DetachDisk(disk), limit)?;
        if let Some(lun) = lun {
            self.vmm.control().detach(lun, limit)?;
            self.luns.lock().unwrap_or_else(PoisonError::into_inner).remove(&lun);
        }
        Ok(())
    }

    /// Unpacks an archive onto an empty file system; `progress` is called a few times a second.
    pub fn import(
        &self,
        disk: DiskAddress,
        archive: Archive,
        progress: impl FnMut(Progress),
    ) -> Result<Imported> {
        crate::import::import(&self.guest, disk, archive, progress)
    }

    /// Packs the root of a distribution that does not run into an archive. `progress` is called a few times a second, whether
    /// anything moves or not; an error of its ends the export and is given back. What was written until then is the caller's
    /// to remove.
    pub fn export(
        &self,
        root: &Root,
        to: &Target<'_>,
        mut progress: impl FnMut(Exporting) -> Result<()>,
    ) -> Result<Exported> {
        crate::export::export(&self.guest, root, to, &mut progress)
    }

    /// Makes an empty file a disk with all of a distribution's files on it, for
    /// [`Store::adopt`](crate::Store::adopt) and others; its size is `size` in bytes, or the larger of the distribution's
    /// disks'. Flat distributions' disks are copied as they are. `progress` as for [`export`](Self::export).
    pub fn export_image(
        &self,
        attached: &Attached,
        image: &File,
        name: &Path,
        size: Option<u64>,
        mut progress: impl FnMut(Exporting) -> Result<()> + Send,
    ) -> Result<()> {
        crate::export::image(self, attached, &crate::export::Image { file: image, name, size }, &mut progress)
    }

    /// Plugs in the disks of a distribution of a store; [`Attached::root`] is what to launch then.
    pub fn attach(&self, held: Held) -> Result<Attached> {
        self.disks.attach(self, held)
    }

    /// Unplugs the disks of a distribution that has ended. A base goes with its last user.
    pub fn detach(&self, attached: Attached) -> Result<()> {
        self.disks.detach(self, attached)
    }

    /// Something that unpacks archives onto a store's disks in this machine; `progress` is called a few times a second.
    pub fn unpacker(&self, progress: impl FnMut(Progress)) -> impl Unpack {
        Unpacker { machine: self, progress }
    }

    /// Starts a distribution, and waits until it takes sessions.
    pub fn launch(&self, what: &LaunchOptions) -> Result<Distribution> {
        let users = if what.own_users { self.users.of(&what.name)? } else { Users::Shared };
        let id = self.guest.distribution_id();
        let wire = what.own_network.then(|| self.network.wire(id));
        self.network.note_name(&what.name, wire.as_ref())?;
        let folders = self.folders.of(&what.name);
        let distribution = Distribution::launch(&self.guest, what, Given { id, users, wire, folders })?;
        for folder in self.folders.lost(&what.name) {
            let place = folder.guest.clone();
            if let Err(error) = self.bring_folder(&distribution, folder) {
                self.guest.board.warn(format!("{} has no {place}: {}", what.name, chain(&error)));
            }
        }
        self.network.settle(&self.guest.board, self.guest.limit(10));
        Ok(distribution)
    }

    /// What the guest warned of since the last call, a line each.
    pub fn warnings(&self) -> Vec<String> {
        self.guest.board.update(|state| std::mem::take(&mut state.warnings))
    }

    /// Where the time went so far.
    pub fn timeline(&self) -> Timeline {
        Timeline::new(&self.guest.board.lock().marks)
    }

    /// How the machine ended, if it has.
    pub fn end(&self) -> Option<Ending> {
        self.guest.board.lock().ended.clone()
    }

    /// Waits for the machine's end, which nobody asked for.
    pub fn wait(&self) -> Ending {
        loop {
            match self.guest.board.wait::<()>("the machine's end", None, |_| None) {
                Err(Error::Ended(ending)) => return *ending,
                // A lost connection is not the end yet.
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Stops every distribution (each gets the grace time to end by itself), unmounts, and powers off. What does not
    /// end in time is killed; but as long as there is something left to write, there is time, unless there is no grace. Of a
    /// machine that has ended nothing is left to do.
    pub fn power_off(&self, grace: Duration) -> PowerOff {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let limit = self.guest.limit(10);
        let request = self.guest.send(Command::PowerOff { grace_ms });
        // Gigabytes may be still to be written, by a disk that is slow: as long as something is, it is waited for.
        let (started, mut before) = (Instant::now(), None);
        let writes = || {
            let now = self.statistics().ok().map(|statistics| statistics.disk_writes);
            let more = now.is_some() && std::mem::replace(&mut before, now) != now;
            more && !grace.is_zero() && started.elapsed() < FLUSH
        };
        let asked = request.and_then(|request| {
            let let_go = || self.folders.let_go(None, "the virtual machine");
            request.stopped("power off", (grace, limit), writes, let_go)
        });
        let (mut complaints, patience) = match asked {
            Ok(complaints) => (complaints, limit),
            Err(error @ Error::WrongAnswer { .. }) => (vec![error.to_string()], limit),
            // The power may be off before the reply was read.
            Err(Error::Ended(ending)) if ending.cause == Cause::PowerOff => (Vec::new(), limit),
            Err(error) => (vec![error.to_string()], Duration::ZERO),
        };
        let forced = !self.ended_within(patience);
        self.vmm.kill();
        self.guest.hang_up();
        match self.end() {
            Some(ending) if !forced && ending.cause != Cause::PowerOff => complaints.push(ending.to_string()),
            _ => {}
        }
        PowerOff { complaints, forced }
    }

    /// Whether the process ends in time. The guest's connections end earlier and tell nothing.
    fn ended_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.vmm.pid().is_some() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

struct Unpacker<'a, P> {
    machine: &'a Machine,
    progress: P,
}

impl<P: FnMut(Progress)> Unpack for Unpacker<'_, P> {
    fn unpack(&mut self, disk: &File, archive: Archive) -> Result<Imported> {
        let address = self.machine.attach_disk(disk, false)?;
        let imported = self.machine.import(address.clone(), archive, &mut self.progress);
        // Whatever came of it; the first error counts.
        let detached = self.machine.detach_disk(address);
        imported.and_then(|imported| detached.map(|()| imported))
    }

    fn waiting(&mut self) -> Result<()> {
        self.machine.end().map_or(Ok(()), |ending| Err(Error::Ended(Box::new(ending))))
    }
}

/// A private directory for sockets, short enough for their paths.
fn runtime_directory() -> Result<tempfile::TempDir> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let make = |base: &Path| tempfile::Builder::new().prefix("undercroft-").tempdir_in(base);
    let long_enough = "vsock.sock_4294967295".len() + 1;
    if let Some(directory) = runtime.and_then(|base| make(&base).ok())
        && directory.path().as_os_str().len() + long_enough <= SUN_PATH
    {
        return Ok(directory);
    }
    let base = Path::new("/tmp");
    make(base).map_err(|source| Error::File { what: "make a directory in", path: base.into(), source })
}
