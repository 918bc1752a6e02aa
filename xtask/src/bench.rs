//! `cargo xtask bench`: what a machine takes, and what others take for the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::Context as _;
use undercroft_benches::{
    archive::Archive,
    machine::Machine,
    peers::{
        containers, monitors, network,
        report::{self, Report},
        systemd,
    },
    scenario::{self, Scenario, Setting},
    tools,
};
use undercroft_harness::{guest, lab};
use undercroft_kernel_config::{Kernel, initramfs};

use crate::{
    budget::{IDLE, OWN_USERS, ROOT},
    packages::{self, Group},
    workspace_root,
};

/// The document that `--peers` writes.
const DOCUMENT: &str = "docs/performance.md";

/// Guest memory in MiB.
const MEMORY_MIB: u64 = 512;

/// What the benchmarks are told by their environment.
const SETTING: &str = "UNDERCROFT_BENCH_SETTING";
const INSTRUCTIONS: &str = "UNDERCROFT_BENCH_INSTRUCTIONS";

/// Where things are in the ruler's machine.
const PROGRAM: &str = "/machine-bench";
const BUSYBOX: &str = "/bin/busybox";

/// Measure boot, launch, exec, import, blocks, vsock and memory; or put others beside us.
///
/// On hardware KVM the benchmarks measure time; elsewhere they run in a machine made in software whose clock advances by one
/// nanosecond an instruction, and measure instructions. It says which. They are no test: nothing fails by them.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Put QEMU's microvm, crun, systemd-nspawn, bubblewrap, unshare and what else is here beside us, in instructions, and
    /// write docs/performance.md.
    #[arg(long)]
    peers: bool,
    /// Only put others beside us in traffic at localhost, and print it.
    #[arg(long, conflicts_with = "peers")]
    traffic: bool,
    /// The guest's kernel in place of the tuned one (a vmlinux).
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Only benchmarks whose name contains this.
    #[arg(conflicts_with_all = ["peers", "traffic"])]
    filter: Option<String>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { peers: with_peers, traffic: only_traffic, kernel, filter } = arguments;
    let started = Instant::now();
    packages::ensure_all(&[Group::Disk, Group::Tests])?;
    let kernel = match kernel {
        Some(path) => undercroft_kernel_config::given(&path)?,
        None => crate::kernel::ensure_tuned()?,
    };
    let work = guest::target().join("ruler").join("bench");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let scenario = prepare(kernel, &work)?;
    let status = if with_peers {
        peers(&scenario, &work)?;
        ExitCode::SUCCESS
    } else if only_traffic {
        packages::ensure_all(&[Group::Lab, Group::Peers])?;
        println!("{}", report::traffic(&traffic(&tools::machine()?, &scenario, &work)?));
        ExitCode::SUCCESS
    } else {
        benchmarks(&scenario, filter.as_deref(), &work)?
    };
    eprintln!("measured in {} s", started.elapsed().as_secs());
    Ok(status)
}

/// Builds what everything here starts from.
fn prepare(kernel: Kernel, work: &Path) -> anyhow::Result<Scenario> {
    eprintln!("building the VMM, the inits and what measures them");
    let guest = guest::build()?;
    let image = work.join("guest.cpio");
    initramfs::build(&guest.mini_init, &guest.init, &kernel.initramfs_modules, &image)?;
    Ok(Scenario {
        vmm: tools::vmm()?,
        program: tools::scenario()?,
        kernel,
        initramfs: image,
        memory_mib: MEMORY_MIB,
        root: ROOT,
        own_users: OWN_USERS,
        idle: IDLE,
        contents: scenario::Contents::Busybox,
    })
}

