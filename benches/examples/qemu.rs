//! QEMU's microvm on the ruler: what others take for the same boot.
//!
//!     cargo run -p undercroft-benches --example qemu -- VMLINUX INITRAMFS [PARAMETERS [QEMU-ARGUMENT …]]
//!
//! The initramfs's `/init` must end the machine by a reset. Kernel parameters and arguments of QEMU's that are given come
//! behind the others: so one can see what a device costs the guest.

use std::error::Error;

use undercroft_benches::{archive::Archive, tools};
use undercroft_ruler_runner::{Run, Until};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check percpu_alloc=page noreplace-smp \
    initcall_blacklist=trace_eval_init";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, more @ ..] = &arguments[..] else {
        return Err("expected: VMLINUX INITRAMFS".into());
    };
    let (parameters, more) = more.split_first().map_or(("", more), |(first, rest)| (first.as_str(), rest));
    let command_line = format!("{COMMAND_LINE} {parameters}");
    let mut archive = Archive::default();
    archive.program(QEMU.as_ref(), QEMU)?;
    for file in [FIRMWARE, "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/pvh.bin"] {
        archive.copy(file, file);
    }
    archive.copy(kernel, "/vmlinux");
    archive.copy(initramfs, "/guest");
    let program = [
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
        &command_line,
    ];
    let run = Run {
        name: "qemu".into(),
        program: program.into_iter().map(String::from).chain(more.iter().cloned()).collect(),
        repetitions: 3,
        until: Until::Exit,
        limit_seconds: 60,
        log: Some("/run/console".into()),
    };
    let work = std::env::temp_dir().join("undercroft-ruler-qemu");
    std::fs::create_dir_all(&work)?;
    for repetition in tools::machine()?.measure(archive, vec![run], &work)? {
        let Some(counts) = repetition.span.guest_user else { return Err("the guest ran no program".into()) };
        println!(
            "{}: kernel {} entries {} total {}",
            repetition.repetition,
            counts.l2(),
            counts.vmruns,
            counts.total()
        );
    }
    Ok(())
}
