//! PID 1 of the utility VM.
//!
//! In order: [`early`] mounts what a kernel needs to be talked to, [`modules`] loads the drivers that came in the
//! initramfs, the host is connected and greeted, and [`server`] answers its commands until the power goes. Called as
//! `modprobe` by the kernel, it is [`modprobe`] instead.
//!
//! One thread, no runtime: what takes long runs in a forked child ([`jobs`]), so that the loop always answers.

mod archive;
mod clock;
mod disk;
mod distribution;
mod early;
mod export;
mod folder;
mod grow;
mod import;
mod jobs;
mod kernel_log;
mod launch;
mod log;
mod modprobe;
mod modules;
mod network;
mod pack;
mod port;
mod power;
mod reclaim;
mod root_check;
mod server;
mod signal;
mod swap;
mod swap_call;
mod unpack;
mod usage;

use undercroft_guest::host;
use undercroft_protocol::{Opening, opening::GuestHello};

fn main() {
    let mut marks = vec![undercroft_guest::clock::mark("mini-init: first instruction")];
    let name = std::env::args_os().next().unwrap_or_default();
    if name.as_encoded_bytes().ends_with(b"modprobe") {
        std::process::exit(modprobe::main());
    }
    if std::process::id() != 1 {
        eprintln!(
            "undercroft-mini-init is PID 1 of a virtual machine, started by its kernel, and does nothing else"
        );
        std::process::exit(2);
    }
    power::off_when_panicking();
    let mut warnings = log::Warnings::default();
    early::prepare(&mut warnings);
    grow::prepare();
    modules::load_initramfs(&mut warnings);
    network::loopback_up(&mut warnings);
    marks.push(undercroft_guest::clock::mark("mini-init: machine prepared"));
    let hello = hello(marks, warnings);
    let error = match connect(hello) {
        Ok((command, notify)) => server::Server::new(command, notify).and_then(server::Server::run).err(),
        Err(error) => Some(error),
    };
    // The loop returns only when the host is gone or cannot be reached: nobody could use this machine any more.
    if let Some(error) = error {
        // A kernel that somebody named, without its modules.
        let hint = match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::ENODEV) => {
                "; this kernel needs vsock over virtio: built in, or as modules in /lib/modules or beside it"
            }
            _ => "",
        };
        log::line(log::Level::Error, &format!("the host cannot be reached ({error}){hint}; powering off"));
    }
    power::stop_everything();
    power::off()
}

/// Opens the two connections that live as long as the VM.
fn connect(hello: GuestHello) -> std::io::Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    let command = host::connect_as(&Opening::Command(hello))?;
    let notify = host::connect_as(&Opening::Notify)?;
    Ok((command, notify))
}

fn hello(mut marks: Vec<undercroft_protocol::opening::Mark>, warnings: log::Warnings) -> GuestHello {
    let mut all = kernel_log::marks();
    all.append(&mut marks);
    all.push(undercroft_guest::clock::mark("mini-init: connecting"));
    GuestHello {
        mini_init: env!("CARGO_PKG_VERSION").into(),
        kernel: modules::release(),
        cpus: early::cpus(),
        memory: early::memory(),
        marks: all,
        warnings: warnings.0,
    }
}
