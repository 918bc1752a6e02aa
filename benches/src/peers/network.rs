//! Traffic from the host's loopback to a server in the guest: by our relay, and by QEMU with passt and with its own user
//! networking. One kernel, one server, one client for all.

use std::path::{Path, PathBuf};

use undercroft_harness::archive::{Archive as Tar, Meta};
use undercroft_ruler_runner::{Run, Until};
use undercroft_ruler_scenario::traffic::{
    ANSWERER, ANSWERER_PROGRAM, Carrier, IPERF, IPERF_PROGRAM, Traffic,
};

use super::monitors;
use crate::{
    Error,
    archive::{Archive, libraries},
    counts::Counts,
    machine::Machine,
    scenario::{self, Contents, Scenario},
    tools,
};

/// What goes each way, in MiB.
pub const MEBIBYTES: u32 = 16;
/// How many connections are made: ours, and others'. What one takes does not depend on it; but passt's wait so long that ten
/// thousand are half an hour of the host's.
const CONNECTIONS: [u32; 2] = [10_000, 2_000];

/// Seconds of the machine's time for one carrier.
const LIMIT_SECONDS: u64 = 900;
/// Two initramfs, a guest and its pages.
const MACHINE_MIB: u32 = 3072;

const PROGRAM: &str = "/undercroft-ruler-traffic";
const BUSYBOX: &str = "/bin/busybox";
const KERNEL: &str = "/traffic/vmlinux";
const GUEST: &str = "/traffic/guest";
const SOCKET: &str = "/run/passt.socket";
/// What a guest is called, and its gateway: those of QEMU's user networking.
const ADDRESS: &str = "10.0.2.15";
const GATEWAY: &str = "10.0.2.2";
/// The guest's driver, in the order to load it in.
const VIRTIO_NET: [&str; 3] =
    ["net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"];
/// passt's longest packet; user networking has Ethernet's.
const PASST_MTU: u32 = 65_520;
const USER_MTU: u32 = 1500;

/// What a carrier takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Who.
    pub name: &'static str,
    /// How.
    pub what: &'static str,
    /// How many connections were made.
    pub connections: u32,
    /// For all of [`MEBIBYTES`] to the guest, from it, and all connections; or why there is no number.
    pub counts: Result<[Counts; 3], String>,
}

/// The programs that are needed besides the scenario's.
#[derive(Debug)]
pub struct Programs {
    /// Connects and counts.
    pub traffic: PathBuf,
    /// Answers, in the guest.
    pub answerer: PathBuf,
}

/// Measures all that are here.
pub fn rows(
    machine: &Machine,
    scenario: &Scenario,
    programs: &Programs,
    work: &Path,
) -> Result<Vec<Row>, Error> {
    let iperf = Path::new(IPERF_PROGRAM);
    let machine = Machine { memory_mib: MACHINE_MIB, ..machine.clone() };
    let carriers = [
        ("undercroft", "the relay over vsock", None),
        ("QEMU microvm, passt", "virtio-net, a stream socket, passt's forwarding", Some(true)),
        ("QEMU microvm, user networking", "virtio-net, libslirp's forwarding", Some(false)),
    ];
    let mut rows = Vec::new();
    for (name, what, with_passt) in carriers {
        let connections = CONNECTIONS[usize::from(with_passt.is_some())];
        if !iperf.is_file() {
            let counts = Err("needs iperf3: apt-get install iperf3".into());
            rows.push(Row { name, what, connections, counts });
            continue;
        }
        let mut archive = Archive::default();
        let carrier = match with_passt {
            None => ours(scenario, programs, &mut archive, work)?,
            Some(with_passt) => match other(scenario, programs, with_passt, &mut archive, work)? {
                Ok(carrier) => carrier,
                Err(reason) => {
                    rows.push(Row { name, what, connections, counts: Err(reason) });
                    continue;
                }
            },
        };
        eprintln!("  {name}");
        let traffic = Traffic { carrier, mebibytes: MEBIBYTES, connections };
        let counts = match measure(&machine, &traffic, programs, archive, work) {
            // The others may be measured all the same.
            Err(Error::Still { seconds, .. }) => Err(format!("said nothing for {seconds} s")),
            Err(Error::Machine { problem, .. }) => Err(problem),
            counts => counts?,
        };
        if let Ok([to, from, short]) = &counts {
            let each = |counts: &Counts, parts: u32| counts.total() / u64::from(parts) / 1000;
            eprintln!(
                "  {} and {} thousand instructions a MiB to and from the guest, {} a connection",
                each(to, MEBIBYTES),
                each(from, MEBIBYTES),
                each(short, connections)
            );
        }
        rows.push(Row { name, what, connections, counts });
    }
    Ok(rows)
}

