//! The fixture: a utility VM with distributions in it, in a few clear lines.
//!
//! ```no_run
//! use undercroft_harness::{outcome::Outcome, vm::{Kernel, boot, guest_test}};
//!
//! fn a_status_passes_through() -> Outcome {
//!     guest_test(|suite| {
//!         let vm = boot(suite, Kernel::Tuned).cpus(2).memory("512M").distro("a", &suite.busybox).start()?;
//!         assert_eq!(vm.sh("a", "exit 7")?.status.shell(), 7);
//!         vm.power_off()
//!     })
//! }
//! ```

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use undercroft::{
    Archive, Cause, Distribution, Error, FolderOptions, LaunchOptions, Limits, Machine, MachineOptions,
    NetworkOptions, NewDisk, Output, Pipes, Program, Root, Stopper, disk, machine_config,
};
use undercroft_protocol::command::DiskAddress;
use undercroft_vmm::{MachineConfig, config::Description};

use crate::{
    console::{complaint, excerpt},
    lab,
    outcome::{Failure, Outcome, grace, record, skip},
    suite::Suite,
};

/// Lines of a failing guest's console that are shown.
const SHOWN: usize = 25;

/// Which of the suite's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// A distribution's own.
    Stock,
    /// Ours.
    Tuned,
}

/// Runs a guest test's body, or skips it with the reason, and records how it ended.
pub fn guest_test(body: impl FnOnce(&'static Suite) -> Outcome) -> Outcome {
    record(|| match Suite::get() {
        Ok(suite) => body(suite),
        Err(reason) => skip(&reason),
    })
}

/// A last word of a test's on its machine.
type Change = Box<dyn FnOnce(&mut MachineConfig)>;

/// A machine in the making.
pub struct Boot {
    suite: &'static Suite,
    kernel: &'static undercroft_kernel_config::Kernel,
    cpus: u8,
    memory_mib: u64,
    changes: Vec<Change>,
    distros: Vec<Wanted>,
    expected: Vec<String>,
    network: NetworkOptions,
    folders: FolderOptions,
}

/// A distribution that a test wants: layered over a base that others of the same archive share, with users of its own and
/// without limits, unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Wanted {
    name: String,
    archive: PathBuf,
    is_flat: bool,
    own_users: bool,
    own_network: bool,
    limits: Limits,
    disk_size: u64,
    bound: Vec<String>,
}

impl Wanted {
    /// From this archive.
    pub fn new(name: &str, archive: &Path) -> Self {
        Self {
            name: name.into(),
            archive: archive.into(),
            is_flat: false,
            own_users: true,
            own_network: false,
            limits: Limits::default(),
            disk_size: disk::DEFAULT_SIZE,
            bound: Vec::new(),
        }
    }

    /// Everything on a disk of its own.
    pub fn flat(self) -> Self {
        Self { is_flat: true, ..self }
    }

    /// Its root is the VM's.
    pub fn shared_users(self) -> Self {
        Self { own_users: false, ..self }
    }

    /// It has a network of its own.
    pub fn private(self) -> Self {
        Self { own_network: true, ..self }
    }

    /// What it may take.
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The size of its own disk in bytes.
    pub fn disk(self, disk_size: u64) -> Self {
        Self { disk_size, ..self }
    }

    /// Directories that are not to be on overlayfs.
    pub fn bound(self, paths: &[&str]) -> Self {
        Self { bound: paths.iter().map(|&path| path.into()).collect(), ..self }
    }
}

/// A machine with 1 CPU, 512 MiB and this kernel, described as this kernel likes it best.
pub fn boot(suite: &'static Suite, kernel: Kernel) -> Boot {
    let kernel = match kernel {
        Kernel::Stock => &suite.stock,
        Kernel::Tuned => &suite.tuned,
    };
    Boot {
        suite,
        kernel,
        cpus: 1,
        memory_mib: 512,
        changes: Vec::new(),
        distros: Vec::new(),
        expected: usual(),
        network: NetworkOptions::default(),
        folders: FolderOptions::default(),
    }
}

/// Complaints that say nothing of the kernel under test: QEMU's emulated CPU gives KVM in the lab sizes of extended state
/// that do not add up, and every Linux guest there says so.
fn usual() -> Vec<String> {
    if lab::inside() { vec!["fpu__init_system_xstate".into()] } else { Vec::new() }
}

impl Boot {
    /// Virtual CPUs.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// Guest memory: `512M`, `2G`.
    ///
    /// # Panics
    /// If it is not a number with `M` or `G`; it is the test's own text.
    pub fn memory(mut self, size: &str) -> Self {
        let (number, unit) = size.split_at(size.len().saturating_sub(1));
        let number: u64 = number.parse().expect("a size is a number and M or G");
        self.memory_mib = if unit == "G" { number * 1024 } else { number };
        self
    }

