//! A kernel that `kernel-config` provides, as a machine to boot it in.

use undercroft_kernel_config::{Description as Wanted, Kernel};
use undercroft_vmm::{MachineConfig, config::Description};

/// A machine of this size with this kernel, described as the kernel likes it best, with its own fastest command line and a
/// balloon that gives free pages back. The initramfs is still to be named.
pub fn machine_config(kernel: &Kernel, cpus: u8, memory_mib: u64) -> MachineConfig {
    let defaults = MachineConfig::default();
    let command_line = format!("{} {}", defaults.command_line, kernel.command_line_for(cpus, memory_mib));
    MachineConfig {
        kernel: kernel.image.clone(),
        command_line: command_line.trim_end().into(),
        cpus,
        memory_mib,
        description: match kernel.description {
            Wanted::Acpi => Description::Acpi,
            Wanted::DeviceTree => Description::DeviceTree,
            Wanted::CommandLine => Description::CommandLine,
        },
        balloon: Some(Default::default()),
        ..defaults
    }
}
