//! Where a boot's VM exits come from: by reason, and by port, register or address.
//!
//!     cargo run -p undercroft-benches --example exits -- VMLINUX [devices]
//!
//! KVM's tracepoints tell, in the ruler's machine; with `devices` the guest has two disks, vsock and rng.

use std::{collections::BTreeMap, error::Error, path::Path};

use undercroft_benches::{
    archive::Archive,
    boot::{Boot, VMM},
    peers::monitors,
    tools,
};

const BUSYBOX: &str = "/bin/busybox";
/// What KVM's tracepoints say, between two lines that nothing else says.
const SCRIPT: &str = "mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing; echo 16384 > buffer_size_kb; \
    for event in kvm_exit kvm_pio kvm_mmio kvm_msr kvm_cpuid; do echo 1 > events/kvm/$event/enable; done; \
    $VMM --config $CONFIG; echo 0 > tracing_on; echo TRACE; cat trace; true";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((kernel, more)) = arguments.split_first() else {
        return Err("expected: VMLINUX [devices]".into());
    };
    let kernel = undercroft_kernel_config::given(Path::new(kernel))?;
    let work = std::env::temp_dir().join("undercroft-ruler-exits");
    std::fs::create_dir_all(&work)?;
    let image = work.join("restarts.cpio");
    monitors::initramfs(&image)?;
    let boot = Boot::alone("exits", &kernel, &image, monitors::MEMORY_MIB, !more.is_empty());
    let mut archive = Archive::default();
    archive.program(&tools::vmm()?, VMM)?;
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    let run = boot.place(&mut archive);
    let config = run.program.last().ok_or("a boot has a configuration")?;
    let script = SCRIPT.replace("$VMM", VMM).replace("$CONFIG", config);
    let script = format!("{BUSYBOX} --install -s /bin; export PATH=/bin; {script}");
    let program = [BUSYBOX, "sh", "-c", &script].map(String::from).into();
    let console = tools::machine()?.clocked(archive, "exits", program, &work)?;
    for (what, count) in sums(&console) {
        println!("{count:>8} {what}");
    }
    Ok(())
}

/// `… kvm_exit: [vcpu 0] reason msr rip 0x… …`, `… kvm_pio: pio_write at 0x3f8 size 1 …`,
/// `… kvm_mmio: mmio read len 4 gpa 0x… …`, `… kvm_msr: msr_write 6e0 = 0x…`.
fn sums(console: &str) -> Vec<(String, u64)> {
    let mut sums = BTreeMap::<String, u64>::new();
    for line in console.lines().skip_while(|line| line.trim() != "TRACE") {
        let Some((_, event)) = line.split_once(": kvm_") else { continue };
        let words: Vec<&str> = event.split_whitespace().collect();
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let what = match words.first().copied() {
            Some("exit:") => format!("exit {}", after("reason").unwrap_or("?")),
            Some("pio:") => format!("  {} {}", words.get(1).unwrap_or(&"?"), after("at").unwrap_or("?")),
            Some("mmio:") => {
                let kind = words.get(2).unwrap_or(&"?");
                format!("  mmio {kind} {}", after("gpa").unwrap_or("?"))
            }
            Some("msr:") => format!("  {} {}", words.get(1).unwrap_or(&"?"), words.get(2).unwrap_or(&"?")),
            Some("cpuid:") => format!("  cpuid {}", after("func").unwrap_or("?")),
            _ => continue,
        };
        *sums.entry(what).or_default() += 1;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    sums
}
