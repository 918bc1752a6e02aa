//! The boots that are measured: the VMM with the product's devices, from its execve(2) to mini-init's greeting.

use std::path::{Path, PathBuf};

use undercroft_kernel_config::Kernel;
use undercroft_ruler_runner::{Run, Until};
use undercroft_vmm::config::{BalloonConfig, Description, DiskConfig, MachineConfig, Output, VsockConfig};

use crate::{Error, archive::Archive, counts::Counts, machine::Repetition};

/// Where things are in L1.
/// The VMM.
pub const VMM: &str = "/undercroft-vmm";
const SERIAL: &str = "/run/serial";
const VSOCK: &str = "/run/vsock";
/// What the socket's path ends in on which the guest's connections arrive (`undercroft_protocol::port::UNDERCROFT`).
const PORT: u32 = 5000;
/// The guest's context id (`undercroft_protocol::GUEST_CID`).
const CID: u32 = 3;

/// Seconds of L1's time within which a guest must connect: a stock kernel takes two.
const LIMIT_SECONDS: u64 = 60;

/// The size of a disk that nothing is on.
const DISK_BYTES: usize = 1 << 20;

/// The kernel parameters of every boot, before those that the kernel wants.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";

/// A boot to be measured.
#[derive(Debug, Clone)]
pub struct Boot {
    /// What its results are called.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// The machine, but for its kernel and initramfs, whose paths in L1 are put in.
    pub config: MachineConfig,
    /// How often it is counted, after a first time that is not.
    pub counted: u32,
    /// Whether its first program restarts the machine, instead of being mini-init.
    pub restarts: bool,
}

/// The results of a boot, each the median of those counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Result {
    /// From the VMM's execve(2) to its first VM entry.
    pub set_up: Counts,
    /// From there on too, to mini-init's first instruction.
    pub to_mini_init: Counts,
    /// And to mini-init's connection with the host.
    pub to_greeting: Counts,
    /// The VMM's resident memory beyond the guest's in KiB, half a second after that; 0 where nobody looked.
    pub resident_kib: u64,
}

impl Boot {
    /// A boot of a utility VM as the product makes it, with one CPU.
    pub fn new(name: &str, kernel: &Kernel, initramfs: &Path, memory_mib: u64) -> Self {
        let config = MachineConfig {
            command_line: format!("{COMMAND_LINE} {}", kernel.command_line).trim_end().into(),
            memory_mib,
            description: description(kernel),
            scsi: true,
            vsock: Some(VsockConfig { cid: CID, socket: VSOCK.into(), carrier_fd: None }),
            balloon: Some(BalloonConfig::default()),
            serial: Output::File(SERIAL.into()),
            ..MachineConfig::default()
        };
        let kernel = kernel.clone();
        let initramfs = initramfs.into();
        Self { name: name.into(), kernel, initramfs, config, counted: 3, restarts: false }
    }

    /// A boot as the field measures them: to the first instruction of an `/init` that restarts the machine, with these
    /// devices: two disks, vsock, rng, or only a serial port.
    pub fn alone(name: &str, kernel: &Kernel, initramfs: &Path, memory_mib: u64, devices: bool) -> Self {
        let mut boot = Self::new(name, kernel, initramfs, memory_mib);
        boot.restarts = true;
        boot.config.scsi = false;
        boot.config.balloon = None;
        boot.config.command_line = format!("{COMMAND_LINE} {}", kernel.command_line_for(1, memory_mib));
        if devices {
            boot.with_disks();
        } else {
            boot.config.vsock = None;
            boot.config.rng = false;
        }
        boot
    }

    /// Adds two disks that are there from the boot on.
    pub fn with_disks(&mut self) {
        for name in ["one", "two"] {
            let path = format!("/disks/{name}").into();
            self.config.disks.push(DiskConfig { path, read_only: false, serial: name.into() });
        }
    }

    /// Puts what the boot needs into the archive; gives back what the machine is to run.
    pub fn place(&self, archive: &mut Archive) -> Run {
        let inside = |path: &Path| PathBuf::from("/boot").join(path.strip_prefix("/").unwrap_or(path));
        let (kernel, initramfs) = (inside(&self.kernel.image), inside(&self.initramfs));
        archive.copy(&self.kernel.image, &kernel);
        archive.copy(&self.initramfs, &initramfs);
        let config = MachineConfig { kernel, initramfs: Some(initramfs), ..self.config.clone() };
        let path = format!("/boots/{}.json", self.name);
        archive.bytes(
            serde_json::to_vec(&config).expect("a configuration is paths, strings and numbers"),
            &path,
        );
        for disk in &self.config.disks {
            archive.bytes(vec![0; DISK_BYTES], &disk.path);
        }
        let greeting =
            Until::Connection { socket: format!("{VSOCK}_{PORT}").into(), guest_mib: self.config.memory_mib };
        Run {
            name: self.name.clone(),
            program: vec![VMM.into(), "--config".into(), path],
            repetitions: 1 + self.counted,
            until: if self.restarts { Until::Exit } else { greeting },
            limit_seconds: LIMIT_SECONDS,
            log: Some(SERIAL.into()),
        }
    }

    fn result(&self, repetitions: &[Repetition]) -> Option<Result> {
        let counted: Vec<&Repetition> =
            repetitions.iter().filter(|r| r.name == self.name && r.repetition > 0).collect();
        let median = |part: &dyn Fn(&Repetition) -> Option<Counts>| {
            let mut all: Vec<Counts> = counted.iter().map(|r| part(r)).collect::<Option<_>>()?;
            all.sort_by_key(Counts::total);
            all.get(all.len() / 2).copied()
        };
        let mut resident: Vec<u64> = counted.iter().filter_map(|r| r.resident_kib).collect();
        resident.sort_unstable();
        Some(Result {
            set_up: median(&|r| r.span.entry)?,
            to_mini_init: median(&|r| r.span.guest_user)?,
            to_greeting: median(&|r| r.span.up)?,
            resident_kib: resident.get(resident.len() / 2).copied().unwrap_or_default(),
        })
    }
}

/// How the kernel wants the machine described, in the VMM's words.
pub fn description(kernel: &Kernel) -> Description {
    match kernel.description {
        undercroft_kernel_config::Description::Acpi => Description::Acpi,
        undercroft_kernel_config::Description::DeviceTree => Description::DeviceTree,
        undercroft_kernel_config::Description::CommandLine => Description::CommandLine,
    }
}

/// Measures all of them in one machine; the results are in the boots' order.
pub fn measure(
    machine: &crate::machine::Machine,
    vmm: &Path,
    boots: &[Boot],
    work: &Path,
) -> std::result::Result<Vec<Result>, Error> {
    let mut archive = Archive::default();
    archive.program(vmm, VMM)?;
    let runs = boots.iter().map(|boot| boot.place(&mut archive)).collect();
    let (repetitions, console) = machine.attempt(archive, runs, work)?;
    for repetition in &repetitions {
        // A machine that restarts ends with a status of its own.
        let lenient = boots.iter().any(|boot| boot.restarts && boot.name == repetition.name);
        if let Some(error) = repetition.error.as_ref().filter(|_| !lenient) {
            let problem = format!("{}, repetition {}: {error}", repetition.name, repetition.repetition);
            return Err(Error::Machine { problem, console: crate::machine::tail(&console) });
        }
    }
    boots
        .iter()
        .map(|boot| {
            boot.result(&repetitions).ok_or_else(|| Error::Machine {
                problem: format!(
                    "{} was up, but the plugin saw no VM entry or no user instruction of the guest",
                    boot.name
                ),
                console: String::new(),
            })
        })
        .collect()
}
