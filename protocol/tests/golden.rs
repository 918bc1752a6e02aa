//! The bytes of one message of each kind. A difference here is a change of the protocol: raise
//! `undercroft_protocol::VERSION`, say in docs/protocol.md what changed, and take the new snapshot.

use std::fmt::Write;

use serde::Serialize;
use undercroft_protocol::{
    Opening, Token, VERSION,
    command::{
        Command, DiskAddress, DistributionUsage, Done, Event, Export, Exported, Failure, FailureKind, Folder,
        Import, Imported, Launch, Limits, Reclaim, ReclaimMode, Reply, Request, Root, Share, Swap, Usage,
        Users,
    },
    frame::encode,
    network::{
        Address, Answer, Destination, Endpoint, Ends, Host, Listener, Names, Network, Question, RelayEvent,
        Transport, Wire,
    },
    opening::{GuestHello, Mark},
    session::{Exec, ExitStatus, InitEvent, InitRequest, Program, StartError, Stdio, WindowSize},
};

fn line<T: Serialize + std::fmt::Debug>(out: &mut String, name: &str, message: &T) {
    let bytes = encode(message).expect("a message can be encoded");
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    writeln!(out, "{name}: {hex}").expect("a string can be written to");
}

#[test]
fn the_bytes_of_each_message() {
    let token = Token(*b"0123456789abcdef");
    let mark = Mark { name: "m".into(), boottime_ns: 300, realtime_ns: 70_000 };
    let mut out = format!("version {VERSION}\n");
    let o = &mut out;

    line(
        o,
        "opening command",
        &Opening::Command(GuestHello {
            mini_init: "0.1.0".into(),
            kernel: "6.12".into(),
            cpus: 2,
            memory: 512 << 20,
            marks: vec![mark.clone()],
            warnings: vec!["w".into()],
        }),
    );
    line(o, "opening notify", &Opening::Notify);
    line(o, "opening distribution", &Opening::Distribution(token));
    line(o, "opening stream", &Opening::Stream(token));

    let disk = DiskAddress::Lun(300);
    let ends = Ends { vm: [10, 0, 0, 1].into(), distribution: [10, 0, 0, 2].into(), prefix: 30 };
    for (name, command) in [
        ("ping", Command::Ping),
        ("attach", Command::AttachDisk(disk.clone())),
        ("detach", Command::DetachDisk(DiskAddress::Serial("s".into()))),
        ("modules", Command::Modules { disk: disk.clone() }),
        ("import", Command::Import(Import { disk: disk.clone(), archive: token })),
        (
            "launch",
            Command::Launch(Launch {
                id: 1,
                name: "deb".into(),
                hostname: "h".into(),
                root: Root::Flat { disk: disk.clone() },
                users: Users::Shared,
                limits: Limits::default(),
                network: None,
                folders: Vec::new(),
                token,
            }),
        ),
        (
            "launch layered",
            Command::Launch(Launch {
                id: 1,
                name: "deb".into(),
                hostname: "h".into(),
                root: Root::Layered {
                    base: disk.clone(),
                    disk: disk.clone(),
                    bound: vec!["/var/lib/docker".into()],
                },
                users: Users::Own { first: 1 << 20, count: 1 << 20 },
                limits: Limits {
                    memory: Some(256 << 20),
                    cpu_milli: Some(1500),
                    pids: Some(300),
                    io_bytes: Some(1 << 20),
                },
                network: Some(Wire { mtu: 1500, ends: vec![ends] }),
                folders: vec![Folder { tag: "f".into(), place: "/src".into(), read_only: true }],
                token,
            }),
        ),
        ("terminate", Command::Terminate { distribution: 1, grace_ms: 1000 }),
        ("power off", Command::PowerOff { grace_ms: 1000 }),
        ("grow", Command::Grow { memory: 8 << 30, limit_ms: 1000 }),
        (
            "reclaim",
            Command::Reclaim(Reclaim {
                mode: ReclaimMode::Gradual,
                idle_ms: 120_000,
                poll_ms: 10_000,
                floor: 128 << 20,
            }),
        ),
        ("swap on", Command::SwapOn(Swap::Disk(disk))),
        ("swap on zram", Command::SwapOn(Swap::Zram { bytes: 1 << 30 })),
        ("set time", Command::SetTime { realtime_ns: 1 << 60, tolerance_ms: 1000 }),
        (
            "export",
            Command::Export(Export { root: Root::Flat { disk: DiskAddress::Lun(300) }, archive: token }),
        ),
        (
            "network",
            Command::Network(Network {
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 65_520,
                addresses: vec![Address { ip: [10, 0, 0, 2].into(), prefix: 24 }],
                gateways: vec![std::net::Ipv6Addr::LOCALHOST.into()],
            }),
        ),
        (
            "names",
            Command::Names(Names {
                nameservers: vec![[10, 0, 0, 3].into()],
                search: vec!["example".into()],
                options: vec!["edns0".into()],
                hosts: vec![Host { address: [10, 0, 0, 1].into(), name: "host.internal".into() }],
            }),
        ),
        ("usage", Command::Usage),
        ("relay", Command::Relay { token }),
        ("resolver", Command::Resolver { token, address: [169, 254, 0, 53].into() }),
        (
            "share",
            Command::Share(Share {
                distribution: 3,
                folder: Folder { tag: "folder-0".into(), place: "/mnt/src".into(), read_only: true },
                token,
            }),
        ),
    ] {
        line(o, &format!("request {name}"), &Request { id: 5, command });
    }
    for (name, done) in [
        ("nothing", Done::Nothing),
        ("attached", Done::Attached { device: "sda".into(), size: 4096 }),
        ("imported", Done::Imported(Imported { entries: 1, bytes: 2, warnings: vec![] })),
        ("launched", Done::Launched { pid: 7, marks: vec![mark.clone()] }),
        ("stopped", Done::Stopped { complaints: vec!["c".into()] }),
        ("clock", Done::Clock { behind_ns: -3 }),
        (
            "usage",
            Done::Usage(Usage {
                memory: 1 << 30,
                available: 1 << 29,
                swap: 4096,
                swap_free: 1,
                distributions: vec![DistributionUsage { distribution: 3, memory: 5, cache: 6, cpu_us: 7 }],
            }),
        ),
        ("exported", Done::Exported(Exported { entries: 1, bytes: 2, warnings: vec!["w".into()] })),
    ] {
        line(o, &format!("reply {name}"), &Reply { id: 5, outcome: Ok(done) });
    }
    for kind in [
        FailureKind::Invalid,
        FailureKind::Disk,
        FailureKind::Archive,
        FailureKind::NotARoot,
        FailureKind::NoSpace,
        FailureKind::System,
    ] {
        let failure = Failure { kind, message: "no".into() };
        line(o, &format!("reply failure {kind:?}"), &Reply { id: 5, outcome: Err(failure) });
    }
    line(o, "event progress", &Event::ImportProgress { entries: 1, bytes: 2 });
    line(o, "event ended", &Event::DistributionEnded { distribution: 1, status: ExitStatus::Signal(9) });
    line(o, "event warning", &Event::Warning("w".into()));
    line(o, "event export", &Event::ExportProgress { archive: token, entries: 1, about: 2 });

    let to = Endpoint::tcp(([127, 0, 0, 1], 80).into());
    let listener =
        Listener { at: to, network: None, distribution: Some(1), program: "httpd".into(), pid: Some(7) };
    line(o, "listening", &RelayEvent::Listening(vec![listener]));
    line(o, "relay warning", &RelayEvent::Warning("w".into()));
    for (name, network, to) in [("tcp", None, to), ("udp", Some(3), Endpoint::udp(to.address))] {
        let bytes = Destination { network, to }.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        o.push_str(&format!("destination {name}: {hex}\n"));
    }
    line(o, "question", &Question { id: 3, transport: Transport::Udp, message: vec![1, 2] });
    line(o, "answer", &Answer { id: 3, message: vec![1, 2] });

    let size = WindowSize { rows: 24, columns: 80 };
    let exec = |program, stdio| {
        InitRequest::Exec(Exec {
            session: 9,
            program,
            environment: vec![(b"A".to_vec(), b"b".to_vec())],
            directory: Some(b"/".to_vec()),
            user: Some("u".into()),
            stdio,
        })
    };
    line(o, "exec login", &exec(Program::LoginShell, Stdio::Terminal { stream: token, size }));
    let pipes = Stdio::Pipes { stdin: None, stdout: Some(token), stderr: Some(token) };
    line(o, "exec login shell", &exec(Program::LoginCommand(b"true".to_vec()), pipes.clone()));
    line(o, "exec shell", &exec(Program::ShellCommand(b"true".to_vec()), pipes.clone()));
    line(o, "exec argv", &exec(Program::Argv(vec![b"id".to_vec()]), pipes));
    line(o, "signal", &InitRequest::Signal { session: 9, signal: 2 });
    line(o, "resize", &InitRequest::Resize { session: 9, size });
    line(o, "abandon", &InitRequest::Abandon { session: 9 });
    line(o, "time zone", &InitRequest::TimeZone("Etc/UTC".into()));
    line(o, "configured", &InitEvent::Configured { keep_alive: true, user: Some("u".into()) });
    line(o, "left", &InitEvent::Left { session: 9 });
    line(o, "gone", &InitEvent::Gone { session: 9 });
    line(o, "ready", &InitEvent::Ready { marks: vec![mark.clone()], warnings: vec![] });
    line(o, "started", &InitEvent::Started { session: 9, pid: 3, mark });
    for error in [
        StartError::NotFound("x".into()),
        StartError::NotExecutable("x".into()),
        StartError::NoUser("x".into()),
        StartError::Directory("x".into()),
        StartError::Other("x".into()),
    ] {
        line(o, "not started", &InitEvent::NotStarted { session: 9, error });
    }
    line(o, "exited", &InitEvent::Exited { session: 9, status: ExitStatus::Code(7) });
    insta::assert_snapshot!(out);
}
