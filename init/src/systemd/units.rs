//! What systemd is told by files below /run/systemd/system: units of the companion's, and those that must not run.
//!
//! systemd.unit(5): /run comes after /etc and before /usr, so whoever wants a unit all the same puts it into /etc.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, symlink},
        net::UnixDatagram,
    },
    path::Path,
};

use nix::unistd::{Pid, pause};

use super::FOLDER;

const UNITS: &str = "/run/systemd/system";
/// Holds the companion's process id.
const PID_FILE: &str = "/run/undercroft/companion.pid";
/// The unit whose instances, one for each user id, open the users' login sessions.
pub(super) const SESSION: &str = "undercroft-session@";
/// The argument by which that unit has this program hold a session open.
const HOLD: &str = "hold-session";

/// Units that cannot work in any distribution, or must not run in one, and are not kept from it by their own conditions.
const MASKED: [(&str, &str); 4] = [
    ("systemd-modules-load.service", "modules are the VM's, and load when they are needed"),
    ("sys-kernel-debug.mount", "the kernel refuses debugfs to a user namespace, and it shows the whole VM"),
    ("sys-kernel-tracing.mount", "the same, for tracefs"),
    ("sys-kernel-config.mount", "the same, for configfs"),
];

/// Writes all of it. `init` is this program's path.
pub(super) fn write(init: &Path) -> io::Result<()> {
    make_directory(FOLDER, 0o700)?;
    make_directory(super::login::HOLDERS, 0o700)?;
    let wanted = format!("{UNITS}/multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    fs::write(format!("{UNITS}/undercroft-init.service"), companion())?;
    symlink("../undercroft-init.service", format!("{wanted}/undercroft-init.service"))?;
    fs::write(format!("{UNITS}/{SESSION}.service"), session(&init.display().to_string()))?;
    // systemd would unmount it while it stops, and fail: it is in use to the end.
    let drop_in = format!("{UNITS}/init.mount.d");
    fs::create_dir(&drop_in)?;
    fs::write(format!("{drop_in}/undercroft.conf"), "[Unit]\nDefaultDependencies=no\n")?;
    for (unit, _) in MASKED {
        symlink("/dev/null", format!("{UNITS}/{unit}"))?;
    }
    Ok(())
}

/// Says which process the companion's unit is.
pub(super) fn companion_is(pid: Pid) -> io::Result<()> {
    fs::write(PID_FILE, format!("{pid}\n"))
}

fn make_directory(path: &str, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// A service that is there already: systemd takes the process that root's PID file names for the main one, although it
/// was not started by the unit (systemd.service(5), `PIDFile=`). It is stopped before what sessions talk to.
fn companion() -> String {
    format!(
        "[Unit]\n\
         Description=Sessions of the host's\n\
         After=dbus.service systemd-logind.service systemd-user-sessions.service\n\
         # Without it nobody could come in any more.\n\
         SuccessAction=poweroff\n\
         FailureAction=poweroff\n\
         \n\
         [Service]\n\
         Type=forking\n\
         ExecStart=true\n\
         PIDFile={PID_FILE}\n\
         KillMode=process\n"
    )
}

/// A login session as PAM and logind make one, with nothing in it but a process that waits. `login -f`, which the
/// reference system has for this, would run the user's shell and its files on a terminal that nobody sees.
fn session(init: &str) -> String {
    // `%` begins a specifier and `"` a quote (systemd.service(5), "Command lines").
    let init = init.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!(
        "[Unit]\n\
         Description=Session of user %i, for the host's sessions\n\
         After=systemd-user-sessions.service\n\
         CollectMode=inactive-or-failed\n\
         \n\
         [Service]\n\
         Type=notify\n\
         User=%i\n\
         PAMName=login\n\
         Environment=XDG_SESSION_CLASS=user XDG_SESSION_TYPE=unspecified\n\
         ExecStart=\"{init}\" {HOLD}\n"
    )
}

/// Whether this program was started to hold a session open; then it does until it is killed. It says itself that PAM is done
/// with it: systemd 252 (`Type=exec`) would wait for the end of PAM's own process too.
pub(crate) fn hold_session() -> bool {
    if std::env::args_os().nth(1).is_none_or(|argument| argument != HOLD) || std::process::id() == 1 {
        return false;
    }
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        // Unheard, it is killed after a while, and its session with it.
        let _ = UnixDatagram::unbound().and_then(|it| it.send_to(b"READY=1", socket));
    }
    loop {
        pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_s_path_is_quoted() {
        assert!(session("/init").contains("\nExecStart=\"/init\" hold-session\n"));
        assert!(session("/a b/50%\"").contains("\nExecStart=\"/a b/50%%\\\"\" hold-session\n"));
    }
}
