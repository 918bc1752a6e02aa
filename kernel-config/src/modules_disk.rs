//! The modules disk: a read-only ext4 image with `lib/modules/RELEASE`, made without root.
//!
//! mke2fs fills it from a directory; what would differ from one run to the next (identifiers, the directories' hash
//! seed, times, the owner) is given to it, or set afterwards by debugfs, which comes in the same package.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    Error,
    modules::{Choice, Tree},
    program,
};

/// The time of everything on the disk: 2025-01-01 00:00:00 UTC, for both programs.
const TIME: &str = "1735689600";
const TIME_DEBUGFS: &str = "20250101000000";

/// Identifier of the file system and seed of its directories' hashes: any constant will do.
const UUID: &str = "75636d6f-6475-4c65-9300-000000000001";

const BLOCK: u64 = 4096;
const PACKAGE: &str = "e2fsprogs";

/// Makes the disk at `out`, by way of a directory next to it.
pub(crate) fn make(tree: &Tree, choice: Choice, release: &str, out: &Path) -> Result<(), Error> {
    let staging = out.with_extension("staging");
    crate::cache::remove_all(&staging)?;
    let made = tree
        .install(choice, &staging.join("lib/modules").join(release))
        .and_then(|()| from_directory(&staging, out));
    let removed = crate::cache::remove_all(&staging);
    made.and(removed)
}

fn from_directory(directory: &Path, out: &Path) -> Result<(), Error> {
    let mut paths = vec![PathBuf::new()];
    let mut bytes = 0;
    list(directory, Path::new(""), &mut paths, &mut bytes)?;
    paths.sort();

    // Content and a block a file, and then an eighth and 1 MiB more for inode tables and directories. What is not
    // needed is a hole in the image.
    let blocks = (bytes / BLOCK + paths.len() as u64) * 9 / 8 + (1 << 20) / BLOCK;
    let mut mke2fs = program::command("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "modules"])
        // Nobody ever writes to it: no journal, no room to grow.
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum_seed"])
        .args(["-N", &(paths.len() + 32).to_string(), "-U", UUID])
        .args(["-E", &format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0")])
        .arg("-d")
        .arg(directory)
        .arg(out)
        .arg(blocks.to_string());
    program::run(sbin(&mut mke2fs).env("E2FSPROGS_FAKE_TIME", TIME), PACKAGE)?;
    level(&paths, out)
}

/// mke2fs and debugfs are in a normal user's `PATH` or in `/sbin`.
fn sbin(command: &mut std::process::Command) -> &mut std::process::Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("MKE2FS_CONFIG", "/dev/null")
}

fn list(root: &Path, below: &Path, paths: &mut Vec<PathBuf>, bytes: &mut u64) -> Result<(), Error> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
        let entry = entry.map_err(Error::io("list", &directory))?;
        let meta = entry.metadata().map_err(Error::io("look at", entry.path()))?;
        let path = below.join(entry.file_name());
        if meta.is_dir() {
            list(root, &path, paths, bytes)?;
        } else {
            *bytes += meta.len();
        }
        paths.push(path);
    }
    Ok(())
}

/// Gives every inode the same times and root as its owner.
fn level(paths: &[PathBuf], image: &Path) -> Result<(), Error> {
    let mut script = format!("set_current_time {TIME_DEBUGFS}\n");
    for path in paths.iter().map(PathBuf::as_path).chain([Path::new("lost+found")]) {
        for field in ["atime", "mtime", "ctime", "crtime"] {
            let _ = writeln!(script, "sif \"/{0}\" {field} {TIME_DEBUGFS}", path.display());
            let _ = writeln!(script, "sif \"/{0}\" {field}_extra 0", path.display());
        }
        for field in ["uid", "gid"] {
            let _ = writeln!(script, "sif \"/{}\" {field} 0", path.display());
        }
    }
    let mut debugfs = program::command("debugfs");
    sbin(&mut debugfs).args(["-w", "-f", "-"]).arg(image).env("E2FSPROGS_FAKE_TIME", TIME);
    debugfs.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = debugfs.spawn().map_err(|e| program::not_started(&debugfs, PACKAGE, e))?;
    // debugfs says one line on stderr, its version, before it reads: no pipe fills up on the other side.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(Error::io("run", "debugfs"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<_> = said.lines().filter(|l| !l.starts_with("debugfs ")).take(3).collect();
    if written.is_err() || !output.status.success() || !complaints.is_empty() {
        return Err(Error::Program {
            program: "debugfs".into(),
            status: output.status.to_string(),
            stderr: complaints.join("; "),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[&str]| {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("lib/modules/1.2/kernel")).unwrap();
            for file in files {
                fs::write(root.join("lib/modules/1.2/kernel").join(file), vec![b'x'; 10_000]).unwrap();
            }
            let image = dir.path().join(format!("{name}.ext4"));
            from_directory(&root, &image).unwrap();
            fs::read(image).unwrap()
        };
        let (one, two) = (make("one", &["a", "b", "c"]), make("two", &["c", "a", "b"]));
        assert!(one == two, "images differ");
        // The magic of an ext file system, 0xef53, at 0x38 in the superblock at 1024.
        assert_eq!(one[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
    }
}