    /// How the machine is described to the kernel.
    pub fn described_by(self, description: Description) -> Self {
        self.with(move |config| config.description = description)
    }

    /// Changes anything else of the machine.
    pub fn with(mut self, change: impl FnOnce(&mut MachineConfig) + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Folders of the host's in distributions.
    pub fn folders(mut self, folders: FolderOptions) -> Self {
        self.folders = folders;
        self
    }

    /// How it reaches the world; not at all otherwise.
    pub fn network(mut self, network: NetworkOptions) -> Self {
        self.network = network;
        self
    }

    /// Imports this archive and launches it.
    pub fn distro(self, name: &str, archive: &Path) -> Self {
        self.wants(Wanted::new(name, archive))
    }

    /// The same, as the test wants it.
    pub fn wants(mut self, wanted: Wanted) -> Self {
        self.distros.push(wanted);
        self
    }

    /// A complaint of the kernel's that this test provokes.
    pub fn expecting(mut self, complaint: &str) -> Self {
        self.expected.push(complaint.into());
        self
    }

    /// Boots, imports, launches.
    pub fn start(self) -> Result<Vm, Failure> {
        let scratch = tempfile::Builder::new().prefix("undercroft-test-").tempdir()?;
        let test = std::thread::current().name().unwrap_or("test").replace("::", ".");
        let log = self.suite.logs.join(format!("{test}.{}.log", std::process::id()));
        let mut config = machine_config(self.kernel, self.cpus, self.memory_mib);
        // Warnings too: whatever the kernel complains of ends the test.
        // A kernel that has gone wrong is not waited for.
        config.command_line = config.command_line.replacen("quiet", "loglevel=5 oops=panic", 1);
        for change in self.changes {
            change(&mut config);
        }
        let initramfs = scratch.path().join("initramfs.cpio");
        undercroft_kernel_config::initramfs::build(
            &self.suite.guest.mini_init,
            &self.suite.guest.init,
            &self.kernel.initramfs_modules,
            &initramfs,
        )
        .map_err(harness)?;
        config.initramfs = Some(initramfs);
        let watchdog = Watchdog::default();
        let options = MachineOptions {
            vmm: self.suite.vmm.clone(),
            config,
            modules_disk: self.kernel.modules_disk.clone(),
            console_log: Some(log.clone()),
            network: self.network,
            folders: self.folders,
            patience: if lab::inside() { 20 } else { 1 },
        };
        let started = Machine::start_with(options, |stopper| watchdog.watch(stopper));
        let machine = started.map_err(|e| explain(&e, &log))?;
        let mut vm = Vm {
            suite: self.suite,
            machine: Some(machine),
            _watchdog: watchdog,
            distros: BTreeMap::new(),
            bases: BTreeMap::new(),
            scratch,
            log,
            expected: self.expected,
            searched: false,
        };
        let limit = Duration::from_secs(if lab::inside() { 240 } else { 20 });
        let grown = vm.machine().wait_grown(limit);
        vm.check(grown)?;
        for wanted in &self.distros {
            vm.prepare(wanted)?;
            vm.launch(&wanted.name)?;
        }
        Ok(vm)
    }
}

/// A running machine. Dropped, it is killed, and its console is searched for complaints of the kernel.
pub struct Vm {
    suite: &'static Suite,
    machine: Option<Machine>,
    _watchdog: Watchdog,
    distros: BTreeMap<String, Distro>,
    /// Bases by the archives that they were made of.
    bases: BTreeMap<PathBuf, DiskAddress>,
    scratch: tempfile::TempDir,
    log: PathBuf,
    expected: Vec<String>,
    /// Whether the console has been searched already.
    searched: bool,
}

struct Distro {
    disk: PathBuf,
    options: LaunchOptions,
    running: Option<Distribution>,
}

impl Vm {
    /// The machine itself.
    ///
    /// # Panics
    /// After [`power_off`](Self::power_off), which takes the `Vm`: never.
    pub fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("a Vm has its machine until it is powered off")
    }

