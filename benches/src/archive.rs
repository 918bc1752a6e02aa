//! The machine's one initramfs: files at the paths where the plan names them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use cpio::{NewcBuilder, newc};

use crate::Error;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: (u32, u32) = (5, 1);
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Files to be put into the initramfs, by their absolute path in the machine.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    files: BTreeMap<PathBuf, Content>,
}

#[derive(Debug, Clone)]
enum Content {
    Copy(PathBuf),
    Bytes(Vec<u8>),
}

impl Archive {
    /// Puts a copy of the host's file `from` at `path`.
    pub fn copy(&mut self, from: impl Into<PathBuf>, path: impl Into<PathBuf>) {
        self.files.insert(path.into(), Content::Copy(from.into()));
    }

    /// Puts a file with these bytes at `path`.
    pub fn bytes(&mut self, bytes: Vec<u8>, path: impl Into<PathBuf>) {
        self.files.insert(path.into(), Content::Bytes(bytes));
    }

    /// Puts a program at `path`, and the shared libraries it needs at their own paths.
    pub fn program(&mut self, from: &Path, path: impl Into<PathBuf>) -> Result<(), Error> {
        for library in libraries(from)? {
            self.copy(library.clone(), library);
        }
        self.copy(from, path);
        Ok(())
    }

    /// Writes it all, uncompressed, the same bytes for the same content.
    pub fn write(&self, out: &Path) -> Result<(), Error> {
        let mut directories = BTreeMap::new();
        for path in self.files.keys() {
            for parent in path.ancestors().skip(1).filter(|p| p.parent().is_some()) {
                directories.insert(parent, ());
            }
        }
        directories.insert(Path::new("/dev"), ());
        let mut file = io::BufWriter::new(fs::File::create(out).map_err(Error::io("create", out))?);
        let mut inode = 0;
        let mut add = |name: &Path, mode: u32, device: (u32, u32), bytes: &[u8]| -> io::Result<()> {
            inode += 1;
            let name = name.strip_prefix("/").unwrap_or(name).to_string_lossy();
            let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let entry = NewcBuilder::new(&name).ino(inode).mode(mode).nlink(1).mtime(0);
            let mut entry = entry.rdev_major(device.0).rdev_minor(device.1).write(&mut file, size);
            entry.write_all(bytes)?;
            entry.finish().map(|_| ())
        };
        for directory in directories.keys() {
            add(directory, DIRECTORY, (0, 0), &[]).map_err(Error::io("write", out))?;
        }
        add(Path::new("/dev/console"), CHARACTER_DEVICE, CONSOLE, &[]).map_err(Error::io("write", out))?;
        for (path, content) in &self.files {
            let bytes = match content {
                Content::Copy(from) => fs::read(from).map_err(Error::io("read", from))?,
                Content::Bytes(bytes) => bytes.clone(),
            };
            add(path, PROGRAM, (0, 0), &bytes).map_err(Error::io("write", out))?;
        }
        newc::trailer(&mut file).map_err(Error::io("write", out))?;
        file.flush().map_err(Error::io("write", out))
    }
}

/// The shared libraries that a program needs, its interpreter among them; none for a static one.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let output = duct::cmd!("ldd", program)
        .env("LC_ALL", "C")
        .stdout_capture()
        .stderr_null()
        .unchecked()
        .run()
        .map_err(|source| Error::Program {
            program: "ldd".into(),
            help: "it comes with libc-bin".into(),
            source,
        })?;
    parse_ldd(program, &String::from_utf8_lossy(&output.stdout))
}

/// `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the interpreter, or `NAME (ADDRESS)` for the vDSO.
fn parse_ldd(program: &Path, text: &str) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, rest) = line.split_once(" => ").unwrap_or(("", line));
        if rest.starts_with("not found") {
            return Err(Error::Library { program: program.into(), library: name.into() });
        }
        if let Some(path) = rest.split(' ').next().filter(|path| path.starts_with('/')) {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(Path::new("p"), text).unwrap(), expected);
        assert_eq!(parse_ldd(Path::new("p"), "\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert!(parse_ldd(Path::new("p"), "\tlibz.so.1 => not found\n").is_err());
    }

    #[test]
    fn parents_come_before_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.bytes(b"x".to_vec(), "/a/b/c");
        let out = dir.path().join("out");
        archive.write(&out).unwrap();
        let bytes = fs::read(&out).unwrap();
        let at = |name: &[u8]| bytes.windows(name.len()).position(|w| w == name).unwrap();
        assert!(at(b"a\0") < at(b"a/b\0") && at(b"a/b\0") < at(b"a/b/c\0"));
    }
}