fn measure(
    machine: &Machine,
    traffic: &Traffic,
    programs: &Programs,
    mut archive: Archive,
    work: &Path,
) -> Result<Result<[Counts; 3], String>, Error> {
    archive.program(&programs.traffic, PROGRAM)?;
    archive.program(Path::new(IPERF_PROGRAM), IPERF_PROGRAM)?;
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    archive.bytes(serde_json::to_vec(traffic).expect("it is paths, strings and numbers"), "/traffic.json");
    let run = Run {
        name: "traffic".into(),
        program: vec![PROGRAM.into(), "/traffic.json".into()],
        repetitions: 1,
        until: Until::Exit,
        limit_seconds: LIMIT_SECONDS,
        log: Some("/run/console".into()),
    };
    let (repetitions, console) = machine.attempt(archive, vec![run], work)?;
    let Some(repetition) = repetitions.first() else { return Ok(Err("was not measured".into())) };
    if let Some(error) = &repetition.error {
        return Ok(Err(format!("{error}: {}", crate::machine::tail(&console))));
    }
    let result = scenario::Result::of(repetition);
    let of = |name: &str| result.part(name).map(|part| part.whole);
    Ok(match (of("to-guest"), of("from-guest"), of("connections")) {
        (Some(to), Some(from), Some(connections)) => Ok([to, from, connections]),
        _ => Err("not all of it was measured".into()),
    })
}

/// A distribution with the servers in it.
fn ours(
    scenario: &Scenario,
    programs: &Programs,
    archive: &mut Archive,
    work: &Path,
) -> Result<Carrier, Error> {
    let tar = work.join("traffic.tar");
    let mut packed = Tar::busybox("traffic").map_err(Error::io("read", BUSYBOX))?;
    for (from, inside) in servers(programs)? {
        let bytes = std::fs::read(&from).map_err(Error::io("read", &from))?;
        let name = inside.strip_prefix("/").unwrap_or(&inside).display().to_string();
        packed = packed.file(&name, &bytes, Meta::default()).map_err(Error::io("pack", &from))?;
    }
    packed.write(&tar).map_err(Error::io("write", &tar))?;
    let scenario = Scenario { contents: Contents::Tar(tar), idle: 0, ..scenario.clone() };
    Ok(Carrier::Undercroft(Box::new(scenario::place(&scenario, archive, work)?)))
}

/// The servers and what they need: where they are, and where they are in a guest.
fn servers(programs: &Programs) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
    let iperf = PathBuf::from(IPERF_PROGRAM);
    let mut all = vec![(programs.answerer.clone(), ANSWERER_PROGRAM.into()), (iperf.clone(), iperf.clone())];
    all.extend(libraries(&iperf)?.into_iter().map(|library| (library.clone(), library)));
    Ok(all)
}

