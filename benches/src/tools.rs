//! What has to be there before anything is measured: built here with cargo, or taken from the cache.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use undercroft_harness::guest;
use undercroft_kernel_config::{Kernel, cache};

use crate::{Error, machine::Machine, peers::network::Programs};

/// KVM's modules in the order to load them in. `kvm-amd` names `ccp` too, which only encrypted guests need.
const KVM: [&str; 3] = ["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko"];

/// The machine stands still if it says nothing for so long: it says dozens of things in the three minutes that all budgets take on an
/// idle machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// L1's memory in MiB, for guests of half a gigabyte.
const MEMORY_MIB: u32 = 2048;

const STATIC: &str = "-C target-feature=+crt-static";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the plugin and the runner, and finds a kernel with KVM.
pub fn machine() -> Result<Machine, Error> {
    let kernel = undercroft_kernel_config::stock()?;
    Ok(Machine {
        modules: modules(&kernel, "kvm", &KVM)?,
        kernel: kernel.image,
        plugin: built("undercroft-ruler", "libundercroft_ruler.so")?,
        runner: runner()?,
        memory_mib: MEMORY_MIB,
        parameters: String::new(),
        profile: None,
        patience: PATIENCE,
    })
}

/// Builds the VMM as it is shipped.
pub fn vmm() -> Result<PathBuf, Error> {
    Ok(guest::vmm()?)
}

/// Builds the program that plays a machine's life through.
pub fn scenario() -> Result<PathBuf, Error> {
    built("undercroft-ruler-scenario", "undercroft-ruler-scenario")
}

/// Builds the product as it is shipped.
pub fn product() -> Result<PathBuf, Error> {
    built("undercroft", "undercroft")
}

/// Builds the program that uses it.
pub fn product_scenario() -> Result<PathBuf, Error> {
    built("undercroft-ruler-scenario", "undercroft-ruler-product")
}

/// Builds the program that connects to a guest's servers, and the simplest of these.
pub fn traffic() -> Result<Programs, Error> {
    Ok(Programs {
        traffic: built("undercroft-ruler-scenario", "undercroft-ruler-traffic")?,
        answerer: runner()?.with_file_name("undercroft-ruler-answerer"),
    })
}

/// Where a program is on this host.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // A normal user's PATH often lacks these two.
    let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.find_map(|place| Some(place.join(program)).filter(|program| program.is_file()))
}

/// Builds a benchmark of this crate's, and gives its program.
pub fn bench(name: &str) -> Result<PathBuf, Error> {
    let arguments = ["bench", "--quiet", "--package", env!("CARGO_PKG_NAME"), "--bench", name, "--no-run"];
    cargo(&arguments, None)?;
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let failed =
        |source| Error::Program { program: "cargo bench".into(), help: "it names no program".into(), source };
    let messages = duct::cmd(program, arguments.into_iter().chain(["--message-format=json"]))
        .dir(guest::workspace())
        .read()
        .map_err(failed)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"].as_str() == Some(name)).then_some(())?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    messages.lines().find_map(executable).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn built(package: &str, file: &str) -> Result<PathBuf, Error> {
    cargo(&["build", "--quiet", "--release", "--package", package], None)?;
    Ok(guest::target().join("release").join(file))
}

fn runner() -> Result<PathBuf, Error> {
    let directory = guest::target().join("guest");
    let directory_argument = directory.display().to_string();
    let package = "undercroft-ruler-runner";
    cargo(
        &[
            "build",
            "--quiet",
            "--profile",
            "guest",
            "--target",
            TARGET,
            "--target-dir",
            &directory_argument,
            "--package",
            package,
        ],
        Some(STATIC),
    )?;
    Ok(directory.join(TARGET).join("guest").join(package))
}

fn cargo(arguments: &[&str], rustflags: Option<&str>) -> Result<(), Error> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = duct::cmd(program, arguments).dir(guest::workspace());
    if let Some(rustflags) = rustflags {
        command = command.env("RUSTFLAGS", rustflags);
    }
    command.run().map(drop).map_err(|source| Error::Program {
        program: format!("cargo {}", arguments.join(" ")),
        help: "what the compiler says is above".into(),
        source,
    })
}

/// Modules of a kernel, by their paths beneath its `kernel` folder, taken out of its modules disk once; in the same order.
/// None of a kernel that has no such disk.
pub(crate) fn modules(kernel: &Kernel, set: &str, paths: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let Some(disk) = &kernel.modules_disk else { return Ok(Vec::new()) };
    let identity = kernel.image.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let directory = cache::obtain("ruler", &format!("{set}-{identity}"), |directory| {
        for module in paths {
            let out = directory.join(Path::new(module).file_name().unwrap_or_default());
            dump(disk, &format!("/lib/modules/{}/kernel/{module}", kernel.release), &out).map_err(
                |source| undercroft_kernel_config::Error::Io { doing: "extract", path: out, source },
            )?;
        }
        Ok(())
    })?;
    Ok(paths.iter().map(|module| directory.join(Path::new(module).file_name().unwrap_or_default())).collect())
}

/// Copies a file out of an ext4 image.
fn dump(disk: &Path, inside: &str, out: &Path) -> io::Result<()> {
    let request = format!("dump \"{inside}\" \"{}\"", out.display());
    duct::cmd!("debugfs", "-R", request, disk).stdin_null().stdout_null().stderr_null().run()?;
    // debugfs succeeds whatever happens.
    match fs::metadata(out)?.len() {
        0 => Err(io::Error::other(format!("there is no {inside} in {}", disk.display()))),
        _ => Ok(()),
    }
}
