//! The boots that are measured: the VMM with the product's devices, from its execve(2) to mini-init's greeting.

use std::path::{Path, PathBuf};

use undercroft_kernel_config::Kernel;
use undercroft_ruler_runner::{Run, Until};
use undercroft_vmm::config::{BalloonConfig, Description, MachineConfig, Output, VsockConfig};

use crate::{Error, archive::Archive, counts::Counts, machine::Repetition};

/// Where things are in L1.
const VMM: &str = "/undercroft-vmm";
const SERIAL: &str = "/run/serial";
const VSOCK: &str = "/run/vsock";
/// What the socket's path ends in on which the guest's connections arrive (`undercroft_protocol::port::UNDERCROFT`).
const PORT: u32 = 5000;
/// The guest's context id (`undercroft_protocol::GUEST_CID`).
const CID: u32 = 3;

/// Seconds of L1's time within which a guest must connect: a stock kernel takes two.
const LIMIT_SECONDS: u64 = 60;

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
    /// The VMM's resident memory beyond the guest's in KiB, half a second after that.
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
            vsock: Some(VsockConfig { cid: CID, socket: VSOCK.into() }),
            balloon: Some(BalloonConfig::default()),
            serial: Output::File(SERIAL.into()),
            ..MachineConfig::default()
        };
        Self { name: name.into(), kernel: kernel.clone(), initramfs: initramfs.into(), config, counted: 3 }
    }

    /// Puts what the boot needs into the archive; gives back what the machine is to run.
    fn place(&self, archive: &mut Archive) -> Run {
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
        Run {
            name: self.name.clone(),
            program: vec![VMM.into(), "--config".into(), path],
            repetitions: 1 + self.counted,
            until: Until::Connection {
                socket: format!("{VSOCK}_{PORT}").into(),
                guest_mib: self.config.memory_mib,
            },
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
            resident_kib: *resident.get(resident.len() / 2)?,
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
    let repetitions = machine.measure(archive, runs, work)?;
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
