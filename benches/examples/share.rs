//! The VMM's share of a boot, as `vmm_share_instructions` counts it, on a host of your choice.
//!
//!     cargo run -p undercroft-benches --example share -- VMLINUX [HOST'S-PARAMETER …]
//!
//! Each line is one host: as the ruler has it first, then with each of the kernel parameters, all before it included.

use std::{error::Error, path::Path};

use undercroft_benches::{
    boot::{self, Boot},
    peers::monitors,
    tools,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((kernel, parameters)) = arguments.split_first() else {
        return Err("expected: VMLINUX [HOST'S-PARAMETER …]".into());
    };
    let kernel = undercroft_kernel_config::given(Path::new(kernel))?;
    let work = std::env::temp_dir().join("undercroft-ruler-share");
    std::fs::create_dir_all(&work)?;
    let image = work.join("restarts.cpio");
    monitors::initramfs(&image)?;
    let boots = [Boot::alone("share", &kernel, &image, monitors::MEMORY_MIB, true)];
    let mut machine = tools::machine()?;
    println!("   share  host's kernel, VMM before;  while the guest boots  entries");
    for count in 0..=parameters.len() {
        machine.parameters = parameters[..count].join(" ");
        for result in boot::measure(&machine, &tools::vmm()?, &boots, &work)? {
            let (before, all) = (result.set_up, result.to_mini_init);
            let during = all - before;
            println!(
                "{:8} {:9} {:9} {:9} {:9} {:5}  {}",
                all.l1_kernel + all.l1_user,
                before.l1_kernel,
                before.l1_user,
                during.l1_kernel,
                during.l1_user,
                all.vmruns,
                machine.parameters
            );
        }
    }
    Ok(())
}
