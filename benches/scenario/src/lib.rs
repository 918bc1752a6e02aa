//! A utility VM with distributions in it, made through the `undercroft` library as the product makes it: the stage for
//! everything that is measured beyond a boot. The scenario program plays on it in the ruler's machine, the Criterion
//! benchmarks wherever they run.

pub mod product;
pub mod traffic;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use undercroft::{
    Archive, DiskAddress, Distribution, LaunchOptions, Machine, MachineOptions, NetworkOptions, NewDisk, Root,
};
use undercroft_ruler_runner::{Said, TAG_SPAN_BEGIN, TAG_SPAN_END, marker::mark, residence};
use undercroft_vmm::MachineConfig;

/// What a stage's functions give back. Whatever goes wrong ends the measurement, and somebody reads why.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The program in a distribution that executes the marker and ends.
pub const PROGRAM: &str = "/marker";

/// How long all is left alone before a [`span`], so that nothing of what was before is counted in it.
const SETTLE: Duration = Duration::from_millis(300);

/// Does something between two markers, and says what it was.
pub fn span(name: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
    thread::sleep(SETTLE);
    mark::<TAG_SPAN_BEGIN>();
    let done = what();
    mark::<TAG_SPAN_END>();
    done?;
    Said::Span { name: name.into(), moments: Vec::new() }.say();
    Ok(())
}

/// What the stage is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setting {
    /// The `undercroft-vmm` program.
    pub vmm: PathBuf,
    /// The machine, as [`MachineOptions::config`].
    pub config: MachineConfig,
    /// The kernel's modules, if they are on a disk.
    pub modules_disk: Option<PathBuf>,
    /// The distribution, as a tar; it holds [`PROGRAM`].
    pub archive: PathBuf,
    /// How its root is made.
    pub root: RootKind,
    /// Whether its users are nobody outside it.
    pub own_users: bool,
    /// How many idle distributions are looked at.
    pub idle: u32,
    /// Whether the distribution asks for systemd: then only its launches are played.
    pub systemd: bool,
    /// How many times longer than on hardware things may take.
    pub patience: u32,
}

/// Which [`Root`] distributions get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKind {
    /// Everything on a disk of its own.
    Flat,
    /// A base that all share, and a disk of its own.
    Layered,
}

impl Setting {
    /// Reads what was written as JSON.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

/// A running machine, and the disks that were made for it.
pub struct Stage {
    /// The machine.
    pub machine: Machine,
    setting: Setting,
    base: Option<DiskAddress>,
    disks: tempfile::TempDir,
    made: u32,
}

impl Stage {
    /// Starts the machine, without a network.
    pub fn start(setting: &Setting) -> Result<Self> {
        Self::start_with(setting, NetworkOptions::default())
    }

    /// Starts the machine.
    pub fn start_with(setting: &Setting, network: NetworkOptions) -> Result<Self> {
        let options = MachineOptions {
            vmm: setting.vmm.clone(),
            config: setting.config.clone(),
            modules_disk: setting.modules_disk.clone(),
            console_log: None,
            network,
            folders: Default::default(),
            patience: setting.patience,
        };
        let machine = Machine::start(options)?;
        let disks = tempfile::Builder::new().prefix("undercroft-stage-").tempdir()?;
        Ok(Self { machine, setting: setting.clone(), base: None, disks, made: 0 })
    }

    /// An empty disk in the machine.
    pub fn empty_disk(&mut self) -> Result<DiskAddress> {
        self.disk_of(undercroft::disk::DEFAULT_SIZE)
    }

    fn disk_of(&mut self, bytes: u64) -> Result<DiskAddress> {
        self.made += 1;
        let path = self.disks.path().join(format!("{}.raw", self.made));
        let file = NewDisk::create(&path, bytes)?.keep()?;
        Ok(self.machine.attach_disk(&file, false)?)
    }

    /// Unpacks the distribution onto a disk.
    pub fn import(&self, disk: &DiskAddress) -> Result<()> {
        self.machine.import(disk.clone(), Archive::open(&self.setting.archive)?, |_| ())?;
        Ok(())
    }

    /// The root of one more distribution: nothing of it has been used yet.
    pub fn root(&mut self) -> Result<Root> {
        let disk = self.empty_disk()?;
        if self.setting.root == RootKind::Flat {
            self.import(&disk)?;
            return Ok(Root::Flat { disk });
        }
        let base = match &self.base {
            Some(base) => base.clone(),
            None => {
                let room = Archive::open(&self.setting.archive)?.room();
                let base = self.disk_of(room)?;
                self.import(&base)?;
                self.base.insert(base).clone()
            }
        };
        Ok(Root::Layered { base, disk, bound: Vec::new() })
    }

    /// Launches a distribution, and waits until it takes sessions.
    pub fn launch(&self, name: &str, root: &Root) -> Result<Distribution> {
        let options =
            LaunchOptions { own_users: self.setting.own_users, ..LaunchOptions::new(name, root.clone()) };
        Ok(self.machine.launch(&options)?)
    }

    /// Stops a distribution; complaints are errors.
    pub fn terminate(&self, distribution: &Distribution) -> Result<()> {
        let complaints = distribution.terminate(self.limit())?;
        if complaints.is_empty() { Ok(()) } else { Err(complaints.join("; ").into()) }
    }

    /// How long an orderly end may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(if self.setting.systemd { 60 } else { 10 })
    }

    /// The VMM's memory in RAM, in KiB: beyond the guest's, and all of it.
    pub fn resident_kib(&self) -> Result<(u64, u64)> {
        let pid = self.machine.vmm_pid().ok_or("the VMM has ended")?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let beyond = residence::beyond_guest_kib(&smaps, self.setting.config.memory_mib);
        Ok((beyond, residence::beyond_guest_kib(&smaps, u64::MAX / 1024)))
    }

    /// The orderly end; complaints are errors.
    pub fn power_off(self) -> Result<()> {
        let end = self.machine.power_off(self.limit());
        if end.complaints.is_empty() && !end.forced { Ok(()) } else { Err(end.complaints.join("; ").into()) }
    }
}