    /// Kills the VMM as nobody can keep it from being killed, and waits for its end.
    pub fn kill(&self) -> Result<undercroft::Ending, Failure> {
        let gone = || Failure::Failed("the VMM is gone already".into());
        let pid = self.machine().vmm_pid().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
        let sigkill = nix::sys::signal::Signal::SIGKILL;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), sigkill).map_err(harness)?;
        Ok(self.machine().wait())
    }

    /// Resident memory of the VMM in KiB, its guest's included.
    pub fn resident(&self) -> Result<u64, Failure> {
        let pid = self.machine().vmm_pid().ok_or_else(|| Failure::Failed("the VMM is gone".into()))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|l| l.strip_prefix("Rss:")).unwrap_or_default();
        let number = line.trim().trim_end_matches(" kB").parse();
        number.map_err(|_| Failure::Harness(format!("{line:?}: no number of kB")))
    }

    /// The same when nothing has moved for a while: free pages go back to the host in steps. In this distribution is waited, by
    /// the guest's own clock.
    pub fn settled(&self, name: &str) -> Result<u64, Failure> {
        let mut before = u64::MAX;
        for _ in 0..20 {
            self.read(name, "sleep 3")?;
            let now = self.resident()?;
            if now.abs_diff(before) < 64 {
                return Ok(now);
            }
            before = now;
        }
        Ok(before)
    }

    /// A folder that goes with the test.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The console so far.
    pub fn console(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// A library's result, with an error told as the kind of failure that it is.
    pub fn check<T>(&self, result: Result<T, Error>) -> Result<T, Failure> {
        result.map_err(|e| explain(&e, &self.log))
    }

    /// Makes a flat distribution of an archive, which is not launched yet.
    pub fn import(&mut self, name: &str, archive: &Path) -> Result<(), Failure> {
        self.prepare(&Wanted::new(name, archive).flat())
    }

    /// Makes a distribution, which is not launched yet.
    pub fn prepare(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        let disk = self.scratch.path().join(format!("{}.raw", wanted.name));
        let root = if wanted.is_flat {
            Root::Flat { disk: self.check(self.try_import(&disk, &wanted.archive))? }
        } else {
            let base = self.base(&wanted.archive)?;
            let own = self.check(NewDisk::create(&disk, wanted.disk_size).and_then(NewDisk::keep))?;
            let address = self.check(self.machine().attach_disk(&own, false))?;
            Root::Layered { base, disk: address, bound: wanted.bound.clone() }
        };
        let options = LaunchOptions {
            own_users: wanted.own_users,
            own_network: wanted.own_network,
            limits: wanted.limits,
            ..LaunchOptions::new(&wanted.name, root)
        };
        self.distros.insert(wanted.name.clone(), Distro { disk, options, running: None });
        Ok(())
    }

    /// The base of an archive. Whichever test of a run needs it first makes it, and the others find it.
    fn base(&mut self, archive: &Path) -> Result<DiskAddress, Failure> {
        if let Some(known) = self.bases.get(archive) {
            return Ok(known.clone());
        }
        let path = self.suite.base(archive)?;
        if !path.exists() {
            // In a folder that is this test's: another may make the same at the same time, and either will do. Process ids
            // would not tell them apart, because each lab has its own.
            let folder = tempfile::tempdir_in(&self.suite.bases)?;
            let made = folder.path().join("base");
            let address = self.check(self.try_import(&made, archive))?;
            self.check(self.machine().detach_disk(address))?;
            fs::rename(&made, &path)?;
        }
        let file = self.check(disk::open(&path, true))?;
        let address = self.check(self.machine().attach_disk(&file, true))?;
        self.bases.insert(archive.into(), address.clone());
        Ok(address)
    }

    /// The same without keeping it, for archives that are refused.
    pub fn try_import(&self, path: &Path, archive: &Path) -> Result<DiskAddress, Error> {
        let archive = Archive::open(archive)?;
        let disk = NewDisk::create(path, archive.room())?;
        let address = self.machine().attach_disk(disk.file(), false)?;
        let imported = self.machine().import(address.clone(), archive, |_| ());
        if let Err(error) = imported {
            self.machine().detach_disk(address)?;
            return Err(error);
        }
        disk.keep()?;
        Ok(address)
    }

    /// Changes how it is launched the next time.
    pub fn options(&mut self, name: &str, change: impl FnOnce(&mut LaunchOptions)) -> Outcome {
        let none = || Failure::Harness(format!("the test has no distribution {name}"));
        change(&mut self.distros.get_mut(name).ok_or_else(none)?.options);
        Ok(())
    }

    /// Launches what was imported.
    pub fn launch(&mut self, name: &str) -> Result<(), Failure> {
        let launched = self.check(self.machine().launch(&self.distro(name)?.options))?;
        if let Some(distro) = self.distros.get_mut(name) {
            distro.running = Some(launched);
        }
        Ok(())
    }

    /// Stops it; its files stay.
    pub fn terminate(&mut self, name: &str) -> Outcome {
        let complaints = self.check(self.distribution(name)?.terminate(grace()))?;
        if let Some(distro) = self.distros.get_mut(name) {
            distro.running = None;
        }
        if complaints.is_empty() { Ok(()) } else { Err(Failure::Failed(complaints.join("; "))) }
    }

    /// A running distribution.
    pub fn distribution(&self, name: &str) -> Result<&Distribution, Failure> {
        let running = self.distro(name)?.running.as_ref();
        running.ok_or_else(|| Failure::Harness(format!("the test did not launch {name}")))
    }

    fn distro(&self, name: &str) -> Result<&Distro, Failure> {
        self.distros.get(name).ok_or_else(|| Failure::Harness(format!("the test has no distribution {name}")))
    }

    /// The raw disk of a distribution.
    pub fn disk(&self, name: &str) -> Result<&Path, Failure> {
        Ok(&self.distro(name)?.disk)
    }

    /// Where a distribution's root file system is.
    pub fn root(&self, name: &str) -> Result<&Root, Failure> {
        Ok(&self.distro(name)?.options.root)
    }

    /// Runs a program without input.
    pub fn run(&self, name: &str, program: &Program) -> Result<Output, Failure> {
        self.feed(name, program, Vec::new())
    }

    /// Runs a program with this input.
    pub fn feed(&self, name: &str, program: &Program, input: impl Into<Vec<u8>>) -> Result<Output, Failure> {
        let session = self.check(self.distribution(name)?.exec(program, Pipes::ALL))?;
        self.check(session.output(input))
    }

    /// Runs a shell script.
    pub fn sh(&self, name: &str, script: &str) -> Result<Output, Failure> {
        self.run(name, &Program::new(["/bin/sh", "-c", script]))
    }

    /// What a shell script that succeeds prints, without the last line's end.
    pub fn read(&self, name: &str, script: &str) -> Result<String, Failure> {
        let output = self.sh(name, script)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        if output.status.shell() == 0 {
            Ok(text(&output.stdout))
        } else {
            let (status, stderr) = (output.status.shell(), text(&output.stderr));
            Err(Failure::Failed(format!("in {name}, `{script}` ended with {status}: {stderr}")))
        }
    }

    /// The orderly end. Fails if anything did not go in order, or if the kernel complained of anything on the way.
    pub fn power_off(mut self) -> Outcome {
        self.distros.clear();
        self.searched = true;
        if let Some(machine) = self.machine.take() {
            let end = machine.power_off(grace());
            if end.forced || !end.complaints.is_empty() {
                let what = format!("power-off: {}", end.complaints.join("; "));
                return Err(Failure::Machine { what, console: excerpt(&self.log, SHOWN) });
            }
        }
        self.complaint().map_or(Ok(()), Err)
    }

    fn complaint(&self) -> Option<Failure> {
        let line = complaint(&self.console(), &self.expected)?;
        Some(Failure::GuestPanic { line, console: excerpt(&self.log, SHOWN) })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.machine.take();
        if self.searched {
            return;
        }
        if let Some(failure) = self.complaint() {
            crate::outcome::note(failure.ending(), failure.to_string());
            // A test that asserts nothing of its kernel's health fails by it all the same.
            if !std::thread::panicking() {
                panic!("{failure}");
            }
        }
    }
}

