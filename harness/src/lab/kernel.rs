//! L1's kernel: Debian's 6.12 for clouds, which has virtiofs built in and KVM as modules, so that nothing is built to
//! have a lab. It is fetched once, unpacked and cached.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use undercroft_kernel_config::cache;

use super::LabError;

/// The modules that L1 loads, in this order, each before those that need it.
const MODULES: &[&str] = &[
    "kernel/virt/lib/irqbypass",
    "kernel/arch/x86/kvm/kvm",
    "kernel/arch/x86/kvm/kvm-amd",
    "kernel/fs/overlayfs/overlay",
    "kernel/net/core/failover",
    "kernel/drivers/net/net_failover",
    "kernel/drivers/net/virtio_net",
    "kernel/drivers/net/dummy",
    "kernel/drivers/net/tun",
];

/// The end of the cached folder's name; changes when other things are taken out of the package.
const RECIPE: &str = "-3";

const PACKAGE: &str = r"^linux-image-6\.12\.[0-9.]*\+?[a-z0-9]*-cloud-amd64-unsigned$";

/// A kernel for L1.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// In the order to load them in.
    pub(super) modules: Vec<PathBuf>,
}

/// The kernel from the cache, or from Debian.
pub(super) fn obtain() -> Result<Kernel, LabError> {
    let folder = match cached() {
        Some(folder) => folder,
        None => fetch()?,
    };
    let modules = MODULES.iter().map(|m| folder.join(format!("{}.ko", name(m)))).collect();
    Ok(Kernel { image: folder.join("vmlinux"), modules })
}

fn name(module: &str) -> &str {
    module.rsplit('/').next().unwrap_or(module)
}

fn cached() -> Option<PathBuf> {
    let folder = cache::dir().ok()?.join("lab");
    let names = fs::read_dir(&folder).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names
        .filter(|n| n.starts_with("linux-image-") && n.ends_with(RECIPE))
        .map(|n| folder.join(n))
        .filter(|p| p.is_dir())
        .max()
}

fn fetch() -> Result<PathBuf, LabError> {
    let search = run(Command::new("apt-cache").args(["search", "--names-only", PACKAGE]))?;
    let package = search
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .max_by_key(|p| p.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect::<Vec<u32>>())
        .ok_or_else(|| LabError::Kernel("apt offers no linux-image-6.12…-cloud-amd64-unsigned; apt-get update helps if its lists are old or missing".into()))?
        .to_owned();
    eprintln!("the lab's kernel, {package}, is fetched once (34 MB)");
    let mut failure = None;
    let made = cache::obtain("lab", &format!("{package}{RECIPE}"), |folder| {
        unpack(&package, folder).map_err(|e| {
            failure = Some(e);
            undercroft_kernel_config::Error::NoCache
        })
    });
    made.map_err(|e| failure.unwrap_or(LabError::Cache(e)))
}

fn unpack(package: &str, folder: &Path) -> Result<(), LabError> {
    let scratch = folder.join("scratch");
    fs::create_dir(&scratch).map_err(LabError::at("making a folder"))?;
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(&scratch))?;
    let deb = entry(&scratch, "linux-image-")?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&scratch))?;
    let image =
        fs::read(entry(&scratch.join("boot"), "vmlinuz-")?).map_err(LabError::at("reading the kernel"))?;
    let vmlinux =
        payload(&image).ok_or_else(|| LabError::Kernel(format!("{package} holds no zstd bzImage")))?;
    fs::write(folder.join("vmlinux"), vmlinux).map_err(LabError::at("writing the kernel"))?;
    let modules = entry(&scratch.join("lib/modules"), "")?;
    for module in MODULES {
        let path = modules.join(format!("{module}.ko.xz"));
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| liblzma::read::XzDecoder::new(file).read_to_end(&mut bytes))
            .and_then(|_| fs::write(folder.join(format!("{}.ko", name(module))), &bytes))
            .map_err(LabError::at(format!("unpacking {}", path.display())))?;
    }
    fs::remove_dir_all(&scratch).map_err(LabError::at("removing a folder"))
}

fn entry(folder: &Path, start: &str) -> Result<PathBuf, LabError> {
    let entries = fs::read_dir(folder).map_err(LabError::at(format!("reading {}", folder.display())))?;
    entries
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start)))
        .ok_or_else(|| LabError::Kernel(format!("no {start}… in {}", folder.display())))
}

/// The ELF in a bzImage compressed by zstd: payload_offset and payload_length of the setup header (Linux,
/// Documentation/arch/x86/boot.rst), the last four bytes being the length of what was compressed.
fn payload(image: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + number(0x248)?;
    let payload = image.get(start..start.checked_add(number(0x24c)?)?)?;
    let (compressed, _) = payload.split_last_chunk::<4>()?;
    zstd::decode_all(compressed).ok()
}

fn run(command: &mut Command) -> Result<String, LabError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(LabError::at(format!("running {name}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Kernel(format!("{name}: {}", errors.trim().lines().last().unwrap_or("failed"))))
}
