//! passt, by process: it takes the VM's frames on a socket and makes ordinary connections of the host's of them, as the user
//! who runs it. No root, no TAP device, no bridge.
//!
//! It has a sandbox of its own: namespaces with nothing in them, no capabilities, a seccomp filter (passt(1)). It forwards no
//! port of the host's, hands out no addresses (mini-init is told them), and ends when the VMM closes its socket. When it ends
//! otherwise it is started again, with a pause that grows, and the VMM is given the new socket: the guest sees its cable
//! pulled out for as long. Connections that went through it are lost, as they are when a router restarts.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use undercroft_vmm::config::MacAddress;

use super::{NatOptions, addresses::Addresses, pause::Pause};
use crate::{console::last_lines, error::Result, guest::spawn, vmm::Control, watched::Watched};

/// The program, and the package that Debian has it in.
pub(super) const PROGRAM: &str = "passt";
/// The address of passt's own network card; the VM's differs in the last byte.
const MAC: MacAddress = MacAddress([0x02, b'u', b'n', b'd', b'c', 0x01]);

/// How long the VMM may take to take a socket over.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks for the program in the folders of PATH.
pub(super) fn find() -> Option<PathBuf> {
    find_in(&std::env::var_os("PATH").unwrap_or_default())
}

fn find_in(path: &OsString) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path).map(|folder| folder.join(PROGRAM)).find(is_program)
}

/// Its arguments, but for the socket. They are those of the version in Debian 12 (2023-03-09), which later ones know, too.
fn arguments(addresses: &Addresses, options: &NatOptions) -> Vec<String> {
    let mut all: Vec<String> = [
        "--foreground",
        "--quiet",
        "--tcp-ports=none",
        "--udp-ports=none",
        // The guest is told its addresses; only who has which is still asked on the wire.
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("--mac-addr={MAC}"));
    all.push(format!("--mtu={}", options.mtu));
    all.push(format!("--address={}", addresses.guest()));
    all.push(format!("--netmask={}", addresses.prefix()));
    all.push(format!("--gateway={}", addresses.gateway()));
    all.push(format!("--dns-forward={}", addresses.resolver()));
    if addresses.ipv6.is_some() {
        all.push(format!("--address={}", addresses.guest6()));
        all.push(format!("--gateway={}", addresses.gateway6()));
    } else {
        all.push("--ipv4-only".into());
    }
    if !options.host_loopback {
        all.push("--no-map-gw".into());
    }
    all
}

/// Where it takes its defaults from, all of which are given: so it starts on a host that is offline, and connections go where the
/// host's routes say at that moment. But it does without IPv6 if that device has no link-local address, which `lo` never has.
fn interface(ipv6: Option<&str>) -> String {
    let there = |name: &&str| Path::new("/proc/sys/net/ipv6/conf").join(name).exists();
    format!("--interface={}", ipv6.filter(there).unwrap_or("lo"))
}

/// How it is with passt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// It was not started yet.
    Starting,
    /// It runs.
    Up,
    /// It ended, so; it will be started again.
    Down(String),
}

/// A passt that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Passt {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    process: Watched,
    state: Mutex<State>,
}

