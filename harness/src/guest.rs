//! The programs that are static: those that run in guests, and the VMM. Cargo builds them into target directories of their
//! own, so that they neither wait for the workspace's build nor disturb it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Cargo's profiles: for what every guest has to load, and for what runs all the time.
const SMALL: &str = "guest";
const FAST: &str = "release";

/// Why the guests' programs are not there.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo could not be started.
    #[error("cargo could not be started")]
    Cargo(#[source] io::Error),
    /// Cargo failed, and has said why.
    #[error("cargo could not build {packages}:\n{said}")]
    Failed {
        /// What was to be built.
        packages: String,
        /// Cargo's stderr.
        said: String,
    },
    /// In the lab nothing is built: it would take minutes.
    #[error("{} is missing, and nothing is built in the lab: `cargo xtask test` builds it on the host first", path.display())]
    Missing {
        /// The program.
        path: PathBuf,
    },
}

/// The two inits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Guest {
    /// PID 1 of the utility VM.
    pub mini_init: PathBuf,
    /// PID 1 of each distribution.
    pub init: PathBuf,
}

/// The inits, built if their sources have changed. The same sources give the same bytes, whatever the clone's path.
pub fn build() -> Result<Guest, BuildError> {
    let [mini_init, init] = programs("guest", SMALL, ["undercroft-mini-init", "undercroft-init"])?;
    Ok(Guest { mini_init, init })
}

/// The VMM as it is shipped: built for speed, and static. It runs on any host so, and starts in half a million instructions
/// less than it takes to find and link the C library.
pub fn vmm() -> Result<PathBuf, BuildError> {
    let [vmm] = programs("static", FAST, ["undercroft-vmm"])?;
    Ok(vmm)
}

/// The lab's program, likewise. Cargo is only asked when a source is newer than the program: every command in the lab
/// comes by here.
pub(crate) fn lab_program() -> Result<PathBuf, BuildError> {
    let program = program_path("lab", SMALL, "undercroft-lab");
    if is_fresh(&program).unwrap_or(false) {
        return Ok(program);
    }
    let [program] = programs("lab", SMALL, ["undercroft-lab"])?;
    // Cargo keeps the old file where the new one would have the same bytes.
    if let Ok(file) = File::options().append(true).open(&program) {
        let _ = file.set_modified(SystemTime::now());
    }
    Ok(program)
}

/// Whether the program is newer than all that cargo's list of its sources names, and its manifest.
fn is_fresh(program: &Path) -> io::Result<bool> {
    let made = fs::metadata(program)?.modified()?;
    let list = fs::read_to_string(program.with_extension("d"))?;
    let (_, sources) = list.split_once(": ").ok_or(io::ErrorKind::InvalidData)?;
    let manifest = workspace().join("harness/lab/Cargo.toml");
    for source in sources.split_whitespace().map(Path::new).chain([manifest.as_path()]) {
        if fs::metadata(source)?.modified()? > made {
            return Ok(false);
        }
    }
    Ok(true)
}

fn program_path(folder: &str, profile: &str, package: &str) -> PathBuf {
    target().join(folder).join(TARGET).join(profile).join(package)
}

/// Cargo's target directory for this workspace.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
        Some(target) if target.is_absolute() => target,
        _ => workspace().join("target"),
    }
}

/// The workspace: of the crate that cargo runs, or else the one that this crate was compiled in. Two clones with one target directory
/// may share what is compiled, and neither is to work on the other's files.
pub fn workspace() -> PathBuf {
    let parent = |folder: &Path| folder.parent().unwrap_or(folder).to_path_buf();
    let runs = std::env::var_os("CARGO_MANIFEST_DIR").map(|folder| parent(Path::new(&folder)));
    runs.filter(|folder| folder.join("xtask/Cargo.toml").exists())
        .unwrap_or_else(|| parent(Path::new(env!("CARGO_MANIFEST_DIR"))))
}

/// The programs of these packages, which have the packages' names, built in that folder of the target directory.
fn programs<const N: usize>(
    folder: &str,
    profile: &str,
    packages: [&str; N],
) -> Result<[PathBuf; N], BuildError> {
    let paths = packages.map(|package| program_path(folder, profile, package));
    if crate::lab::inside() {
        return match paths.iter().find(|path| !path.exists()) {
            None => Ok(paths),
            Some(path) => Err(BuildError::Missing { path: path.clone() }),
        };
    }
    if paths.iter().any(|path| !path.exists()) {
        eprintln!("building {} (the first time takes a minute or two)", packages.join(" and "));
    }
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--profile", profile, "--target", TARGET, "--target-dir"])
        .arg(target().join(folder));
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command.output().map_err(BuildError::Cargo)?;
    if output.status.success() {
        return Ok(paths);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BuildError::Failed { packages: packages.join(" and "), said })
}

/// Cargo with nothing of the environment that would change what it makes.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let changes = name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_TARGET_")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_PKG_")
            || matches!(
                &*name,
                "RUSTFLAGS" | "CARGO_ENCODED_RUSTFLAGS" | "CARGO_INCREMENTAL" | "CARGO_MANIFEST_DIR"
            );
        if changes {
            command.env_remove(&*name);
        }
    }
    let workspace = workspace();
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.push(format!("--remap-path-prefix={}=/undercroft", workspace.display()));
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    if let Some(home) = home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).current_dir(workspace).stdin(Stdio::null());
    command
}
