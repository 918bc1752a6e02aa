//! The initramfs: mini-init, the binary that becomes each distribution's `/init`, and the modules that a kernel needs
//! before it has its modules disk.
//!
//! Not compressed, because decompressing costs the guest more than fifteen times as many instructions as copying; and
//! the same bytes for the same content: no times, no owners, inode numbers in order of the names.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use cpio::{NewcBuilder, newc};

use crate::Error;

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

enum Content<'a> {
    Directory,
    /// A character device's major and minor numbers.
    Device(u32, u32),
    Link(&'a str),
    File(&'a Path, u32),
}

/// Writes an initramfs to `out` (whole or not at all):
///
/// | path | what |
/// | --- | --- |
/// | `/init` | `mini_init` |
/// | `/distribution-init` | `init`, bound as `/init` into each distribution |
/// | `/modules/NN-NAME.ko` | `modules`, numbered in the order given, which is the order to load them in |
/// | `/sbin/modprobe` | a link to `/init`: the kernel calls it when it misses a module |
/// | `/dev/console`, `/dev/null` | device nodes: the kernel opens the first before anything is mounted |
/// | `/dev`, `/proc`, `/sys`, `/run`, `/tmp` | empty, to mount on |
pub fn build(mini_init: &Path, init: &Path, modules: &[PathBuf], out: &Path) -> Result<(), Error> {
    let mut entries: Vec<(String, Content)> = vec![
        ("dev".into(), Content::Directory),
        ("dev/console".into(), Content::Device(5, 1)),
        ("dev/null".into(), Content::Device(1, 3)),
        ("distribution-init".into(), Content::File(init, PROGRAM)),
        ("init".into(), Content::File(mini_init, PROGRAM)),
        ("proc".into(), Content::Directory),
        ("run".into(), Content::Directory),
        ("sbin".into(), Content::Directory),
        ("sbin/modprobe".into(), Content::Link("/init")),
        ("sys".into(), Content::Directory),
        ("tmp".into(), Content::Directory),
    ];
    if !modules.is_empty() {
        entries.push(("modules".into(), Content::Directory));
        let digits = modules.len().to_string().len().max(2);
        for (number, path) in modules.iter().enumerate() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            entries.push((format!("modules/{number:0digits$}-{name}"), Content::File(path, FILE)));
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));

    let temporary = out.with_extension(format!("{}.tmp", std::process::id()));
    let written = write(&entries, &temporary)
        .and_then(|()| fs::rename(&temporary, out).map_err(Error::io("rename to", out)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(entries: &[(String, Content)], path: &Path) -> Result<(), Error> {
    let mut out = BufWriter::new(File::create(path).map_err(Error::io("create", path))?);
    for (inode, (name, content)) in (1_u32..).zip(entries) {
        let entry = |mode| NewcBuilder::new(name).ino(inode).mode(mode).nlink(1).mtime(0);
        let add = |out: BufWriter<File>, entry: NewcBuilder, bytes: &[u8]| {
            // The length was checked to fit where the bytes come from.
            let mut writer = entry.write(out, bytes.len() as u32);
            writer.write_all(bytes)?;
            writer.finish()
        };
        let added = match content {
            Content::Directory => add(out, entry(DIRECTORY).nlink(2), &[]),
            Content::Device(major, minor) => {
                add(out, entry(CHARACTER_DEVICE).rdev_major(*major).rdev_minor(*minor), &[])
            }
            Content::Link(target) => add(out, entry(LINK), target.as_bytes()),
            Content::File(source, mode) => add(out, entry(*mode), &read(source)?),
        };
        out = added.map_err(Error::io("write", path))?;
    }
    let mut out = newc::trailer(out).map_err(Error::io("write", path))?;
    out.flush().map_err(Error::io("write", path))
}

/// A file's content, if newc's 32-bit length field can say how long it is.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("look at", path))?.len();
    if u32::try_from(size).is_err() {
        return Err(Error::TooLarge { path: path.into(), size });
    }
    let mut bytes = Vec::new();
    file.take(u64::from(u32::MAX)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_gives_the_same_bytes_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let (mini_init, init) = (file("m", "mini"), file("i", "other"));
        let modules = [file("vsock.ko", "v"), file("ext4.ko", "e")];
        let (one, two) = (dir.path().join("one.cpio"), dir.path().join("two.cpio"));
        build(&mini_init, &init, &modules, &one).unwrap();
        fs::write(&mini_init, "mini").unwrap(); // another modification time
        build(&mini_init, &init, &modules, &two).unwrap();
        let bytes = fs::read(&one).unwrap();
        assert_eq!(bytes, fs::read(&two).unwrap());

        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            assert_eq!(entry.mtime(), 0);
            seen.push((entry.name().to_owned(), entry.mode(), String::from_utf8(content).unwrap()));
            rest = reader.finish().unwrap();
        }
        let names: Vec<_> = seen.iter().map(|(n, ..)| n.as_str()).collect();
        let expected = [
            "dev",
            "dev/console",
            "dev/null",
            "distribution-init",
            "init",
            "modules",
            "modules/00-vsock.ko",
            "modules/01-ext4.ko",
            "proc",
            "run",
            "sbin",
            "sbin/modprobe",
            "sys",
            "tmp",
        ];
        assert_eq!(names, expected);
        assert_eq!(seen[4], ("init".into(), PROGRAM, "mini".into()));
        assert_eq!(seen[11], ("sbin/modprobe".into(), LINK, "/init".into()));
    }

    #[test]
    fn a_missing_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.cpio");
        let missing = dir.path().join("missing");
        assert!(matches!(build(&missing, &missing, &[], &out), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
