//! What a machine takes: boot, launch, exec, import, blocks, vsock, memory.
//!
//!     cargo xtask bench
//!
//! prepares what it needs and runs it: on hardware KVM as it is, elsewhere in the ruler's machine, where the clock advances
//! by one nanosecond an instruction.

mod measure;

use std::{
    io::{Read as _, Write as _},
    path::Path,
    time::Duration,
};

use criterion::{Criterion, SamplingMode, Throughput};
use measure::{Clock, Memory, SETTING};
use undercroft::{Distribution, Pipes, Program, Root, Session, Streams};
use undercroft_ruler_scenario::{PROGRAM, Result, Setting, Stage};

/// What is read and written at a time.
const BLOCK: u64 = 32 << 20;
/// What goes through vsock at a time.
const STREAM: u64 = 16 << 20;
/// Guest memory settles while this goes by: the guest reports what is free every two seconds.
const SETTLE: Duration = Duration::from_secs(5);

fn main() {
    let Some(path) = std::env::var_os(SETTING) else {
        println!("skipped: run by `cargo xtask bench`, which prepares the machine and sets {SETTING}");
        return;
    };
    let setting = Setting::read(Path::new(&path)).expect("what cargo xtask bench wrote");
    let mut clock = measure::criterion(Clock::here());
    boot(&mut clock, &setting);
    let mut stage = Stage::start(&setting).expect("the machine starts");
    import(&mut clock, &mut stage);
    let root = stage.root().expect("a root");
    launch(&mut clock, &stage, &root);
    let distribution = stage.launch("one", &root).expect("a launch");
    exec(&mut clock, &distribution);
    blocks(&mut clock, &distribution);
    vsock(&mut clock, &distribution);
    let mut memory = measure::criterion(Memory);
    idle(&mut memory, &mut stage);
    clock.final_summary();
    stage.power_off().expect("an orderly end");
}

/// From the VMM's start to mini-init's greeting.
fn boot(criterion: &mut Criterion<Clock>, setting: &Setting) {
    criterion.benchmark_group("boot").sampling_mode(SamplingMode::Flat).bench_function(
        "greeting",
        |bencher| {
            bencher.iter_with_large_drop(|| Stage::start(setting).expect("the machine starts"));
        },
    );
}

/// A busybox distribution of two megabytes, onto an empty disk.
fn import(criterion: &mut Criterion<Clock>, stage: &mut Stage) {
    criterion.benchmark_group("import").sampling_mode(SamplingMode::Flat).bench_function(
        "busybox",
        |bencher| {
            bencher.iter_custom(|times| {
                measure::sum(times, || {
                    let disk = stage.empty_disk()?;
                    let took = Clock::time(|| stage.import(&disk))?;
                    stage.machine.detach_disk(disk)?;
                    Ok(took)
                })
            });
        },
    );
}

fn launch(criterion: &mut Criterion<Clock>, stage: &Stage, root: &Root) {
    let mut group = criterion.benchmark_group("launch");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("ready", |bencher| {
        bencher.iter_custom(|times| {
            measure::sum(times, || {
                let mut launched = None;
                let took = Clock::time(|| {
                    launched = Some(stage.launch("one", root)?);
                    Ok(())
                })?;
                launched.map_or(Ok(()), |distribution| stage.terminate(&distribution))?;
                Ok(took)
            })
        });
    });
    group.bench_function("terminate", |bencher| {
        bencher.iter_custom(|times| {
            measure::sum(times, || {
                let distribution = stage.launch("one", root)?;
                Clock::time(|| stage.terminate(&distribution))
            })
        });
    });
}

/// A program with three pipes to its end, and to the first byte of its output.
fn exec(criterion: &mut Criterion<Clock>, distribution: &Distribution) {
    let mut group = criterion.benchmark_group("exec");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("end", |bencher| {
        bencher.iter(|| run(distribution, &[PROGRAM]).expect("it ends well"));
    });
    group.bench_function("first_output", |bencher| {
        bencher.iter_with_large_drop(|| {
            let (session, _stdin, mut stdout) = open(distribution, &["/bin/echo", "x"]).expect("a session");
            stdout.read_exact(&mut [0]).expect("its output");
            session
        });
    });
}

/// A file on the distribution's disk, past the guest's page cache; with the start of the program that does it.
fn blocks(criterion: &mut Criterion<Clock>, distribution: &Distribution) {
    let count = format!("count={}", BLOCK >> 20);
    let write = ["dd", "if=/dev/zero", "of=/block", "bs=1M", &count, "oflag=direct"];
    let read = ["dd", "if=/block", "of=/dev/null", "bs=1M", "iflag=direct"];
    let mut group = criterion.benchmark_group("block");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(BLOCK));
    group.bench_function("write", |bencher| {
        bencher.iter(|| run(distribution, &write).expect("it is written"));
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| run(distribution, &read).expect("it is read"));
    });
}

/// A session's output in bulk, and a byte to and fro.
fn vsock(criterion: &mut Criterion<Clock>, distribution: &Distribution) {
    let count = format!("count={}", STREAM >> 20);
    let stream = ["dd", "if=/dev/zero", "bs=1M", &count];
    let mut group = criterion.benchmark_group("vsock");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes(STREAM));
    group.bench_function("to_host", |bencher| {
        bencher.iter(|| {
            let (_session, _stdin, mut stdout) = open(distribution, &stream).expect("a session");
            let moved = std::io::copy(&mut stdout, &mut std::io::sink()).expect("its output");
            assert_eq!(moved, STREAM);
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("vsock");
    group.sampling_mode(SamplingMode::Flat);
    let (_session, mut stdin, mut stdout) = open(distribution, &["cat"]).expect("a session");
    group.bench_function("round_trip", |bencher| {
        bencher.iter(|| {
            stdin.write_all(b"x").expect("it takes a byte");
            stdout.read_exact(&mut [0]).expect("it gives it back");
        });
    });
}

/// What the host's memory grows by with each further idle distribution.
fn idle(criterion: &mut Criterion<Memory>, stage: &mut Stage) {
    let mut running = Vec::new();
    criterion.benchmark_group("memory").sampling_mode(SamplingMode::Flat).bench_function(
        "distribution",
        |bencher| {
            bencher.iter_custom(|times| {
                measure::sum(times, || {
                    let root = stage.root()?;
                    std::thread::sleep(SETTLE);
                    let before = stage.resident_kib()?.1;
                    running.push(stage.launch(&format!("idle{}", running.len()), &root)?);
                    std::thread::sleep(SETTLE);
                    Ok(stage.resident_kib()?.1.saturating_sub(before))
                })
            });
        },
    );
    for distribution in running {
        stage.terminate(&distribution).expect("it stops");
    }
}

/// A program to its end, with all that it wrote.
fn run(distribution: &Distribution, program: &[&str]) -> Result<()> {
    let output = distribution.exec(&Program::new(program.iter().copied()), Pipes::ALL)?.output("")?;
    if output.status.shell() == 0 { Ok(()) } else { Err(format!("{program:?}: {output:?}").into()) }
}

type Stream = std::os::unix::net::UnixStream;

/// A program whose input and output are ours.
fn open(distribution: &Distribution, program: &[&str]) -> Result<(Session, Stream, Stream)> {
    let pipes = Pipes { stderr: false, ..Pipes::ALL };
    let mut session = distribution.exec(&Program::new(program.iter().copied()), pipes)?;
    match session.take_streams() {
        Some(Streams::Pipes { stdin: Some(stdin), stdout: Some(stdout), .. }) => Ok((session, stdin, stdout)),
        _ => Err("a session without its pipes".into()),
    }
}
