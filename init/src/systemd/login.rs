//! The login session that all of the host's sessions of one user are in.
//!
//! The first one has systemd start it: PAM and logind make the session, /run/user/UID and user@UID.service. Later ones find
//! the process that holds it open by a file of root's. Where a distribution has less, sessions have less; none of it is
//! worth a warning, because a distribution without PAM's module for it has chosen so.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{QUESTION, systemctl, units::SESSION};
use crate::users::User;

/// A file for each user id, with the process id of who holds the session open, or nothing if nobody could.
pub(super) const HOLDERS: &str = "/run/undercroft/sessions";
/// Where the distribution's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where logind and its clients meet.
const BUS: &str = "/run/dbus/system_bus_socket";

/// Variables that say which session a process is in (pam_systemd(8), "Environment").
const VARIABLES: [&str; 5] = [
    "XDG_SESSION_ID",
    "XDG_SESSION_CLASS",
    "XDG_SESSION_TYPE",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
];

/// What a program needs to be in the session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Login {
    /// Variables that it gets.
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// The session's cgroup.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Login {
    /// Finds the user's session, or starts it, which may take that long, and ten seconds in any case.
    pub(crate) fn of(user: &User, limit: Duration) -> Self {
        // PAM knows no users that are only numbers.
        if user.name.to_str().and_then(|name| name.parse().ok()) == Some(user.uid) {
            return Self::default();
        }
        let limit = limit.max(QUESTION);
        let file = Path::new(HOLDERS).join(user.uid.to_string());
        let held = match fs::read_to_string(&file) {
            Ok(text) if text.is_empty() => None,
            Ok(text) => {
                cgroup(user.uid, &text).map(|cgroup| (text, cgroup)).or_else(|| open(user, limit, &file))
            }
            Err(_) => open(user, limit, &file),
        };
        let (environ, cgroup) = match held {
            Some((pid, cgroup)) => {
                (fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(), Some(cgroup))
            }
            None => (Vec::new(), None),
        };
        let mut login = Self { environment: variables(&environ), cgroup };
        let runtime = format!("/run/user/{}", user.uid);
        login.complete("XDG_RUNTIME_DIR", &runtime, &runtime);
        login.complete(
            "DBUS_SESSION_BUS_ADDRESS",
            &format!("unix:path={runtime}/bus"),
            &format!("{runtime}/bus"),
        );
        login
    }

    /// Adds a variable that is not there although what it names is.
    fn complete(&mut self, name: &str, value: &str, path: &str) {
        let known = self.environment.iter().any(|(other, _)| other == name.as_bytes());
        if !known && Path::new(path).exists() {
            self.environment.push((name.into(), value.into()));
        }
    }
}

/// Starts the session, and remembers what came of it.
fn open(user: &User, limit: Duration, file: &Path) -> Option<(String, PathBuf)> {
    let held = Path::new(BUS).exists().then(|| ask_systemd(user, limit)).flatten();
    // Without a memory the next session tries again. Another may be reading: it finds all of it or nothing.
    let new = file.with_extension(std::process::id().to_string());
    let _ = fs::write(&new, held.as_ref().map_or("", |(pid, _)| pid)).and_then(|()| fs::rename(&new, file));
    held
}

fn ask_systemd(user: &User, limit: Duration) -> Option<(String, PathBuf)> {
    let unit = format!("{SESSION}{}.service", user.uid);
    systemctl::ask(&["start", &unit], limit)?;
    let pid = systemctl::ask(&["show", "--property=MainPID", "--value", &unit], limit)?.trim().to_owned();
    let held = cgroup(user.uid, &pid).map(|cgroup| (pid, cgroup));
    if held.is_none() {
        // No session for want of PAM's module: its manager may be there nevertheless.
        systemctl::ask(&["stop", &unit], limit)?;
        systemctl::ask(&["start", &format!("user@{}.service", user.uid)], limit)?;
    }
    held
}

/// The cgroup of a process, if it is one of this user's login sessions.
fn cgroup(uid: u32, pid: &str) -> Option<PathBuf> {
    let pid: u32 = pid.parse().ok().filter(|pid| *pid != 0)?;
    session_of(uid, &fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// cgroups(7), /proc/PID/cgroup: `0::/path`.
fn session_of(uid: u32, text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let scope = path.strip_prefix(&format!("/user.slice/user-{uid}.slice/"))?;
    let number = scope.strip_prefix("session-")?.strip_suffix(".scope")?;
    number
        .bytes()
        .all(|b| b.is_ascii_alphanumeric())
        .then(|| Path::new(CGROUPS).join(path.trim_start_matches('/')))
}

/// Those of a process's variables that say which session it is in.
fn variables(environ: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = environ.split(|b| *b == 0).filter_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    });
    pairs
        .filter(|(name, _)| VARIABLES.iter().any(|known| known.as_bytes() == *name))
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_taken_only_if_it_is_a_session_of_the_user_s() {
        let found = session_of(1000, "0::/user.slice/user-1000.slice/session-c1.scope\n");
        assert_eq!(found, Some("/sys/fs/cgroup/user.slice/user-1000.slice/session-c1.scope".into()));
        for other in [
            "0::/user.slice/user-0.slice/session-1.scope\n",
            "0::/user.slice/user-1000.slice/session-1.scope/below\n",
            "0::/user.slice/user-1000.slice/session-../../x.scope\n",
            "0::/system.slice/undercroft-session@1000.service\n",
            "0::/init.scope\n",
            "",
        ] {
            assert_eq!(session_of(1000, other), None, "{other}");
        }
    }

    #[test]
    fn only_the_session_s_variables_are_taken() {
        let environ =
            b"HOME=/home/ada\0XDG_SESSION_ID=c1\0LD_PRELOAD=x\0\0XDG_RUNTIME_DIR=/run/user/1=2\0broken";
        let expected: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b"XDG_SESSION_ID".into(), b"c1".into()),
            (b"XDG_RUNTIME_DIR".into(), b"/run/user/1=2".into()),
        ];
        assert_eq!(variables(environ), expected);
    }
}
