//! Swap: a disk of the host's, or the machine's own memory, compressed.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use undercroft_protocol::command::{Done, Failure, FailureKind, Swap};

use crate::{
    disk,
    jobs::{failure, system},
    log, modprobe, swap_call,
};

/// The order in which swaps are used: the higher first. Disks have the kernel's own, which is below 0.
const ZRAM_PRIORITY: u16 = 100;
/// Where the kernel's header begins, behind room for a boot loader (include/linux/swap.h, `union swap_header`).
const HEADER: usize = 1024;
/// The header's mark, at the end of the first page.
const MAGIC: &[u8; 10] = b"SWAPSPACE2";
/// The header's version.
const VERSION: u32 = 1;
/// zram's first device, and whether its module is loaded (Documentation/admin-guide/blockdev/zram.rst).
const ZRAM: &str = "/dev/zram0";
const ZRAM_SETTINGS: &str = "/sys/block/zram0";
/// The algorithm that packs best of those that are fast; a kernel without it has one of its own choice.
const ALGORITHM: &str = "zstd";

/// Begins to use it.
pub(crate) fn on(what: &Swap) -> Result<Done, Failure> {
    match what {
        Swap::Disk(address) => {
            let device = disk::path(address)?;
            let what = format!("using {} as swap", disk::describe(address));
            let on = sign(&device).and_then(|()| swap_call::on(&device, None));
            on.map_err(failure(FailureKind::Disk, &what))?;
        }
        Swap::Zram { bytes } => zram(*bytes).map_err(system("using compressed memory as swap"))?,
    }
    Ok(Done::Nothing)
}

fn zram(bytes: u64) -> io::Result<()> {
    if !Path::new(ZRAM_SETTINGS).exists() {
        modprobe::load("zram")?;
    }
    let set = |file: &str, value: &str| fs::write(format!("{ZRAM_SETTINGS}/{file}"), value);
    let _ = set("comp_algorithm", ALGORITHM);
    set("disksize", &bytes.to_string())
        .map_err(|e| io::Error::new(e.kind(), format!("{ZRAM_SETTINGS}/disksize: {e}")))?;
    let device = Path::new(ZRAM);
    sign(device)?;
    swap_call::on(device, Some(ZRAM_PRIORITY))
}

/// Writes the header: whatever was on the device is not kept.
fn sign(device: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    let page = usize::try_from(page).unwrap_or(4096);
    let header = header(size, page).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{size} bytes are too few, or too many, for swap"),
        )
    })?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)?;
    file.sync_all()
}

/// The first page of a swap of so many bytes, as mkswap(8) makes it; without the label and the number that nobody asks for.
/// The kernel takes no swap of less than ten pages as mkswap does not.
fn header(size: u64, page: usize) -> Option<Vec<u8>> {
    let pages = size / page as u64;
    let last = u32::try_from(pages.checked_sub(1)?).ok().filter(|last| *last >= 9)?;
    let mut bytes = vec![0; page];
    for (index, word) in [VERSION, last].into_iter().enumerate() {
        bytes[HEADER + 4 * index..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes[page - MAGIC.len()..].copy_from_slice(MAGIC);
    Some(bytes)
}

/// Ends all swap, when the programs that had memory there are gone.
pub(crate) fn off() {
    for device in used(&fs::read_to_string("/proc/swaps").unwrap_or_default()) {
        // What is on it is lost with the power in any case.
        if let Err(error) = swap_call::off(Path::new(&device)) {
            log::line(log::Level::Warning, &format!("swap on {device} could not be ended: {error}"));
        }
    }
}

/// The devices of /proc/swaps (proc_swaps(5)); ours have no spaces in their names.
fn used(table: &str) -> Vec<String> {
    let device =
        |line: &str| line.split_whitespace().next().filter(|w| w.starts_with('/')).map(str::to_owned);
    table.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_mkswaps() {
        let bytes = header(1 << 20, 4096).unwrap();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(&bytes[4086..], b"SWAPSPACE2");
        assert_eq!(bytes[1024..1032], [1, 0, 0, 0, 255, 0, 0, 0]);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 12);
        assert!(
            header(9 * 4096, 4096).is_none() && header(0, 4096).is_none() && header(u64::MAX, 4096).is_none()
        );
    }

    #[test]
    fn a_disk_gets_a_header_and_keeps_the_rest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        sign(file.path()).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!((bytes.len(), &bytes[..4096]), (1 << 20, header(1 << 20, 4096).unwrap().as_slice()));
    }

    #[test]
    fn swaps_are_found_in_the_kernels_table() {
        let table = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/zram0 partition 1 0 100\n/dev/sdb partition 9 0 -2\n";
        assert_eq!(used(table), ["/dev/zram0", "/dev/sdb"]);
        assert!(used("").is_empty());
    }
}
