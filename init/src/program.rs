//! A session's process, from its fork to its exec.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::FileTypeExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    sys::stat::{Mode, umask},
    unistd::{
        Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setgid, setgroups, setsid, setuid,
    },
};
use undercroft_protocol::session::{Exec, Program, StartError, Stdio};

use crate::{process, server::About, systemd::login::Login, terminal, users::User};

/// The PATH of every session, root's or not: a distribution's own shell files narrow it where it matters.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What becomes the process's descriptors 0, 1 and 2.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Pipes or /dev/null.
    Three(File, File, File),
    /// The terminal's slave.
    Terminal(File),
}

/// Becomes the program. Returns only with why not.
pub(crate) fn become_it(exec: &Exec, user: &User, about: &About, login: &Login, ends: &Ends) -> StartError {
    let other = |what: &'static str| move |error: io::Error| StartError::Other(format!("{what}: {error}"));
    let errno = |what: &'static str| move |error: Errno| StartError::Other(format!("{what}: {error}"));
    let prepared = (|| {
        setsid().map_err(errno("setsid"))?;
        connect_ends(ends, user).map_err(other("connecting the program's input and output"))?;
        process::reset_signals();
        if let Some(cgroup) = &login.cgroup {
            // 0 is the writer (cgroups(7)). A session that has just ended leaves the program where this process is.
            let _ = std::fs::write(cgroup.join("cgroup.procs"), "0");
        }
        umask(Mode::from_bits_truncate(about.configuration.umask));
        // Not protected as the inits are; a distribution's user may not set it later.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(errno("setgroups"))?;
        setgid(Gid::from_raw(user.gid)).map_err(errno("setgid"))?;
        setuid(Uid::from_raw(user.uid)).map_err(errno("setuid"))?;
        enter_directory(exec.directory.as_deref(), user)
    })();
    match prepared {
        Ok(()) => execute(&exec.program, user, environment(exec, user, about, login)),
        Err(error) => error,
    }
}

fn connect_ends(ends: &Ends, user: &User) -> io::Result<()> {
    let (stdin, stdout, stderr) = match ends {
        Ends::Three(stdin, stdout, stderr) => (stdin, stdout, stderr),
        Ends::Terminal(slave) => {
            terminal::take_control(slave)?;
            // devpts gives the slave to whoever opened the master; its group stays `tty`.
            std::os::unix::fs::fchown(slave, Some(user.uid), None)?;
            (slave, slave, slave)
        }
    };
    dup2_stdin(stdin.as_fd())?;
    dup2_stdout(stdout.as_fd())?;
    dup2_stderr(stderr.as_fd())?;
    // A pipe that another user made cannot be opened anew by /dev/stdout otherwise (proc(5), /proc/pid/fd).
    if let Ends::Three(..) = ends
        && user.uid != 0
    {
        for end in [stdin, stdout, stderr] {
            if end.metadata().is_ok_and(|m| m.file_type().is_fifo()) {
                let _ = std::os::unix::fs::fchown(end, Some(user.uid), Some(user.gid));
            }
        }
    }
    Ok(())
}

/// The directory that was asked for; else the home, and where there is no such directory, the root, as login(1) has it.
fn enter_directory(wanted: Option<&[u8]>, user: &User) -> Result<(), StartError> {
    let Some(wanted) = wanted else {
        if chdir(&user.home).is_err() {
            let _ = chdir("/");
        }
        return Ok(());
    };
    let path = match wanted {
        b"~" => user.home.clone(),
        [b'~', b'/', rest @ ..] => user.home.join(OsStr::from_bytes(rest)),
        path => OsStr::from_bytes(path).into(),
    };
    chdir(&path).map_err(|error| StartError::Directory(format!("{}: {}", path.display(), error.desc())))
}

