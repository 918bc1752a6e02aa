//! QEMU's microvm on the ruler: what others take for the same boot.
//!
//!     cargo run --release -p undercroft-benches --example qemu -- VMLINUX INITRAMFS
//!
//! The initramfs's `/init` must end the machine by a reset.

use std::{error::Error, path::PathBuf};

use undercroft_benches::{archive::Archive, tools};
use undercroft_ruler_runner::{Run, Until};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check percpu_alloc=page noreplace-smp \
    initcall_blacklist=trace_eval_init";

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [kernel, initramfs] = &paths[..] else { return Err("expected: VMLINUX INITRAMFS".into()) };
    let mut archive = Archive::default();
    archive.program(QEMU.as_ref(), QEMU)?;
    for file in [FIRMWARE, "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin"] {
        archive.copy(file, file);
    }
    archive.copy(kernel, "/vmlinux");
    archive.copy(initramfs, "/guest");
    let arguments = [
        QEMU,
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-M",
        "microvm,acpi=off,rtc=on",
        "-bios",
        FIRMWARE,
        "-m",
        "512",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "file:/run/console",
        "-kernel",
        "/vmlinux",
        "-initrd",
        "/guest",
        "-append",
        COMMAND_LINE,
    ];
    let run = Run {
        name: "qemu".into(),
        program: arguments.map(String::from).into(),
        repetitions: 3,
        until: Until::Exit,
        limit_seconds: 60,
        log: Some("/run/console".into()),
    };
    let work = std::env::temp_dir().join("undercroft-ruler-qemu");
    std::fs::create_dir_all(&work)?;
    for repetition in tools::machine()?.measure(archive, vec![run], &work)? {
        println!("{repetition:#?}");
    }
    Ok(())
}
