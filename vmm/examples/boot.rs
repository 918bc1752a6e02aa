//! Boots a kernel with the library and says how it ended.
//!
//! ```sh
//! cargo run -p undercroft-vmm --example boot -- /boot/vmlinuz-6.12 initramfs.cpio
//! ```

use std::error::Error;

use undercroft_vmm::config::{Description, Output};
use undercroft_vmm::{End, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let kernel = arguments.next().ok_or("usage: boot KERNEL [INITRAMFS]")?;

    // Everything has a default that suits a small machine; these are the fields that most callers set.
    let machine = Machine::new(MachineConfig {
        kernel: kernel.into(),
        initramfs: arguments.next().map(Into::into),
        command_line: "console=ttyS0 panic=-1".into(),
        cpus: 1,
        memory_mib: 512,
        description: Description::Acpi,
        serial: Output::Stdout,
        ..MachineConfig::default()
    })?;

    // Another thread may end the machine: keep `machine.ending()`, and call `set(End::Killed)` on it.
    match machine.run()? {
        End::PowerOff => println!("the guest powered off"),
        End::GuestPanic(line) => println!("the guest panicked: {line}"),
        other => println!("{other}"),
    }
    Ok(())
}