impl Shared {
    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Passt {
    /// Starts it, and keeps it running. What it says goes to a file at `messages`.
    pub(super) fn start(
        program: PathBuf,
        addresses: &Addresses,
        options: &NatOptions,
        messages: PathBuf,
        control: Arc<Control>,
        warn: impl Fn(String) + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared { process: Watched::default(), state: Mutex::new(State::Starting) });
        let process = Process {
            program,
            ipv6: addresses.ipv6.clone(),
            arguments: arguments(addresses, options),
            messages,
        };
        let supervised = shared.clone();
        let thread = spawn("passt", move || supervise(&process, &control, &supervised, &warn))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn state(&self) -> State {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process id, as long as it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.shared.process.pid()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.shared.process.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

struct Process {
    program: PathBuf,
    /// The host's device with IPv6.
    ipv6: Option<String>,
    arguments: Vec<String>,
    messages: PathBuf,
}

/// Starts it again and again, until it is to stop or the machine is gone.
fn supervise(process: &Process, control: &Control, shared: &Shared, warn: &dyn Fn(String)) {
    let mut pauses = Pause::new();
    loop {
        pauses.started();
        let Some(how) = process.run(control, shared) else { return };
        let pause = pauses.after();
        shared.set(State::Down(how.clone()));
        // With the machine's end, too, its socket is closed, which is known a moment later.
        if shared.process.stops_within(pause) || control.has_ended() {
            return;
        }
        // Once: what it says does not become truer by being repeated.
        if pause == Pause::FIRST {
            warn(format!("the network was down: {how}; it is started again"));
        }
    }
}

impl Process {
    /// Runs it once; says how it ended, or nothing if it was to.
    fn run(&self, control: &Control, shared: &Shared) -> Option<String> {
        if shared.process.is_stopping() {
            return None;
        }
        let cannot = |what: &str, error: std::io::Error| Some(format!("{what}: {error}"));
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return cannot("no sockets for passt", error),
        };
        let log = match log_file(&self.messages) {
            Ok(log) => log,
            Err(error) => return cannot("no file for passt's messages", error),
        };
        let mut command = Command::new(&self.program);
        command
            .arg(interface(self.ipv6.as_deref()))
            .args(&self.arguments)
            .arg(format!("--fd={}", theirs.as_raw_fd()))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        crate::spawn::prepare(&mut command, vec![theirs.as_raw_fd()]);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return cannot(&format!("{} cannot be executed", self.program.display()), error),
        };
        drop((theirs, command));
        shared.process.runs(&child);
        let linked = control.link(ours.as_fd(), PATIENCE);
        drop(ours);
        match &linked {
            Ok(()) => shared.set(State::Up),
            // The machine is gone, or is not yet to be had.
            Err(_) => drop(shared.process.kill()),
        }
        let status = shared.process.wait(child);
        if shared.process.is_stopping() {
            return None;
        }
        match linked {
            Ok(()) => Some(how_it_ended(status, &self.messages)),
            Err(crate::Error::Ended(_)) => None,
            Err(error) => Some(format!("the VMM did not take passt's socket: {error}")),
        }
    }
}

/// Empty each time: what counts is why it ended last.
fn log_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn how_it_ended(status: std::io::Result<ExitStatus>, messages: &Path) -> String {
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    // Where there is no system logger it says so, again and again.
    let mut words = last_lines(messages, 4);
    words.retain(|line| !line.contains("to syslog"));
    let words = words.join("; ");
    if words.is_empty() { format!("passt ended ({how})") } else { format!("passt ended ({how}): {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_in_the_first_folder_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(PROGRAM), "").unwrap();
        }
        let path = std::env::join_paths([&folder.path().join("none"), &one, &two]).unwrap();
        assert_eq!(find_in(&path), None, "not executable");
        std::fs::set_permissions(two.join(PROGRAM), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in(&path), Some(two.join(PROGRAM)));
    }

    #[test]
    fn nothing_of_the_hosts_is_open_unless_it_is_asked_for() {
        let options = NatOptions::default();
        let all = arguments(&Addresses::choose(&[], None), &options);
        for wanted in ["--tcp-ports=none", "--udp-ports=none", "--no-map-gw", "--ipv4-only"] {
            assert!(all.iter().any(|argument| argument == wanted), "{wanted}");
        }
        let open = NatOptions { host_loopback: true, ..options };
        let all = arguments(&Addresses::choose(&[], Some("eth0".into())), &open);
        assert!(!all.iter().any(|argument| argument == "--no-map-gw" || argument == "--ipv4-only"));
        assert_eq!(all.iter().filter(|argument| argument.starts_with("--gateway=")).count(), 2);
    }

    #[test]
    fn ipv6_is_of_a_device_that_is_there() {
        assert_eq!(interface(None), "--interface=lo");
        assert_eq!(interface(Some("nosuchdevice")), "--interface=lo");
    }
}