/// QEMU, with our kernel and an initramfs that holds nothing but the servers; or what is missing.
fn other(
    scenario: &Scenario,
    programs: &Programs,
    with_passt: bool,
    archive: &mut Archive,
    work: &Path,
) -> Result<Result<Carrier, String>, Error> {
    let line = format!(
        "console=ttyS0 quiet panic=-1 {} reboot=t",
        scenario.kernel.command_line_for(1, scenario.memory_mib)
    );
    let mut qemu = monitors::qemu(&line);
    let Some(program) = qemu.found() else {
        return Ok(Err(format!("not on this host; it comes with {}", qemu.install)));
    };
    let helper = if with_passt {
        let Some(passt) = tools::in_path("passt") else {
            return Ok(Err("passt is not on this host; it comes with Debian's passt".into()));
        };
        archive.program(&passt, &passt)?;
        // Which it would rather be, where the processor allows.
        let faster = passt.with_extension("avx2");
        if faster.is_file() {
            archive.program(&faster, &faster)?;
        }
        // It does not run as root, and looks up who else there is.
        archive.bytes(b"nobody:x:65534:65534::/:/bin/false\n".to_vec(), "/etc/passwd");
        archive.bytes(b"nogroup:x:65534:\n".to_vec(), "/etc/group");
        Some((passt_command(&passt), PathBuf::from(SOCKET)))
    } else {
        None
    };
    let mut guest = Archive::default();
    let mtu = if with_passt { PASST_MTU } else { USER_MTU };
    guest.program(Path::new(BUSYBOX), BUSYBOX)?;
    guest.bytes(init(mtu).into_bytes(), "/init");
    for (from, inside) in servers(programs)? {
        guest.copy(from, inside);
    }
    for (number, module) in
        tools::modules(&scenario.kernel, "virtio-net", &VIRTIO_NET)?.into_iter().enumerate()
    {
        guest.copy(module, format!("/modules/{number}.ko"));
    }
    let image = work.join("traffic.cpio");
    guest.write(&image)?;
    archive.copy(image, GUEST);
    archive.copy(&scenario.kernel.image, KERNEL);
    archive.program(&program, &program)?;
    for file in &qemu.files {
        archive.copy(file, file);
    }
    for argument in &mut qemu.arguments {
        match argument.as_str() {
            monitors::KERNEL => *argument = KERNEL.into(),
            monitors::INITRAMFS => *argument = GUEST.into(),
            _ => {}
        }
    }
    let forward = |port: u16| format!("hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:{port}");
    let network = if with_passt {
        format!("stream,id=n,server=off,addr.type=unix,addr.path={SOCKET}")
    } else {
        format!("user,id=n,{},{}", forward(IPERF), forward(ANSWERER))
    };
    let device = ["-global", "virtio-mmio.force-legacy=false", "-device", "virtio-net-device,netdev=n"];
    let words = ["-netdev", &network].into_iter().chain(device).map(String::from);
    let monitor = std::iter::once(program.display().to_string()).chain(qemu.arguments).chain(words).collect();
    Ok(Ok(Carrier::Other { helper, monitor }))
}

/// As QEMU's documentation starts it (System Emulation, Network emulation, "Using passt as the user mode network stack"), with
/// addresses of our choice, because this machine has no interface to take them from.
fn passt_command(passt: &Path) -> Vec<String> {
    let words = format!(
        "{} --foreground --quiet --one-off --interface lo --socket {SOCKET} --address {ADDRESS} --netmask 24 \
         --gateway {GATEWAY} --mac-addr 02:00:00:00:00:01 --mtu {PASST_MTU} --ipv4-only --tcp-ports {IPERF},{ANSWERER}",
        passt.display()
    );
    words.split_whitespace().map(String::from).collect()
}

/// PID 1 of another's guest.
fn init(mtu: u32) -> String {
    format!(
        "#!{BUSYBOX} sh\n\
         b={BUSYBOX}\n\
         $b mkdir -p /proc /sys /dev /tmp\n\
         $b mount -t proc proc /proc\n\
         $b mount -t devtmpfs dev /dev\n\
         $b mount -t tmpfs tmp /tmp\n\
         for m in /modules/*.ko; do $b insmod $m; done\n\
         $b ip link set lo up\n\
         $b ip link set eth0 mtu {mtu} up\n\
         $b ip address add {ADDRESS}/24 dev eth0\n\
         $b ip route add default via {GATEWAY}\n\
         {IPERF_PROGRAM} -s &\n\
         exec {ANSWERER_PROGRAM}\n"
    )
}
