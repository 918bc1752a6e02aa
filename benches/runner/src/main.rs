//! PID 1 of the ruler's machine (L1): loads KVM, runs the plan's programs, answers on the console, switches off.

mod spawn;

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::BorrowedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::Child,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd as _,
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{Pid, PidfdFlags, chdir, chroot, pidfd_open},
    system::{RebootCommand, finit_module, reboot},
};
use undercroft_ruler_runner::{ANSWER, Answer, PLAN, Plan, Run, TAG_UP, Until, marker, residence};

/// How long a guest is left alone before its VMM's memory is looked at: it connects before it has settled.
const SETTLE: Duration = Duration::from_millis(500);

fn main() {
    if let Err(error) = run() {
        println!("{ANSWER}{}", serde_json::json!({ "fatal": error.to_string() }));
    }
    let _ = io::stdout().flush();
    let failed = reboot(RebootCommand::PowerOff);
    panic!("cannot switch off: {failed:?}");
}

/// What is mounted where.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Makes the initramfs a root like any other: pivot_root(2), which programs that make containers call, refuses to leave
/// the one that the kernel unpacked.
fn leave_the_first_root() -> io::Result<()> {
    const STEP: &str = "/root-of-the-machine";
    fs::create_dir_all(STEP)?;
    mount_bind("/", STEP)?;
    chdir(STEP)?;
    mount_move(STEP, "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn run() -> io::Result<()> {
    leave_the_first_root()?;
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, MountFlags::empty(), None)?;
    }
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN)?)?;
    for (path, parameters) in &plan.modules {
        load(path, parameters)
            .map_err(|error| io::Error::other(format!("module {}: {error}", path.display())))?;
    }
    for run in &plan.runs {
        for repetition in 0..run.repetitions {
            let mut answer = Answer { name: run.name.clone(), repetition, resident_kib: None, error: None };
            if let Err(error) = once(run, &mut answer) {
                answer.error = Some(error.to_string());
                show_log(run);
            }
            println!("{ANSWER}{}", serde_json::to_string(&answer)?);
        }
    }
    Ok(())
}

fn load(path: &std::path::Path, parameters: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let parameters = std::ffi::CString::new(parameters)?;
    Ok(finit_module(&file, &parameters, 0)?)
}

/// Runs the program once; the child is gone when this returns.
fn once(run: &Run, answer: &mut Answer) -> io::Result<()> {
    let listener = match &run.until {
        Until::Exit => None,
        Until::Connection { socket, .. } => {
            let _ = fs::remove_file(socket);
            Some(UnixListener::bind(socket)?)
        }
    };
    if let Some(log) = &run.log {
        let _ = fs::remove_file(log);
    }
    let mut child = spawn::spawn(&run.program)?;
    let outcome = watch(run, &child, listener.as_ref(), answer);
    let _ = child.kill();
    let status = child.wait()?;
    match outcome? {
        End::Reached => Ok(()),
        End::Exited if run.until == Until::Exit && status.success() => Ok(()),
        End::Exited => Err(io::Error::other(format!("the program ended: {status}"))),
        End::TimeIsUp => Err(io::Error::other(format!("nothing within {} s", run.limit_seconds))),
    }
}

/// How watching a program ended.
enum End {
    /// The guest connected, and was looked at.
    Reached,
    Exited,
    TimeIsUp,
}

/// Waits, without a look at the clock in between: whatever the runner did would be counted with the program.
fn watch(run: &Run, child: &Child, listener: Option<&UnixListener>, answer: &mut Answer) -> io::Result<End> {
    let exited = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Duration::from_secs(run.limit_seconds);
    let first = wait([Some(exited.as_fd()), listener.map(|l| l.as_fd())], limit)?;
    marker::mark::<TAG_UP>();
    let (Some(1), Some(listener), Until::Connection { guest_mib, .. }) = (first, listener, &run.until) else {
        return Ok(if first == Some(0) { End::Exited } else { End::TimeIsUp });
    };
    // Held until the memory has been looked at; the guest's first word stays unread.
    let _connection: (UnixStream, _) = listener.accept()?;
    if wait([Some(exited.as_fd()), None], SETTLE)?.is_some() {
        return Ok(End::Exited);
    }
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
    answer.resident_kib = Some(residence::beyond_guest_kib(&smaps, *guest_mib));
    Ok(End::Reached)
}

/// Which of two descriptors becomes readable first.
fn wait(descriptors: [Option<BorrowedFd<'_>>; 2], limit: Duration) -> io::Result<Option<usize>> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut waiting: Vec<_> = descriptors.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    poll(&mut waiting, Some(&limit))?;
    Ok(waiting.iter().position(|fd| !fd.revents().is_empty()))
}

fn show_log(run: &Run) {
    let Some(log) = &run.log else { return };
    match fs::read(log) {
        Ok(bytes) => println!("--- {}\n{}\n---", log.display(), String::from_utf8_lossy(&bytes)),
        Err(error) => println!("--- {}: {error}", log.display()),
    }
}
