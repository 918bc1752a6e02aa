//! PID 1 of one distribution, or the companion of systemd, which is PID 1 then.
//!
//! mini-init executes it as `/init` in the distribution's own root and namespaces, with the launch on a descriptor. It
//! mounts what is the distribution's own ([`mounts`]), reads /etc/wsl.conf (the crate undercroft-config), gives place to
//! systemd if it is to ([`systemd`]), connects to the host and serves sessions ([`server`]), each through a relay
//! ([`relay`]).

mod copy;
mod fstab;
mod log;
mod mounts;
mod network_files;
mod output;
mod process;
mod program;
mod relay;
mod server;
mod systemd;
mod terminal;
mod time_zone;
mod users;

use std::{fs, os::fd::AsFd, path::Path, process::ExitCode};

use undercroft_config::{DistributionConfig, Settings, keys::DISTRIBUTION};
use undercroft_guest::{clock, host};
use undercroft_protocol::{Opening, command::Launch, read_frame, session::InitEvent};

use server::{About, Server};

/// The distribution's own configuration.
const CONFIGURATION: &str = "/etc/wsl.conf";

fn main() -> ExitCode {
    if systemd::hold_session() {
        return ExitCode::SUCCESS;
    }
    let first = clock::mark("init: first instruction");
    match run(first) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::warning(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(first: undercroft_protocol::opening::Mark) -> Result<(), String> {
    let launch = launch()?;
    let mut marks = vec![first];
    let mut warnings = log::Warnings::default();
    // Before anything can take long: a SIGTERM that waits is seen by the loop.
    let signals = server::signals().map_err(|e| format!("taking signals: {e}"))?;
    mounts::all(&mut warnings).map_err(|e| e.to_string())?;
    marks.push(clock::mark("init: file systems mounted"));
    let settings = Settings::read(&DISTRIBUTION, Path::new(CONFIGURATION));
    settings.warnings.iter().for_each(|warning| warnings.add(warning.to_string()));
    let configuration = DistributionConfig::new(&settings);
    let hostname = configuration.hostname.clone().unwrap_or_else(|| launch.hostname.clone());
    network_files::prepare(&hostname, &configuration, &mut warnings);
    // From here on this may be another process: PID 2.
    let readiness = give_place(&configuration, &signals, &mut warnings);
    let host = host::connect_as(&Opening::Distribution(launch.token))
        .map_err(|e| format!("connecting to the host: {e}"))?;
    let systemd = readiness.is_some();
    if let Some(readiness) = readiness {
        marks.push(clock::mark("init: systemd started"));
        readiness.wait(configuration.init_timeout, host.as_fd(), &mut warnings);
    }
    // systemd makes units of them.
    if configuration.mount_fs_tab && !systemd {
        fstab::mount_all(&mut warnings);
    }
    boot_command(&configuration, &mut warnings);
    let configured =
        InitEvent::Configured { keep_alive: configuration.keep_alive, user: configuration.user.clone() };
    let about = About { launch, configuration, hostname, language: language(), systemd };
    let mut server = Server::new(host, signals, about).map_err(|e| e.to_string())?;
    marks.push(clock::mark("init: ready"));
    server.tell(&configured);
    server.tell(&InitEvent::Ready { marks, warnings: warnings.0 });
    server.run().map_err(|e| format!("the loop failed: {e}"))
}

/// Lets systemd be PID 1 if the configuration says so, and goes on as its companion, with what that has to wait for.
fn give_place(
    configuration: &DistributionConfig,
    signals: &nix::sys::signalfd::SignalFd,
    warnings: &mut log::Warnings,
) -> Option<systemd::Readiness> {
    if !configuration.systemd {
        return None;
    }
    let started = systemd::find().and_then(|()| systemd::start(signals).map_err(|e| e.to_string()));
    warnings.take("boot.systemd is set, and the distribution runs without systemd", started)
}

/// What mini-init left on a descriptor.
fn launch() -> Result<Launch, String> {
    let usage =
        "this is the init of an undercroft distribution, executed by its utility VM, and does nothing else";
    let number = std::env::var("UNDERCROFT_LAUNCH").ok().and_then(|n| n.parse().ok()).ok_or(usage)?;
    if std::process::id() != 1 {
        return Err(usage.into());
    }
    let mut file =
        process::inherited(number).map_err(|e| format!("the launch's descriptor {number}: {e}"))?;
    read_frame(&mut file).map_err(|e| format!("reading the launch: {e}"))
}

/// Starts `boot.command`, and does not wait for it.
fn boot_command(configuration: &DistributionConfig, warnings: &mut log::Warnings) {
    use std::process::{Command, Stdio};
    let Some(line) = &configuration.command else { return };
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(line)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    warnings.take("boot.command", process::spawn_with_default_signals(&mut command));
}

/// LANG as the distribution has it set for all (locale.conf(5); Debian's older file), else one that every C library has.
fn language() -> String {
    for path in ["/etc/locale.conf", "/etc/default/locale"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|l| l.trim().strip_prefix("LANG="));
        if let Some(value) = line.map(|v| v.trim().trim_matches(['"', '\''])).filter(|v| !v.is_empty()) {
            return value.into();
        }
    }
    "C.UTF-8".into()
}
