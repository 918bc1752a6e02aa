//! The processes that make L1: one virtiofsd for the host's root, one for each writable folder, and QEMU.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use undercroft_lab::launch::{CONSOLE, Launch, Mounts, NONCE, QEMU_LOG, Virtiofsd};

use super::BrokerError;

/// L1's kernel command line, but for the number. `initcall_blacklist` and `cryptomgr.notests` leave out what takes long in
/// software and is of no use here: jitter entropy, built-in certificates, BPF's and tracing's self-tests.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 nokaslr mitigations=off quiet loglevel=5 cryptomgr.notests \
    initcall_blacklist=jent_mod_init,load_system_certificate_list,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,\
    trace_eval_init,init_kprobe_trace";

/// All that QEMU can, but for what costs its guests' guests much and shows them nothing: page tables of five levels, for both of
/// them, and what is looked at with each access to a user's memory (docs/decisions.md).
const CPU: &str = "max,-la57,-smap,-smep,-pku,-umip";

/// QEMU and its file servers.
pub(crate) struct Machine {
    qemu: Child,
    servers: Vec<Child>,
}

impl Machine {
    /// Starts all of them. The descriptor is our end of the port to the agent.
    pub(crate) fn start(launch: &Launch, nonce: &str) -> Result<(Self, OwnedFd), BrokerError> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| BrokerError::at("making a socket pair", e))?;
        let log = |name: &str| {
            File::create(launch.folder.join(name)).map_err(|e| BrokerError::at(format!("making {name}"), e))
        };
        log(CONSOLE)?;
        let mut servers = Vec::new();
        let mut connections = Vec::new();
        let root = (Mounts::ROOT.to_owned(), Path::new("/"), true);
        let writable =
            launch.writable.iter().enumerate().map(|(n, path)| (Mounts::tag(n), path.as_path(), false));
        for (tag, path, read_only) in std::iter::once(root).chain(writable) {
            let socket = format!("{tag}.socket");
            let _ = std::fs::remove_file(&socket);
            let step = |e| BrokerError::at(format!("serving {}", path.display()), e);
            let listener = UnixListener::bind(&socket).map_err(step)?;
            let connection = UnixStream::connect(&socket).map_err(step)?;
            let _ = std::fs::remove_file(&socket);
            let output = log(&format!("{tag}.log"))?;
            servers.push(server(&launch.virtiofsd, path, read_only, &listener, output).map_err(|e| {
                let (Virtiofsd::Qemu(program) | Virtiofsd::Rust(program)) = &launch.virtiofsd;
                BrokerError::at(format!("starting {}", program.display()), e)
            })?);
            connections.push((tag, connection));
        }
        let mut command = Command::new(&launch.qemu);
        arguments(&mut command, launch, nonce, theirs.as_raw_fd(), &connections);
        let output = log(QEMU_LOG)?;
        let inherited: Vec<i32> =
            connections.iter().map(|(_, c)| c.as_raw_fd()).chain([theirs.as_raw_fd()]).collect();
        let errors = output.try_clone().map_err(|e| BrokerError::at(QEMU_LOG, e))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        inherit(&mut command, inherited);
        let qemu =
            command.spawn().map_err(|e| BrokerError::at(format!("starting {}", launch.qemu.display()), e))?;
        Ok((Machine { qemu, servers }, ours.into()))
    }

    /// QEMU's process id.
    pub(crate) fn pid(&self) -> i32 {
        self.qemu.id() as i32
    }

    /// How QEMU ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.qemu.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// Kills all of them. Nothing is lost by it: no folder is written to through a cache.
    pub(crate) fn end(&mut self) {
        for child in std::iter::once(&mut self.qemu).chain(&mut self.servers) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lets the child have these descriptors, and dies with this process.
fn inherit(command: &mut Command, descriptors: Vec<i32>) {
    let parent = std::process::id() as i32;
    let prepare = move || {
        // SAFETY: system calls on numbers; all are safe after fork.
        unsafe {
            for &fd in &descriptors {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It died before we asked for its death to be told.
            if libc::getppid() != parent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}

/// Makes everything this process sees read-only, for this process: the C virtiofsd has no such option, and what L1 has
/// mounted read-only can be mounted anew by its root.
fn see_read_only() -> std::io::Result<()> {
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_ATTR_RDONLY: u64 = 1;
    const AT_RECURSIVE: libc::c_uint = 0x8000;
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: 0,
    };
    // SAFETY: system calls on numbers, constant strings and one structure that lives until the call returns
    // (mount_setattr(2)).
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) < 0
            || libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                AT_RECURSIVE,
                &raw const attributes,
                size_of::<MountAttributes>(),
            ) < 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn server(
    program: &Virtiofsd,
    path: &Path,
    read_only: bool,
    listener: &UnixListener,
    output: File,
) -> std::io::Result<Child> {
    let fd = listener.as_raw_fd();
    let cache = if read_only { "always" } else { "auto" };
    let mut command = match program {
        Virtiofsd::Qemu(program) => {
            let mut command = Command::new(program);
            command.arg(format!("--fd={fd}"));
            command.arg("-o").arg(source_option(path));
            // "chroot", because the other sandbox wants namespaces that a container does not give.
            for option in
                [&format!("cache={cache}"), "no_writeback", "sandbox=chroot", "xattr", "log_level=warn"]
            {
                command.args(["-o", option]);
            }
            command
        }
        Virtiofsd::Rust(program) => {
            let mut command = Command::new(program);
            command.arg(format!("--fd={fd}")).arg("--shared-dir").arg(path);
            command.args(["--sandbox", "none", "--seccomp", "none", "--cache", cache, "--log-level", "warn"]);
            if read_only {
                command.arg("--readonly");
            }
            command
        }
    };
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    inherit(&mut command, vec![fd]);
    if read_only && matches!(program, Virtiofsd::Qemu(_)) {
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(|| see_read_only().or(Ok(()))) };
    }
    command.spawn()
}

fn source_option(path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("source=");
    option.push(path);
    option
}

fn arguments(command: &mut Command, launch: &Launch, nonce: &str, port: i32, files: &[(String, UnixStream)]) {
    let memory = launch.memory_mib;
    command.args(["-accel", "tcg,thread=multi", "-cpu", CPU]);
    command.args(["-smp", &launch.cpus.to_string(), "-m", &memory.to_string()]);
    command.args(["-M", "q35,vmport=off,smbus=off,sata=off,usb=off,memory-backend=mem"]);
    // Shared, because the file servers write into L1's memory.
    command.args(["-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")]);
    command.args([
        "-bios",
        "/usr/share/qemu/qboot.rom",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    command.args(["-no-reboot", "-serial", &format!("file:{CONSOLE}")]);
    command.arg("-kernel").arg(&launch.kernel).arg("-initrd").arg(&launch.initramfs);
    command.args(["-append", &format!("{COMMAND_LINE} {NONCE}{nonce}")]);
    command.args([
        "-chardev",
        &format!("socket,id=port,fd={port}"),
        "-device",
        "virtio-serial-pci,max_ports=2",
    ]);
    command.args(["-device", "virtserialport,chardev=port,nr=1,name=undercroft.lab"]);
    command.args(["-device", "virtio-rng-pci"]);
    for (tag, connection) in files {
        command.args(["-chardev", &format!("socket,id={tag},fd={}", connection.as_raw_fd())]);
        command.args(["-device", &format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024")]);
    }
    if launch.network {
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
}
