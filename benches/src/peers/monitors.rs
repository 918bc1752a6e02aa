//! Monitors of virtual machines: from their execve(2) to the first instruction of `/init`, with one kernel, one CPU, and
//! an initramfs that holds nothing but an `/init` which restarts the machine.

use std::path::{Path, PathBuf};

use undercroft_kernel_config::Kernel;

use super::{Peer, Row, measure};
use crate::{
    Error,
    archive::Archive,
    boot::{self, Boot},
    machine::Machine,
    program,
};

/// Guest memory in MiB.
pub const MEMORY_MIB: u64 = 256;

pub(super) const KERNEL: &str = "/vmlinux";
pub(super) const INITRAMFS: &str = "/guest";
const FIRECRACKER: &str = "/firecracker.json";

/// Debian's firmware that does only what a direct boot needs.
const FIRMWARE: [&str; 3] =
    ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin"];

/// Writes the initramfs.
pub fn initramfs(out: &Path) -> Result<(), Error> {
    let mut archive = Archive::default();
    archive.bytes(program::that_restarts(), "/init");
    archive.write(out)
}

/// Measures all that are here, and us: without devices, and with two disks, vsock and rng.
pub fn rows(machine: &Machine, vmm: &Path, kernel: &Kernel, work: &Path) -> Result<Vec<Row>, Error> {
    let image = work.join("restarts.cpio");
    initramfs(&image)?;
    let mut archive = Archive::default();
    archive.copy(&kernel.image, KERNEL);
    archive.copy(&image, INITRAMFS);
    let line = format!("console=ttyS0 quiet panic=-1 {}", kernel.command_line_for(1, MEMORY_MIB));
    archive.bytes(firecracker_config(&line), FIRECRACKER);
    let peers = [qemu(&line), firecracker(), cloud_hypervisor(&line)];
    let end = |span: &crate::counts::Span| span.guest_user;
    let mut rows = measure(machine, &peers, archive, Vec::new(), end, work)?;
    rows.splice(0..0, ours(machine, vmm, kernel, &image, work)?);
    Ok(rows)
}

fn ours(
    machine: &Machine,
    vmm: &Path,
    kernel: &Kernel,
    image: &Path,
    work: &Path,
) -> Result<Vec<Row>, Error> {
    let boots =
        [("undercroft", false, "a serial port"), ("undercroft, with devices", true, "two disks, vsock, rng")];
    let (measured, names): (Vec<Boot>, Vec<_>) = boots
        .into_iter()
        .map(|(name, devices, what)| {
            let file = if devices { "devices" } else { "alone" };
            (Boot::alone(file, kernel, image, MEMORY_MIB, devices), (name, what))
        })
        .unzip();
    let results = boot::measure(machine, vmm, &measured, work)?;
    let row = |((name, what), result): (_, boot::Result)| -> Row {
        let (name, what): (&str, &str) = (name, what);
        Row { name: name.into(), what: what.into(), counts: Ok(result.to_mini_init) }
    };
    Ok(names.into_iter().zip(results).map(row).collect())
}

pub(super) fn qemu(line: &str) -> Peer {
    let words = "-accel kvm -cpu host -M microvm,acpi=off,rtc=on -nodefaults -no-user-config -display none -no-reboot \
                 -serial file:/run/console -bios /usr/share/qemu/qboot.rom -kernel /vmlinux -initrd /guest";
    let mut arguments: Vec<String> = words.split_whitespace().map(String::from).collect();
    arguments.extend(["-m".into(), MEMORY_MIB.to_string(), "-append".into(), format!("{line} reboot=t")]);
    Peer {
        name: "QEMU microvm",
        program: "qemu-system-x86_64",
        install: "Debian's qemu-system-x86",
        arguments,
        what: "a serial port, an RTC",
        files: FIRMWARE.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
    }
}

fn firecracker() -> Peer {
    Peer {
        name: "Firecracker",
        program: "firecracker",
        install: "its releases on GitHub, no Debian package",
        arguments: ["--no-api", "--config-file", FIRECRACKER].map(String::from).into(),
        what: "a serial port",
        files: Vec::new(),
    }
}

/// Its configuration file (Firecracker's `docs/getting-started.md`).
fn firecracker_config(line: &str) -> Vec<u8> {
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": KERNEL,
            "initrd_path": INITRAMFS,
            "boot_args": format!("{line} reboot=k"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    });
    serde_json::to_vec(&config).expect("it is strings and numbers")
}

fn cloud_hypervisor(line: &str) -> Peer {
    let words = format!(
        "--kernel {KERNEL} --initramfs {INITRAMFS} --cpus boot=1 --memory size={MEMORY_MIB}M --serial \
         file=/run/console --console off --cmdline"
    );
    let mut arguments: Vec<String> = words.split_whitespace().map(String::from).collect();
    arguments.push(line.to_owned());
    Peer {
        name: "Cloud Hypervisor",
        program: "cloud-hypervisor",
        install: "its releases on GitHub, no Debian package",
        arguments,
        what: "a serial port",
        files: Vec::new(),
    }
}
