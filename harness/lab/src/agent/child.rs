//! The making of a command's process: pipes or a terminal, control group, identity, and exec.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{OFlag, open};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;

use undercroft_lab::wire::{Size, Start};

/// The control group that holds one group per command.
pub(crate) const GROUPS: &str = "/sys/fs/cgroup/lab";

/// A process that was started, with our ends of its streams.
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) group: Option<PathBuf>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

pub(crate) fn spawn(number: u32, start: &Start) -> Result<Child, String> {
    let (program, arguments) = start.argv.split_first().ok_or("a command needs a program")?;
    let name = OsStr::from_bytes(program);
    let mut command = Command::new(name);
    command.args(arguments.iter().map(|a| OsStr::from_bytes(a)));
    command.env_clear();
    command.envs(start.environment.iter().map(|(k, v)| (OsStr::from_bytes(k), OsStr::from_bytes(v))));
    if !start.directory.is_dir() {
        return Err(format!(
            "{} does not exist in the lab, where the host's files are at their own paths, but for those in /run and /dev/shm",
            start.directory.display()
        ));
    }
    command.current_dir(&start.directory);

    make_runtime_folder(start);
    let group = make_group(number);
    let mut ours = [None, None, None];
    match start.terminal {
        Some(size) => {
            let (main, side) = terminal(size, start.uid).map_err(|e| format!("making a terminal: {e}"))?;
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| format!("making a terminal: {e}"));
            command
                .stdin(Stdio::from(copy(&side)?))
                .stdout(Stdio::from(copy(&side)?))
                .stderr(Stdio::from(side));
            ours[1] = Some(copy(&main)?);
            ours[0] = Some(main);
        }
        None => {
            command.stdin(if start.no_stdin { Stdio::null() } else { Stdio::piped() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }

    let processes = group.as_ref().and_then(|g| group_file(g));
    let (uid, gid, groups) = (start.uid, start.gid, start.groups.clone());
    let is_terminal = start.terminal.is_some();
    let enter = move || {
        // SAFETY: system calls on plain numbers and on memory that the closure owns; all are safe after fork.
        unsafe {
            if let Some(fd) = &processes {
                libc::write(fd.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            if libc::setsid() < 0
                || (is_terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0)
                || libc::setgroups(groups.len(), groups.as_ptr()) < 0
                || libc::setgid(gid) < 0
                || libc::setuid(uid) < 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
    let spawned = command.spawn();
    // The command holds our copies of the terminal's other side: while they are open, its end is never seen.
    drop(command);
    let mut child = spawned.map_err(|e| {
        if let Some(group) = &group {
            let _ = std::fs::remove_dir(group);
        }
        format!("{}: {e}", name.display())
    })?;
    let [stdin, stdout, stderr] = ours;
    Ok(Child {
        pid: child.id() as i32,
        group,
        stdin: child.stdin.take().map(OwnedFd::from).or(stdin),
        stdout: child.stdout.take().map(OwnedFd::from).or(stdout),
        stderr: child.stderr.take().map(OwnedFd::from).or(stderr),
    })
}

/// What `XDG_RUNTIME_DIR` names, which logging in would have made.
fn make_runtime_folder(start: &Start) {
    let folder = Path::new("/run/user").join(start.uid.to_string());
    if !folder.exists() && std::fs::create_dir_all(&folder).is_ok() {
        let _ = nix::unistd::chown(&folder, Some(start.uid.into()), Some(start.gid.into()));
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
    }
}

fn make_group(number: u32) -> Option<PathBuf> {
    let group = Path::new(GROUPS).join(number.to_string());
    std::fs::create_dir(&group).ok()?;
    Some(group)
}

fn group_file(group: &Path) -> Option<OwnedFd> {
    open(&group.join("cgroup.procs"), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// A pseudo-terminal: our side, and the command's.
fn terminal(size: Size, uid: u32) -> nix::Result<(OwnedFd, OwnedFd)> {
    let main = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&main)?;
    unlockpt(&main)?;
    let name = ptsname_r(&main)?;
    let side = open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
    let _ = nix::unistd::chown(name.as_str(), Some(uid.into()), None);
    let _ = std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o620));
    resize(main.as_fd(), size);
    // SAFETY: the descriptor is taken out of its owner and into another one.
    let main = unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(main)) };
    Ok((main, side))
}

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// Gives the terminal a size; the kernel tells the foreground program.
pub(crate) fn resize(terminal: BorrowedFd<'_>, size: Size) {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    let _ = unsafe { set_size(terminal.as_raw_fd(), &size) };
}
