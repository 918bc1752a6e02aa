//! A lab that is up, made if there is none; and its end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use undercroft_kernel_config::cache;
use undercroft_lab::launch::{Launch, Mounts, Virtiofsd};
use undercroft_lab::pump::Pump;
use undercroft_lab::wire::{Frame, Message, Payload, Report, VERSION};

use super::{Lab, LabError, client, folder, initramfs, kernel};

/// Changes when the broker is to be started in another way with the same files.
const RECIPE: &[u8] = b"1";

/// Seconds without a command after which a lab ends by itself.
const IDLE_SECONDS: u64 = 15 * 60;

/// The lab for this work tree: the one that runs, or a new one. Two that ask at once get the same.
///
/// `UNDERCROFT_LAB_IDLE` (seconds), `UNDERCROFT_LAB_MEMORY` (MiB), `UNDERCROFT_LAB_CPUS` and `UNDERCROFT_LAB_WRITABLE`
/// (folders, separated by colons) change what a new one is like.
pub fn ensure() -> Result<Lab, LabError> {
    ensure_nth(0)
}

/// One of several labs of this work tree that run side by side. A lab has one CPU unless somebody asks for more, because
/// QEMU's emulation of SVM is not free of races: with two, L1's kernel crashed once in some 150 boots of guests.
pub fn ensure_nth(number_of_lab: usize) -> Result<Lab, LabError> {
    if super::inside() {
        return Err(LabError::Inside);
    }
    let qemu = find_qemu()?;
    let virtiofsd = find_virtiofsd()?;
    let program = crate::guest::lab_program()?;
    let kernel = kernel::obtain()?;
    let writable = folder::writable()?;
    let memory_mib = number("UNDERCROFT_LAB_MEMORY").unwrap_or_else(memory);
    let cpus = number("UNDERCROFT_LAB_CPUS").unwrap_or(1).clamp(1, 16) as u32;
    let agent = fs::read(&program).map_err(LabError::at("reading the lab's program"))?;
    let identity = folder::identity(&[
        RECIPE,
        &agent,
        kernel.image.as_os_str().as_encoded_bytes(),
        format!("{qemu:?} {virtiofsd:?} {writable:?} {memory_mib} {cpus}").as_bytes(),
    ]);
    let siblings = identity.clone();
    let identity = if number_of_lab == 0 { identity } else { format!("{identity}-{number_of_lab}") };
    let labs = folder::labs()?;
    let lab = Lab { folder: labs.join(&identity) };

    let _lock = cache::lock(&labs.join("lock"))?;
    if runs(&lab.folder, &identity) {
        return Ok(lab);
    }
    end_silent(&lab.folder);
    retire_others(&labs, &siblings);
    let idle_seconds = number("UNDERCROFT_LAB_IDLE").unwrap_or(IDLE_SECONDS);
    eprintln!(
        "starting the lab (QEMU with emulated SVM); it ends when nothing has run in it for {idle_seconds} seconds"
    );
    folder::make_private(&lab.folder)?;
    let own_program = lab.folder.join("undercroft-lab");
    let initramfs = lab.folder.join("initramfs");
    let mounts = Mounts { writable: writable.clone() };
    replace(&program, &own_program).map_err(LabError::at("copying the lab's program"))?;
    initramfs::write(&program, &kernel.modules, &mounts, &initramfs)
        .map_err(LabError::at("writing the lab's initramfs"))?;
    let launch = Launch {
        folder: lab.folder.clone(),
        identity,
        kernel: kernel.image,
        initramfs,
        qemu,
        virtiofsd,
        writable,
        memory_mib,
        cpus,
        network: true,
        idle_seconds,
    };
    start_broker(&own_program, &launch)?;
    Ok(lab)
}

/// The broker has its own copy: the next build replaces the original while it runs.
fn replace(from: &Path, to: &Path) -> std::io::Result<()> {
    let _ = fs::remove_file(to);
    fs::copy(from, to).map(drop)
}

fn start_broker(program: &Path, launch: &Launch) -> Result<(), LabError> {
    let file = launch.folder.join("launch");
    let bytes = postcard::to_allocvec(launch).map_err(|e| LabError::NotUp(e.to_string()))?;
    fs::write(&file, bytes).map_err(LabError::at("writing the lab's launch file"))?;
    let log =
        fs::File::create(launch.folder.join("broker.log")).map_err(LabError::at("making broker.log"))?;
    // Through setsid, so that the terminal's Ctrl-C and hangup do not reach it.
    let mut broker = Command::new("setsid")
        .arg(program)
        .arg("broker")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(LabError::at("starting the lab's broker"))?;
    let mut said = Vec::new();
    if let Some(stdout) = broker.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line == "ready" {
                // Its end is of no interest to us; init or a later wait takes its status.
                return Ok(());
            }
            said.push(line);
        }
    }
    let _ = broker.wait();
    if said.is_empty() {
        let log = fs::read_to_string(launch.folder.join("broker.log")).unwrap_or_default();
        said.push(log.trim().lines().last().unwrap_or("the broker ended without a word").to_owned());
    }
    Err(LabError::NotUp(said.join("\n")))
}

/// How long a broker may take to answer; it has nothing else to do, but its machine may be very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// One question to a broker, and its answer.
fn ask(folder: &Path, question: Message) -> Option<Message> {
    let stream = client::connect(folder).ok()?;
    let mut pump = Pump::new(stream.into()).ok()?;
    pump.say(0, question);
    answer(&mut pump, PATIENCE)
}

