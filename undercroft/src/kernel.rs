//! A kernel that `kernel-config` provides, as a machine to boot it in.

use undercroft_kernel_config::{Description as Wanted, Kernel};
use undercroft_vmm::{MachineConfig, config::Description};

/// What a machine boots with, in MiB, however large it will be: the kernel sets up a structure for each page that it finds.
/// What it has beyond that comes when mini-init has said hello. The kernel, its initramfs and the first programs fit.
pub const BOOT_MEMORY_MIB: u64 = 512;

/// A machine that has this size when it has [grown](crate::Machine::wait_grown), with this kernel, described as the kernel
/// likes it best, with its own fastest command line and a balloon that gives free pages back. The initramfs is still to be
/// named.
pub fn machine_config(kernel: &Kernel, cpus: u8, memory_mib: u64) -> MachineConfig {
    let defaults = MachineConfig::default();
    let boot = if kernel.grows { memory_mib.min(BOOT_MEMORY_MIB) } else { memory_mib };
    let command_line = format!("{} {}", defaults.command_line, kernel.command_line_for(cpus, boot));
    MachineConfig {
        kernel: kernel.image.clone(),
        command_line: command_line.trim_end().into(),
        cpus,
        memory_mib: boot,
        max_memory_mib: (memory_mib > boot).then_some(memory_mib),
        timer_hz: kernel.timer_hz,
        description: match kernel.description {
            Wanted::Acpi => Description::Acpi,
            Wanted::DeviceTree => Description::DeviceTree,
            Wanted::CommandLine => Description::CommandLine,
        },
        balloon: Some(Default::default()),
        ..defaults
    }
}
