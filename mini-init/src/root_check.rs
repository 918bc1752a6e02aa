//! Is this a root file system, and one for this machine?

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// Why something is not a root file system to be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotARoot {
    /// Neither of the two things that every root file system has one of.
    #[error(
        "expected a root file system, with /etc or /bin/sh at its top, and found neither: is it below a directory?"
    )]
    Nothing,
    /// Its programs are for other CPUs.
    #[error(
        "its programs are for {theirs}, and this machine is {ours}: take the root file system for {ours}"
    )]
    Architecture {
        /// The architecture in the ELF header of /bin/sh.
        theirs: String,
        /// This machine's.
        ours: &'static str,
    },
    /// It cannot even be looked at.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// Looks at a root file system. Links in it are followed as they would be from inside.
pub(crate) fn check(root: &Path) -> Result<(), NotARoot> {
    let unreadable = |error: std::io::Error| NotARoot::Unreadable(error.to_string());
    let root = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(root).map_err(unreadable)?;
    check_at(root.as_fd())
}

/// The same, of a directory that is open.
pub(crate) fn check_at(root: BorrowedFd<'_>) -> Result<(), NotARoot> {
    let open = |path: &str, flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::empty())
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(root, path, how).map(File::from)
    };
    let has_etc = open("etc", OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok();
    // O_NONBLOCK: a fifo called /bin/sh must not hold us up.
    let shell = open("bin/sh", OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok();
    if !has_etc && shell.is_none() {
        return Err(NotARoot::Nothing);
    }
    // One without a shell may be of use (a single static program), and shows its architecture when it is executed.
    let mut header = Vec::new();
    if let Some(shell) = shell {
        let _ = shell.take(20).read_to_end(&mut header);
    }
    match machine(&header) {
        Some(machine) if !RUNS_HERE.contains(&machine) => {
            Err(NotARoot::Architecture { theirs: name(machine), ours: std::env::consts::ARCH })
        }
        _ => Ok(()),
    }
}

/// ELF machine numbers that this machine's kernel executes.
#[cfg(target_arch = "x86_64")]
const RUNS_HERE: [u16; 2] = [libc::EM_X86_64, libc::EM_386];
/// ELF machine numbers that this machine's kernel executes.
#[cfg(target_arch = "aarch64")]
const RUNS_HERE: [u16; 2] = [libc::EM_AARCH64, libc::EM_ARM];

/// The machine that an ELF file is for (ELF specification, figure 1-3: `e_ident`, then `e_type`, then `e_machine`, in the
/// file's own byte order). `None` for what is not ELF, such as a script.
fn machine(header: &[u8]) -> Option<u16> {
    let number = *header.get(18..20)?.first_chunk::<2>()?;
    match header {
        [0x7f, b'E', b'L', b'F', _class, 1, ..] => Some(u16::from_le_bytes(number)),
        [0x7f, b'E', b'L', b'F', _class, 2, ..] => Some(u16::from_be_bytes(number)),
        _ => None,
    }
}

/// A machine number in people's words.
fn name(machine: u16) -> String {
    let name = match machine {
        libc::EM_386 => "i386",
        libc::EM_X86_64 => "x86_64",
        libc::EM_ARM => "arm",
        libc::EM_AARCH64 => "aarch64",
        libc::EM_RISCV => "riscv",
        libc::EM_PPC64 => "ppc64",
        libc::EM_S390 => "s390x",
        libc::EM_MIPS => "mips",
        258 => "loongarch",
        other => return format!("another architecture (ELF machine {other})"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn elf(machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend(machine.to_le_bytes());
        bytes
    }

    #[test]
    fn a_directory_with_etc_is_a_root_and_an_empty_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(check(root.path()), Err(NotARoot::Nothing));
        fs::create_dir(root.path().join("etc")).unwrap();
        assert_eq!(check(root.path()), Ok(()));
    }

    #[test]
    fn another_architecture_is_recognised_through_links_that_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        symlink("dash", root.path().join("usr/bin/sh")).unwrap();
        fs::write(root.path().join("usr/bin/dash"), elf(libc::EM_AARCH64)).unwrap();
        if cfg!(target_arch = "x86_64") {
            let expected = NotARoot::Architecture { theirs: "aarch64".into(), ours: "x86_64" };
            assert_eq!(check(root.path()), Err(expected));
            fs::write(root.path().join("usr/bin/dash"), elf(libc::EM_X86_64)).unwrap();
            assert_eq!(check(root.path()), Ok(()));
        }
    }

    #[test]
    fn a_script_or_a_fifo_for_a_shell_is_no_reason_to_refuse() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/sh"), "#!/bin/other\n").unwrap();
        assert_eq!(check(root.path()), Ok(()));
        fs::remove_file(root.path().join("bin/sh")).unwrap();
        nix::unistd::mkfifo(&root.path().join("bin/sh"), Mode::from_bits_truncate(0o644)).unwrap();
        assert_eq!(check(root.path()), Ok(()));
    }
}