fn answer(pump: &mut Pump, patience: Duration) -> Option<Message> {
    let end = Instant::now() + patience;
    loop {
        pump.flush().ok()?;
        if let Some(Frame { payload: Payload::Message(message), .. }) = pump.next().ok()? {
            return Some(message);
        }
        let left = end.checked_duration_since(Instant::now())?;
        let mut fds = [PollFd::new(pump.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        if !pump.fill(1 << 20).ok()? {
            return None;
        }
    }
}

fn runs(folder: &Path, identity: &str) -> bool {
    let hello = Message::Hello { version: VERSION, name: identity.to_owned() };
    matches!(ask(folder, hello), Some(Message::Hello { version: VERSION, name }) if name == identity)
}

/// Kills a broker that takes connections and does not answer, and with it its QEMU.
fn end_silent(folder: &Path) {
    let Ok(stream) = client::connect(folder) else { return };
    let Ok(peer) = getsockopt(&stream, PeerCredentials) else { return };
    let _ = kill(Pid::from_raw(peer.pid()), Signal::SIGKILL);
}

/// Labs of other builds end as soon as nothing runs in them; folders of dead ones are removed.
fn retire_others(labs: &Path, siblings: &str) {
    let sibling = |f: &PathBuf| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with(siblings));
    for folder in folders(labs).into_iter().filter(|f| !sibling(f)) {
        if !say_retire(&folder) {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

/// Whether there is a lab to hear it.
fn say_retire(folder: &Path) -> bool {
    let Ok(Ok(mut pump)) = client::connect(folder).map(|s| Pump::new(s.into())) else { return false };
    pump.say(0, Message::Retire);
    let _ = pump.flush();
    true
}

/// Has a lab end as soon as nothing runs in it, and waits for that a while.
pub(super) fn retire(folder: &Path) {
    let end = Instant::now() + Duration::from_secs(5);
    if say_retire(folder) {
        while client::connect(folder).is_ok() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn folders(labs: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(labs).into_iter().flatten();
    entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect()
}

/// What each running lab of this user says of itself.
pub fn status() -> Result<Vec<Report>, LabError> {
    let labs = folder::labs()?;
    let reports = folders(&labs).into_iter().filter_map(|folder| match ask(&folder, Message::Status)? {
        Message::Report(report) => Some(report),
        _ => None,
    });
    Ok(reports.collect())
}

/// Ends every lab of this user, with what runs in it. Gives how many there were.
pub fn down() -> Result<usize, LabError> {
    let labs = folder::labs()?;
    let _lock = cache::lock(&labs.join("lock"))?;
    let mut ended = 0;
    for folder in folders(&labs) {
        if client::connect(&folder).is_ok() {
            end(&folder)?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Ends the lab in that folder, if it is up.
pub(super) fn end(folder: &Path) -> Result<(), LabError> {
    let Ok(stream) = client::connect(folder) else { return Ok(()) };
    let mut pump = Pump::new(stream.into()).map_err(LabError::at("connecting to the lab"))?;
    pump.say(0, Message::Down);
    // The connection closes when the broker has ended, which is after QEMU has.
    let _ = answer(&mut pump, Duration::from_secs(20));
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A quarter of this machine's memory, between 2 and 6 GiB; only what L1 touches is taken.
fn memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
    // Half of small machines: what the tests need does not shrink.
    (total.unwrap_or(0) / 1024 / 2).clamp(2048, 4096)
}

fn find_qemu() -> Result<PathBuf, LabError> {
    const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
    let qemu = in_path("qemu-system-x86_64")
        .ok_or(LabError::Missing { what: "qemu-system-x86_64".into(), package: "qemu-system-x86" })?;
    if !Path::new(FIRMWARE).exists() {
        return Err(LabError::Missing { what: FIRMWARE.into(), package: "qemu-system-data" });
    }
    Ok(qemu)
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|p| p.join(name)).find(|p| p.is_file())
}

/// For root the one that comes with Debian 12's QEMU. It refuses to run for anybody else, who gets the Rust one.
fn find_virtiofsd() -> Result<Virtiofsd, LabError> {
    let of_qemu = Path::new("/usr/lib/qemu/virtiofsd");
    if nix::unistd::geteuid().is_root() && of_qemu.exists() {
        return Ok(Virtiofsd::Qemu(of_qemu.into()));
    }
    rust_virtiofsd().map(Virtiofsd::Rust)
}

/// The virtiofsd in Rust: Debian 13's package, or else built once by cargo into the cache.
///
/// # Errors
/// cargo cannot build it.
pub fn rust_virtiofsd() -> Result<PathBuf, LabError> {
    let tools = cache::dir()?.join("tools");
    let built = tools.join("bin/virtiofsd");
    let packaged = PathBuf::from("/usr/libexec/virtiofsd");
    for program in [packaged, built.clone()] {
        if program.exists() {
            return Ok(program);
        }
    }
    eprintln!("virtiofsd is built once by cargo (two minutes)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["install", "--quiet", "--locked", "virtiofsd", "--root"])
        .arg(&tools)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(LabError::at("running cargo"))?;
    if output.status.success() && built.exists() {
        return Ok(built);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let reason = errors.lines().rev().find(|l| l.contains("error")).unwrap_or("it failed");
    Err(LabError::Virtiofsd { reason: reason.trim().into() })
}
