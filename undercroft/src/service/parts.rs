//! The parts of an installation that a machine is made of: VMM, inits, kernel.
//!
//! They lie beside each other in one folder, which is looked for in `$UNDERCROFT_PARTS`, in `../lib/undercroft` from the program's
//! own place (what an archive or a package installs), beside the program (a build's folder), and where `undercroft parts` puts
//! them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use undercroft_kernel_config::{self as kernel_config, Kernel, Kind, initramfs};

use super::{error::ServiceError, paths::Paths};
use crate::error::{Error, Result};

/// Names the folder of the parts.
pub const PARTS: &str = "UNDERCROFT_PARTS";

/// What was found.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The `undercroft-vmm` program.
    pub vmm: PathBuf,
    /// PID 1 of the machine.
    pub mini_init: PathBuf,
    /// PID 1 of a distribution.
    pub init: PathBuf,
    /// The kernel.
    pub kernel: Kernel,
}

impl Parts {
    /// Looks for them; `kernel` is one of the user's own.
    pub fn find(kernel: Option<&Path>) -> Result<Self> {
        Self::of(&folders(), kernel, built)
    }

    /// All of them in one folder.
    pub(super) fn find_in(folder: &Path) -> Result<Self> {
        Self::of(&[folder.to_owned()], None, || None)
    }

    fn of(folders: &[PathBuf], kernel: Option<&Path>, built: fn() -> Option<Kernel>) -> Result<Self> {
        let find = |what, name: &str| {
            let looked: Vec<_> = folders.iter().map(|folder| folder.join(name)).collect();
            match looked.iter().find(|path| path.exists()) {
                Some(path) => Ok(path.clone()),
                None => Err(ServiceError::Missing { what, looked }),
            }
        };
        let kernel = match kernel {
            Some(path) => kernel_config::given(path).map_err(other)?,
            None => match find("the kernel", "kernel/manifest.json") {
                Ok(manifest) => Kernel::load(manifest.parent().unwrap_or(&manifest)).map_err(other)?,
                Err(missing) => built().ok_or(missing)?,
            },
        };
        Ok(Self {
            vmm: find("the VMM", "undercroft-vmm")?,
            mini_init: find("the machine's init", "undercroft-mini-init")?,
            init: find("the distributions' init", "undercroft-init")?,
            kernel,
        })
    }

    /// The initramfs of these inits and the kernel's modules, made anew: it is two megabytes.
    pub fn initramfs(&self, paths: &Paths) -> Result<PathBuf> {
        let path = paths.runtime.join("initramfs.cpio");
        initramfs::build(&self.mini_init, &self.init, &self.kernel.initramfs_modules, &path)
            .map_err(other)?;
        Ok(path)
    }
}

fn other(error: kernel_config::Error) -> Error {
    Error::System { what: "use the kernel", source: std::io::Error::other(error) }
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os(PARTS).map(PathBuf::from).into_iter().collect();
    let program = std::env::current_exe().and_then(fs::canonicalize);
    if let Some(beside) = program.ok().as_deref().and_then(Path::parent) {
        folders.push(beside.join("../lib/undercroft"));
        folders.push(beside.to_owned());
    }
    folders.extend(Paths::of_user().ok().map(|paths| paths.parts()));
    folders
}

/// The tuned kernel that `cargo xtask kernel` built last.
fn built() -> Option<Kernel> {
    let kernels = kernel_config::cache::dir().ok()?.join("kernels");
    let all = fs::read_dir(kernels).ok()?.flatten().filter_map(|entry| {
        let kernel = Kernel::load(&entry.path()).ok().filter(|kernel| kernel.kind == Kind::Tuned)?;
        Some((fs::metadata(&kernel.image).ok()?.modified().ok()?, kernel))
    });
    all.max_by_key(|(built, _)| *built).map(|(_, kernel)| kernel)
}