/// Runs Criterion's benchmarks: here if KVM is of use here, else in the ruler's machine.
fn benchmarks(scenario: &Scenario, filter: Option<&str>, work: &Path) -> anyhow::Result<ExitCode> {
    let program = tools::bench("machine")?;
    let Some(reason) = lab::needed() else {
        eprintln!("on this machine's KVM: numbers are time");
        return natively(&program, scenario, filter, work);
    };
    eprintln!("in a machine made in software, because {reason}: numbers are instructions, not time");
    packages::ensure(Group::Lab)?;
    let mut archive = Archive::default();
    let setting = scenario::place(scenario, &mut archive, work)?;
    archive.program(&program, PROGRAM)?;
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    archive.bytes(serde_json::to_vec(&setting)?, "/setting.json");
    let variables = [
        format!("{SETTING}=/setting.json"),
        format!("{INSTRUCTIONS}=1"),
        "CRITERION_HOME=/tmp/criterion".into(),
    ];
    let words = [BUSYBOX, "env"].map(String::from).into_iter().chain(variables);
    let command = words.chain([PROGRAM, "--bench"].map(String::from)).chain(filter.map(String::from));
    let console = tools::machine()?.clocked(archive, "bench", command.collect(), work)?;
    for line in console.lines().filter(|line| !line.starts_with("ruler")) {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn natively(
    program: &Path,
    scenario: &Scenario,
    filter: Option<&str>,
    work: &Path,
) -> anyhow::Result<ExitCode> {
    let archive = work.join("busybox.tar");
    scenario::distribution(&archive)?;
    let config = undercroft::machine_config(&scenario.kernel, 1, scenario.memory_mib);
    let setting = Setting {
        vmm: scenario.vmm.clone(),
        config: undercroft_vmm::MachineConfig { initramfs: Some(scenario.initramfs.clone()), ..config },
        modules_disk: scenario.kernel.modules_disk.clone(),
        archive,
        root: scenario.root,
        own_users: scenario.own_users,
        idle: scenario.idle,
        systemd: false,
        patience: 1,
    };
    let path = work.join("setting.json");
    fs::write(&path, serde_json::to_vec(&setting)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg("--bench").args(filter).env(SETTING, &path).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures everybody, and writes the document.
fn peers(scenario: &Scenario, work: &Path) -> anyhow::Result<()> {
    packages::ensure_all(&[Group::Lab, Group::Peers])?;
    let machine: Machine = tools::machine()?;
    eprintln!("starting programs in root file systems");
    let containers = containers::rows(&machine, work)?;
    eprintln!("booting virtual machines");
    let monitors = monitors::rows(&machine, &scenario.vmm, &scenario.kernel, work)?;
    eprintln!("importing, launching, executing");
    let life = scenario::measure(&machine, scenario, work)?;
    eprintln!("booting a Debian with systemd; some minutes");
    let cache = undercroft_kernel_config::cache::dir()?;
    let debian = crate::boot::debian::archive(&cache, "bookworm")?;
    let (with_systemd, debian) = systemd::rows(&machine, scenario, &debian, work)?;
    let traffic = traffic(&machine, scenario, work)?;
    for row in containers.iter().chain(&monitors).chain(&with_systemd) {
        if let Err(reason) = &row.counts {
            eprintln!("{} {reason}", row.name);
        }
    }
    let report = Report {
        measured: measured(&scenario.kernel)?,
        containers: &containers,
        monitors: &monitors,
        systemd: &with_systemd,
        traffic: &traffic,
        scenario: &life,
        debian: &debian,
        root: format!(
            "{}, {}",
            match scenario.root {
                scenario::RootKind::Flat => "all of it on one ext4 disk",
                scenario::RootKind::Layered => "a shared base and a disk of its own, joined by overlayfs",
            },
            if scenario.own_users { "with users of its own" } else { "with the VM's users" }
        ),
    };
    let path = workspace_root().join(DOCUMENT);
    fs::write(&path, report.text()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Who carries traffic from the host's loopback to a guest, and what it takes.
fn traffic(machine: &Machine, scenario: &Scenario, work: &Path) -> anyhow::Result<Vec<network::Row>> {
    eprintln!("connecting to servers in guests; some minutes");
    let rows = network::rows(machine, scenario, &tools::traffic()?, work)?;
    for row in &rows {
        if let Err(reason) = &row.counts {
            eprintln!("{}: {reason}", row.name);
        }
    }
    Ok(rows)
}

/// When, of which commit, with which programs.
fn measured(kernel: &Kernel) -> anyhow::Result<String> {
    let root = workspace_root();
    let line = |program: &str, arguments: &[&str]| -> String {
        let output = Command::new(program).args(arguments).current_dir(&root).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("unknown").to_owned()
    };
    Ok(format!(
        "{} at {}; guest's kernel {} ({}); {}",
        line("date", &["-u", "+%Y-%m-%d"]),
        line("git", &["describe", "--always", "--dirty"]),
        kernel.release,
        kernel.origin,
        line("qemu-system-x86_64", &["--version"]),
    ))
}
