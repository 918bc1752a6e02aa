//! What guest tests need and cannot make where they run: kernels, guest binaries, distributions. `cargo xtask test`
//! prepares it once, outside the lab, and names it to the tests by a file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};
use undercroft_kernel_config::Kernel;

use crate::{guest, lab};

/// The environment variable that names the file which [`Suite::write`] wrote.
pub const SET: &str = "UNDERCROFT_TEST_SUITE";
/// The environment variable that names the file for [results](crate::outcome::Record).
pub const RESULTS: &str = "UNDERCROFT_RESULTS";

/// The environment variable that has tests do everything as often in the lab as on hardware.
pub const FULL: &str = "UNDERCROFT_FULL";

/// How often a test does what it does many times: `all`, but in the lab, where each takes seconds, `few`.
pub fn times(all: usize, few: usize) -> usize {
    if lab::inside() && std::env::var_os(FULL).is_none() { few } else { all }
}

/// Everything that guest tests start from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Suite {
    /// A distribution's stock kernel.
    pub stock: Kernel,
    /// Ours.
    pub tuned: Kernel,
    /// The guest's static binaries.
    pub guest: guest::Guest,
    /// The `undercroft-vmm` binary.
    pub vmm: PathBuf,
    /// The `undercroft` binary.
    pub product: PathBuf,
    /// What `cargo xtask dist` packs, as a tree below a prefix.
    pub installed: PathBuf,
    /// A virtiofsd that can share folders with distributions.
    pub virtiofsd: PathBuf,
    /// A busybox distribution, as a tar.
    pub busybox: PathBuf,
    /// A Debian 12, as a tar. It has systemd, and does not ask for it.
    pub debian: PathBuf,
    /// A Debian 13, likewise.
    pub debian13: PathBuf,
    /// That with a container engine, Podman.
    pub engine: PathBuf,
    /// A folder for what a test keeps (logs); exists.
    pub logs: PathBuf,
    /// A folder for bases that tests share; exists.
    pub bases: PathBuf,
}

impl Suite {
    /// Where the base of an archive is or will be, named by the archive's file name and length.
    pub fn base(&self, archive: &Path) -> io::Result<PathBuf> {
        let name = archive.file_stem().unwrap_or_default().to_string_lossy();
        Ok(self.bases.join(format!("{name}-{}.ext4", fs::metadata(archive)?.len())))
    }

    /// Writes it for [`Suite::get`].
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?)
    }

    /// The suite that [`SET`] names, or `None` with the reason, for a skip.
    pub fn get() -> Result<&'static Self, String> {
        static SUITE: OnceLock<Result<Suite, String>> = OnceLock::new();
        SUITE
            .get_or_init(|| {
                let path = std::env::var_os(SET).ok_or(
                    "guest tests run by `cargo xtask test --only guests`, which prepares what they boot",
                )?;
                let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.to_string_lossy()))?;
                let suite = serde_json::from_slice::<Self>(&bytes);
                let mut suite = suite.map_err(|e| format!("{}: {e}", path.to_string_lossy()))?;
                if lab::inside() {
                    let near = nearer(&suite.product);
                    suite.product = near.map_err(|e| format!("{}: {e}", suite.product.display()))?;
                }
                Ok(suite)
            })
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// A copy in the lab's memory of a program that tests start for each command. The lab's view of the host's folder forgets what a file
/// holds whenever it is opened, as it must for a folder that the host writes to, and a start would read the program anew.
fn nearer(program: &Path) -> io::Result<PathBuf> {
    let about = fs::metadata(program)?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let near = Path::new("/dev/shm").join(format!("{name}-{}-{}", about.mtime(), about.mtime_nsec()));
    if !near.exists() {
        // Whole or not at all: other tests look, too.
        let new = tempfile::NamedTempFile::new_in("/dev/shm")?;
        fs::copy(program, new.path())?;
        new.into_temp_path().persist(&near).map_err(|e| e.error)?;
    }
    Ok(near)
}