/// Interrupts a machine that a test has had for too long: whatever the test waits for then ends, as a timeout.
#[derive(Default)]
struct Watchdog {
    /// Dropped with the machine, which calls the watching thread off.
    alive: OnceCell<mpsc::Sender<()>>,
}

impl Watchdog {
    fn watch(&self, stopper: Stopper) {
        let limit = Duration::from_secs(if lab::inside() { 600 } else { 60 });
        let (alive, end) = mpsc::channel();
        // It watches one machine only.
        let _ = self.alive.set(alive);
        std::thread::spawn(move || {
            if end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                stopper.interrupt(libc::SIGALRM);
            }
        });
    }
}

fn harness(error: impl std::fmt::Display) -> Failure {
    Failure::Harness(error.to_string())
}

/// An error of the library's as the kind of failure that it is for a test.
fn explain(error: &Error, log: &Path) -> Failure {
    let console = excerpt(log, SHOWN);
    let what = chain(error);
    match error {
        Error::Timeout { .. } => Failure::Timeout { what, console },
        Error::Ended(ending) if ending.cause == Cause::Interrupted(libc::SIGALRM) => {
            Failure::Timeout { what: "the test as a whole took too long".into(), console }
        }
        Error::Ended(ending) if matches!(ending.cause, Cause::GuestPanic(_)) => {
            Failure::GuestPanic { line: what, console }
        }
        _ => Failure::Machine { what, console },
    }
}

/// An error with its causes, first line of each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(error.to_string().lines().next().unwrap_or_default());
        cause = error.source();
    }
    text
}
