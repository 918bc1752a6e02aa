//! Where a machine's instructions go beyond its boot, by part and by step.
//!
//!     cargo run -p undercroft-benches --example scenario -- VMLINUX [flat | layered] [IDLE]

use std::{error::Error, path::Path};

use undercroft_benches::{
    scenario::{self, Scenario},
    tools,
};
use undercroft_harness::guest;
use undercroft_kernel_config::initramfs;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, more @ ..] = &arguments[..] else {
        return Err("expected: VMLINUX [flat | layered] [IDLE]".into());
    };
    let kernel = undercroft_kernel_config::given(Path::new(kernel))?;
    let root = serde_json::from_value(more.first().map_or("flat", |root| root).into())?;
    let idle = more.get(1).map_or(Ok(0), |idle| idle.parse())?;
    let guest = guest::build()?;
    let work = std::env::temp_dir().join("undercroft-ruler-scenario");
    std::fs::create_dir_all(&work)?;
    let image = work.join("guest.cpio");
    initramfs::build(&guest.mini_init, &guest.init, &kernel.initramfs_modules, &image)?;
    let scenario = Scenario {
        vmm: tools::vmm()?,
        program: tools::scenario()?,
        kernel,
        initramfs: image,
        memory_mib: 512,
        root,
        own_users: std::env::var_os("OWN_USERS").is_some(),
        idle,
        contents: scenario::Contents::Busybox,
    };
    let result = scenario::measure(&tools::machine()?, &scenario, &work)?;
    println!(
        "{:>12} {:>12} {:>12} {:>12} {:>12} {:>8} {:>12}  part",
        "total", "L1 kernel", "L1 user", "L2 kernel", "L2 user", "entries", "to program"
    );
    for part in &result.parts {
        let counts = part.whole;
        println!(
            "{:>12} {:>12} {:>12} {:>12} {:>12} {:>8} {:>12}  {}",
            counts.total(),
            counts.l1_kernel,
            counts.l1_user,
            counts.l2_kernel,
            counts.l2_user,
            counts.vmruns,
            part.program.map_or_else(|| "-".into(), |program| program.total().to_string()),
            part.name
        );
        for (name, nanoseconds) in &part.steps {
            println!("{nanoseconds:>12}   {name}");
        }
    }
    for (name, value, unit) in &result.values {
        println!("{name} {value} {unit}");
    }
    Ok(())
}
