//! Disks: the VMM attaches them, the kernel is told to look, and a block device appears.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use undercroft_protocol::command::{DiskAddress, Done, Failure, FailureKind};

use crate::jobs::failure;

/// Bytes of the unit in which sysfs gives sizes (Documentation/ABI/stable/sysfs-block).
const SECTOR: u64 = 512;
/// How long a disk that the kernel knows may take until its block device is there.
const PATIENCE: Duration = Duration::from_secs(10);

fn disk_failure(message: String) -> Failure {
    Failure { kind: FailureKind::Disk, message }
}

/// In people's words.
pub(crate) fn describe(address: &DiskAddress) -> String {
    match address {
        DiskAddress::Serial(serial) => format!("the disk with the serial number {serial:?}"),
        DiskAddress::Lun(lun) => format!("the disk at LUN {lun}"),
    }
}

/// Makes a disk known to the kernel and waits for its block device.
pub(crate) fn attach(address: &DiskAddress) -> Result<Done, Failure> {
    if let DiskAddress::Lun(lun) = address {
        if scsi_device(*lun).is_none() {
            scan(*lun).map_err(failure(FailureKind::Disk, &format!("looking for {}", describe(address))))?;
        }
        if scsi_device(*lun).is_none() {
            return Err(disk_failure(format!(
                "there is no {}: attach it to the virtual machine before the guest is told",
                describe(address).trim_start_matches("the ")
            )));
        }
    }
    let start = Instant::now();
    loop {
        if let Some(device) = device_name(address) {
            // The node is there a moment before the disk can be opened (ENXIO).
            if File::open(Path::new("/dev").join(&device)).is_ok() {
                let size = fs::read_to_string(format!("/sys/block/{device}/size"));
                let sectors: u64 = size.ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0);
                return Ok(Done::Attached { device, size: sectors * SECTOR });
            }
        } else if matches!(address, DiskAddress::Serial(_)) {
            return Err(disk_failure(format!("the machine has not {}", describe(address))));
        }
        if start.elapsed() > PATIENCE {
            return Err(disk_failure(format!(
                "{} is known, and got no block device in {PATIENCE:?}",
                describe(address)
            )));
        }
        // The scan is over when its write returns; what is waited for here is the driver, which probes in the background.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the kernel forget a disk.
pub(crate) fn detach(address: &DiskAddress) -> Result<Done, Failure> {
    let DiskAddress::Lun(lun) = address else {
        return Err(Failure {
            kind: FailureKind::Invalid,
            message: format!("{} was there at boot and stays: only LUNs come and go", describe(address)),
        });
    };
    let what = format!("detaching {}", describe(address));
    if let Some(device) = device_name(address) {
        flush_unused(&Path::new("/dev").join(device)).map_err(failure(FailureKind::Disk, &what))?;
    }
    if let Some(directory) = scsi_device(*lun) {
        fs::write(directory.join("delete"), "1").map_err(failure(FailureKind::Disk, &what))?;
    }
    Ok(Done::Nothing)
}

/// Flushes a block device that nothing uses; EBUSY while a file system on it is mounted (open(2), `O_EXCL`).
pub(crate) fn flush_unused(device: &Path) -> io::Result<()> {
    File::options().read(true).custom_flags(libc::O_EXCL).open(device)?.sync_all()
}

/// The path of an attached disk's block device.
pub(crate) fn path(address: &DiskAddress) -> Result<PathBuf, Failure> {
    match device_name(address) {
        Some(name) => Ok(Path::new("/dev").join(name)),
        None => Err(disk_failure(format!("{} is not attached", describe(address)))),
    }
}

/// The block device's name, if the kernel has one.
fn device_name(address: &DiskAddress) -> Option<String> {
    let first_in = |directory: PathBuf| {
        Some(fs::read_dir(directory).ok()?.next()?.ok()?.file_name().to_string_lossy().into_owned())
    };
    match address {
        DiskAddress::Lun(lun) => first_in(scsi_device(*lun)?.join("block")),
        DiskAddress::Serial(serial) => fs::read_dir("/sys/block").ok()?.find_map(|entry| {
            let entry = entry.ok()?;
            let found = fs::read_to_string(entry.path().join("serial")).ok()?;
            (found.trim_end() == serial).then(|| entry.file_name().to_string_lossy().into_owned())
        }),
    }
}

/// The virtio-scsi controllers' numbers: other controllers' disks are not ours.
fn hosts() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/scsi_host") else { return Vec::new() };
    let ours = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("proc_name")).is_ok_and(|name| name.trim() == "virtio_scsi")
    };
    let number = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_prefix("host")?.to_owned());
    entries.filter_map(Result::ok).filter(ours).filter_map(number).collect()
}

fn scsi_device(lun: u16) -> Option<PathBuf> {
    let path = |host: String| PathBuf::from(format!("/sys/bus/scsi/devices/{host}:0:0:{lun}"));
    hosts().into_iter().map(path).find(|path| path.exists())
}

/// Asks each controller to look at one unit of its target 0.
fn scan(lun: u16) -> io::Result<()> {
    let hosts = hosts();
    if hosts.is_empty() {
        return Err(io::Error::other("this machine has no virtio-scsi controller"));
    }
    for host in hosts {
        fs::write(format!("/sys/class/scsi_host/host{host}/scan"), format!("0 0 {lun}"))?;
    }
    Ok(())
}
