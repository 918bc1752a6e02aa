//! L1's initramfs: the agent as `/init`, the modules in order, and what the agent shall mount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cpio::newc::Builder;
use cpio::write_cpio;
use undercroft_lab::launch::{MODULES, MOUNTS, Mounts};

/// Writes the archive.
pub(super) fn write(agent: &Path, modules: &[PathBuf], mounts: &Mounts, out: &Path) -> io::Result<()> {
    let mut entries: Vec<(String, u32, Vec<u8>)> = vec![
        ("dev".into(), 0o040_755, vec![]),
        ("host".into(), 0o040_755, vec![]),
        ("proc".into(), 0o040_755, vec![]),
        ("sys".into(), 0o040_755, vec![]),
        (MODULES.into(), 0o040_755, vec![]),
        ("init".into(), 0o100_755, fs::read(agent)?),
        (MOUNTS.into(), 0o100_644, postcard::to_allocvec(mounts).map_err(io::Error::other)?),
    ];
    for (n, path) in modules.iter().enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        entries.push((format!("{MODULES}/{n:02}-{name}"), 0o100_644, fs::read(path)?));
    }
    let console = Builder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1).ino(1);
    let files = entries.into_iter().enumerate().map(|(n, (name, mode, content))| {
        (Builder::new(&name).mode(mode).ino(n as u32 + 2), io::Cursor::new(content))
    });
    let mut files: Vec<_> = files.collect();
    // After its folder, which is the first.
    files.insert(1, (console, io::Cursor::new(vec![])));
    let temporary = out.with_extension("tmp");
    write_cpio(files.into_iter(), fs::File::create(&temporary)?)?;
    fs::rename(&temporary, out)
}
