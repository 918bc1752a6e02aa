//! What the product takes as a whole: its command line, its service, its machine, its inits.

use std::path::{Path, PathBuf};

use undercroft_harness::guest::Guest;
use undercroft_kernel_config::Kernel;
use undercroft_ruler_runner::{Run, Until};
use undercroft_ruler_scenario::product::{ARCHIVE, PARTS, UNDERCROFT};

use crate::{
    Error,
    archive::Archive,
    machine::Machine,
    scenario::{self, Result},
};

/// Where the program is in L1.
const PROGRAM: &str = "/undercroft-ruler-product";
/// Seconds of L1's time for all of it.
const LIMIT_SECONDS: u64 = 600;

/// What is used.
#[derive(Debug)]
pub struct Product<'a> {
    /// The command line and service.
    pub undercroft: PathBuf,
    /// The VMM.
    pub vmm: PathBuf,
    /// The inits.
    pub guest: &'a Guest,
    /// The guest's kernel.
    pub kernel: &'a Kernel,
    /// The program that uses it.
    pub program: PathBuf,
}

/// Uses it in the machine; `work` is a directory for the machine's files.
pub fn measure(machine: &Machine, product: &Product<'_>, work: &Path) -> std::result::Result<Result, Error> {
    let mut archive = Archive::default();
    archive.program(&product.program, PROGRAM)?;
    archive.program(&product.undercroft, UNDERCROFT)?;
    let part = |name: &str| Path::new(PARTS).join(name);
    archive.program(&product.vmm, part("undercroft-vmm"))?;
    archive.copy(&product.guest.mini_init, part("undercroft-mini-init"));
    archive.copy(&product.guest.init, part("undercroft-init"));
    let folder = product.kernel.image.parent().unwrap_or(Path::new("/"));
    let modules = product.kernel.modules_disk.as_deref().and_then(Path::file_name);
    for name in
        [Some("manifest.json".as_ref()), product.kernel.image.file_name(), modules].into_iter().flatten()
    {
        archive.copy(folder.join(name), part("kernel").join(name));
    }
    scenario::disk_tools(&mut archive)?;
    let tar = work.join("busybox.tar");
    scenario::distribution(&tar)?;
    archive.copy(&tar, ARCHIVE);
    let run = Run {
        name: "product".into(),
        program: vec![PROGRAM.into()],
        repetitions: 1,
        until: Until::Exit,
        limit_seconds: LIMIT_SECONDS,
        log: None,
    };
    let repetitions = machine.measure(archive, vec![run], work)?;
    Ok(repetitions.first().map(Result::of).unwrap_or_default())
}
