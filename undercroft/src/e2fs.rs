//! The programs of e2fsprogs that this crate runs.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::error::{Error, Result};

/// What an ext4 file system says of itself (Documentation/filesystems/ext4, "Super Block": at byte 1024; s_blocks_count_lo
/// at 4, s_log_block_size at 0x18, s_magic at 0x38, s_feature_incompat at 0x60, s_blocks_count_hi at 0x150).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Bytes of a block.
    pub(crate) block: u64,
    /// Blocks.
    pub(crate) blocks: u64,
}

impl Superblock {
    /// Reads it; `None` if there is none, or none that makes sense.
    pub(crate) fn read(disk: &File) -> io::Result<Option<Self>> {
        const WIDE: u32 = 0x80;
        let mut bytes = [0; 1024];
        match disk.read_exact_at(&mut bytes, 1024) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let word = |at: usize| {
            let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
            found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        // 64 KiB are the largest blocks.
        if word(0x38) as u16 != 0xef53 || word(0x18) > 6 {
            return Ok(None);
        }
        let high = if word(0x60) & WIDE != 0 { u64::from(word(0x150)) << 32 } else { 0 };
        Ok(Some(Self { block: 1024 << word(0x18), blocks: high | u64::from(word(4)) }))
    }

    /// Bytes that it says it has.
    pub(crate) fn size(self) -> u64 {
        self.blocks.saturating_mul(self.block)
    }
}

/// One of them, to be given arguments.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(find(name));
    // What they say is read by people and, where they say a number, here.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    // It dies with this process: the file that it would find a moment later may be another's.
    crate::spawn::prepare(&mut command, Vec::new());
    command
}

/// Runs one to its end. `fine` says which exit statuses are.
pub(crate) fn run(name: &'static str, command: &mut Command, fine: impl Fn(i32) -> bool) -> Result<Output> {
    let output = match command.output() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoProgram { program: name, package: "e2fsprogs" });
        }
        Err(source) => return Err(Error::System { what: "run a program of e2fsprogs", source }),
        Ok(output) => output,
    };
    if output.status.code().is_some_and(fine) {
        return Ok(output);
    }
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
    };
    let message = last(&output.stderr).or_else(|| last(&output.stdout));
    let message = message.unwrap_or_else(|| "it said nothing".into());
    Err(Error::Program { program: name, status: output.status, message })
}

/// Checks a file system that nobody uses, and repairs what can be repaired without asking (e2fsck(8); 1 and 2 are repaired).
pub(crate) fn check(path: &Path) -> Result<()> {
    run("e2fsck", program("e2fsck").args(["-f", "-p"]).arg(path), |status| status < 4).map(drop)
}

/// The smallest size in bytes that a checked file system can have; resize2fs(8) estimates it, and on the safe side.
pub(crate) fn least_size(path: &Path, block: u64) -> Result<u64> {
    let output = run("resize2fs", program("resize2fs").arg("-P").arg(path), |status| status == 0)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let blocks = text.lines().find_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok());
    blocks.and_then(|blocks| blocks.checked_mul(block)).ok_or_else(|| Error::Program {
        program: "resize2fs",
        status: output.status,
        message: format!("expected the smallest size, and it said {:?}", text.trim()),
    })
}

/// Makes a checked file system larger or smaller; `size` is in bytes. The file is at least so long.
pub(crate) fn resize(path: &Path, size: u64) -> Result<()> {
    let size = format!("{}K", size >> 10);
    run("resize2fs", program("resize2fs").arg(path).arg(size), |status| status == 0).map(drop)
}

/// A normal user's PATH often lacks the directories where Debian keeps them.
fn find(name: &str) -> PathBuf {
    let from_path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&from_path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.find_map(|d| Some(d.join(name)).filter(|p| p.is_file())).unwrap_or_else(|| name.into())
}
