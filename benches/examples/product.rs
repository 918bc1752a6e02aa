//! Where the product's instructions go, from its command line to the guest.
//!
//!     cargo run -p undercroft-benches --example product -- VMLINUX

use std::{error::Error, path::Path};

use undercroft_benches::{
    product::{self, Product},
    tools,
};
use undercroft_harness::guest;

fn main() -> Result<(), Box<dyn Error>> {
    let kernel = std::env::args().nth(1).ok_or("expected: VMLINUX")?;
    let kernel = undercroft_kernel_config::given(Path::new(&kernel))?;
    let guest = guest::build()?;
    let work = std::env::temp_dir().join("undercroft-ruler-product");
    std::fs::create_dir_all(&work)?;
    let product = Product {
        undercroft: tools::product()?,
        vmm: tools::vmm()?,
        guest: &guest,
        kernel: &kernel,
        program: tools::product_scenario()?,
    };
    let result = product::measure(&tools::machine()?, &product, &work)?;
    println!(
        "{:>12} {:>12} {:>12} {:>12} {:>12} {:>8}  part",
        "total", "L1 kernel", "L1 user", "L2 kernel", "L2 user", "entries"
    );
    for part in &result.parts {
        let counts = part.whole;
        println!(
            "{:>12} {:>12} {:>12} {:>12} {:>12} {:>8}  {}",
            counts.total(),
            counts.l1_kernel,
            counts.l1_user,
            counts.l2_kernel,
            counts.l2_user,
            counts.vmruns,
            part.name
        );
    }
    Ok(())
}