/// The login environment, with what the host adds; a later value of a name takes the place of an earlier one.
fn environment(exec: &Exec, user: &User, about: &About, login: &Login) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let name = user.name.as_bytes().to_vec();
    let mut all: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"PATH".into(), PATH.into()),
        (b"HOME".into(), bytes(&user.home)),
        (b"USER".into(), name.clone()),
        (b"LOGNAME".into(), name),
        (b"SHELL".into(), bytes(&user.shell)),
        (b"LANG".into(), about.language.clone().into_bytes()),
        (b"HOSTTYPE".into(), std::env::consts::ARCH.into()),
        (b"NAME".into(), about.hostname.clone().into_bytes()),
        (b"UNDERCROFT_DISTRO".into(), about.launch.name.clone().into_bytes()),
    ];
    if matches!(exec.stdio, Stdio::Terminal { .. }) {
        all.push((b"TERM".into(), b"xterm-256color".into()));
    }
    for (name, value) in login.environment.iter().chain(&exec.environment) {
        all.retain(|(other, _)| other != name);
        all.push((name.clone(), value.clone()));
    }
    all
}

fn execute(program: &Program, user: &User, environment: Vec<(Vec<u8>, Vec<u8>)>) -> StartError {
    let shell = user.shell.as_os_str().as_bytes();
    let shell_name = user.shell.file_name().unwrap_or_default().as_bytes();
    let path = environment
        .iter()
        .find(|(name, _)| name == b"PATH")
        .map(|(_, value)| value.clone())
        .unwrap_or_default();
    let (file, arguments) = match program {
        // The dash makes it a login shell (bash(1), INVOCATION).
        Program::LoginShell => (shell.to_vec(), vec![[b"-", shell_name].concat()]),
        Program::LoginCommand(line) => {
            (shell.to_vec(), vec![[b"-", shell_name].concat(), b"-c".to_vec(), line.clone()])
        }
        Program::ShellCommand(line) => {
            (shell.to_vec(), vec![shell_name.to_vec(), b"-c".to_vec(), line.clone()])
        }
        Program::Argv(arguments) => match arguments.first() {
            Some(file) if !file.is_empty() => (file.clone(), arguments.clone()),
            _ => return StartError::NotFound("no program was named".into()),
        },
    };
    let strings = |list: Vec<Vec<u8>>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let assignments =
        environment.into_iter().map(|(name, value)| [name, b"=".to_vec(), value].concat()).collect();
    let (Ok(arguments), Ok(environment)) = (strings(arguments), strings(assignments)) else {
        return StartError::Other("an argument or environment variable holds a zero byte".into());
    };
    try_each(&file, &path, &arguments, &environment)
}

/// As execvpe(3): tries the directories of PATH, unless the name has a slash in it.
fn try_each(file: &[u8], path: &[u8], arguments: &[CString], environment: &[CString]) -> StartError {
    let name = String::from_utf8_lossy(file).into_owned();
    let candidates: Vec<Vec<u8>> = if file.contains(&b'/') {
        vec![file.to_vec()]
    } else {
        let in_directory = |directory: &[u8]| match directory {
            [] => [b"./", file].concat(),
            directory => [directory, b"/", file].concat(),
        };
        path.split(|b| *b == b':').map(in_directory).collect()
    };
    let mut worst = None;
    for candidate in candidates {
        let Ok(candidate) = CString::new(candidate) else {
            return StartError::Other("the program's name holds a zero byte".into());
        };
        let error = execve(&candidate, arguments, environment).err().unwrap_or(Errno::UnknownErrno);
        let exists = || Path::new(OsStr::from_bytes(candidate.as_bytes())).is_file();
        match error {
            // The file is there: what is missing is the interpreter that its first bytes name.
            Errno::ENOENT if exists() => {
                return StartError::NotFound(format!(
                    "{name}: the interpreter that it asks for is not there"
                ));
            }
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Some(error),
            Errno::ENOEXEC
            | Errno::EISDIR
            | Errno::EPERM
            | Errno::ELOOP
            | Errno::ETXTBSY
            | Errno::ELIBBAD => {
                return StartError::NotExecutable(format!("{name}: {}", error.desc()));
            }
            error => return StartError::Other(format!("{name}: {}", error.desc())),
        }
    }
    match worst {
        Some(error) => StartError::NotExecutable(format!("{name}: {}", error.desc())),
        None => StartError::NotFound(format!("{name}: no such program")),
    }
}
