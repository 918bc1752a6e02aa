//! Plays one machine's life through in the ruler's machine, each part between two markers:
//!
//! | span | what is in it |
//! | --- | --- |
//! | `start` | the VMM is executed, the machine boots, mini-init says hello |
//! | `import` | an archive is unpacked onto an empty disk that is in the machine already |
//! | `launch` | a distribution with a root that is in the machine: to its init's word that it is ready |
//! | `exec` | a program with three pipes: to its end with all that it wrote |
//! | `echo` | `echo`: to the first byte of its output |
//! | `run` | a launch, and a program in it to its end |
//! | `terminate` | a distribution: to its root's being unmounted |
//! | `power-off` | the machine, with one distribution in it |
//!
//! With a distribution that asks for systemd these are played instead:
//!
//! | span | what is in it |
//! | --- | --- |
//! | `systemd` | a distribution: to systemd's word that it is up |
//! | `systemd-stop` | a distribution: an orderly end, to its root's being unmounted |

use std::{
    io::Read as _,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use undercroft::{Distribution, Machine, Pipes, Program, Root, Streams};
use undercroft_ruler_runner::{Said, TAG_SPAN_BEGIN, TAG_SPAN_END, marker::mark};
use undercroft_ruler_scenario::{PROGRAM, Result, Setting, Stage};

/// How often a thing is done that can be done again; the first time is not counted.
const TIMES: u32 = 4;

/// How long all is left alone before a span, so that nothing of what was before is counted in it.
const SETTLE: Duration = Duration::from_millis(200);

/// How long memory is left alone before it is looked at: the guest reports what is free every two seconds.
const SETTLE_MEMORY: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let outcome = match std::env::args_os().nth(1) {
        Some(path) => Setting::read(Path::new(&path)).and_then(|setting| play(&setting)),
        None => Err("expected: SETTING.json".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&*error);
            while let Some(error) = cause {
                println!("scenario: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn play(setting: &Setting) -> Result<()> {
    let mut stage = span("start", None, || Stage::start(setting))?;
    if setting.systemd {
        return systemd(stage);
    }
    say("vmm_resident", stage.resident_kib()?.0, "KiB");
    let disk = stage.empty_disk()?;
    span("import", None, || stage.import(&disk))?;
    stage.machine.detach_disk(disk)?;

    let root = stage.root()?;
    let running = launches(&stage, &root)?;
    sessions(&running)?;
    stage.terminate(&running)?;
    runs(&stage, &root)?;
    if setting.idle > 0 {
        idle(&mut stage, setting.idle)?;
    }
    let _last = stage.launch("last", &root)?;
    span("power-off", None, || stage.power_off())
}

/// What a second idle one costs the host, as long as nobody has left free memory behind; then launches with systemd.
fn systemd(mut stage: Stage) -> Result<()> {
    let mut running = Vec::new();
    let mut resident = Vec::new();
    let root = stage.root()?;
    for (name, root) in [("one", root.clone()), ("two", stage.root()?)] {
        running.push(stage.launch(name, &root)?);
        // What was freed on the way up goes back in many small parts.
        thread::sleep(12 * SETTLE_MEMORY);
        resident.push(stage.resident_kib()?.1);
    }
    if let [one, two] = resident[..] {
        say("idle_systemd", two.saturating_sub(one), "KiB");
    }
    for distribution in running {
        stage.terminate(&distribution)?;
    }
    for _ in 0..2 {
        let distribution = span("systemd", Some(&stage.machine), || stage.launch("one", &root))?;
        span("systemd-stop", None, || stage.terminate(&distribution))?;
    }
    stage.power_off()
}

/// Launches and terminations; gives the last one back as it runs.
fn launches(stage: &Stage, root: &Root) -> Result<Distribution> {
    for _ in 1..TIMES {
        let distribution = span("launch", Some(&stage.machine), || stage.launch("one", root))?;
        span("terminate", None, || stage.terminate(&distribution))?;
    }
    span("launch", Some(&stage.machine), || stage.launch("one", root))
}

fn sessions(distribution: &Distribution) -> Result<()> {
    for _ in 0..TIMES {
        span("exec", None, || ends_well(distribution))?;
        let session = span("echo", None, || {
            let mut session = distribution.exec(&Program::new(["/bin/echo", "x"]), Pipes::ALL)?;
            let Some(Streams::Pipes { stdout: Some(mut stdout), .. }) = session.take_streams() else {
                return Err("a session without its output".into());
            };
            stdout.read_exact(&mut [0])?;
            Ok(session)
        });
        session?.wait()?;
    }
    Ok(())
}

/// The marker's program, to its end.
fn ends_well(distribution: &Distribution) -> Result<()> {
    let output = distribution.exec(&Program::new([PROGRAM]), Pipes::ALL)?.output("")?;
    if output.status.shell() == 0 { Ok(()) } else { Err(format!("{PROGRAM}: {output:?}").into()) }
}

fn runs(stage: &Stage, root: &Root) -> Result<()> {
    for _ in 0..TIMES {
        let distribution = span("run", None, || {
            let distribution = stage.launch("one", root)?;
            ends_well(&distribution)?;
            Ok(distribution)
        })?;
        stage.terminate(&distribution)?;
    }
    Ok(())
}

/// What idle distributions cost the host.
fn idle(stage: &mut Stage, number: u32) -> Result<()> {
    let mut running = Vec::new();
    let mut resident = Vec::new();
    for index in 0..number {
        let root = stage.root()?;
        running.push(stage.launch(&format!("idle{index}"), &root)?);
        thread::sleep(SETTLE_MEMORY);
        resident.push(stage.resident_kib()?.1);
    }
    if let (Some(first), [.., before, last]) = (resident.first(), &resident[..]) {
        say("idle_last", last.saturating_sub(*before), "KiB");
        say("idle_mean", last.saturating_sub(*first) / u64::from(number - 1), "KiB");
    }
    for distribution in running {
        stage.terminate(&distribution)?;
    }
    Ok(())
}

/// Does something between two markers, and says what it was; with what the machine's timeline knows of it.
fn span<T>(name: &str, machine: Option<&Machine>, what: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::sleep(SETTLE);
    let before = machine.map_or(0, |machine| guests(machine).len());
    let begin = now();
    mark::<TAG_SPAN_BEGIN>();
    let done = what();
    mark::<TAG_SPAN_END>();
    let done = done?;
    let new = machine.map(|machine| guests(machine).split_off(before)).unwrap_or_default();
    // A guest without kvmclock and clock chip has a time of its own: its moments then count from the first of them.
    let first = new.first().map_or(begin, |(_, at)| *at);
    let origin = if (begin..=now()).contains(&first) { begin } else { first };
    let moments = new.into_iter().map(|(name, at)| (name, at.saturating_sub(origin))).collect();
    Said::Span { name: name.into(), moments }.say();
    Ok(done)
}

/// What the guest told of launches, in its order and by its clock.
fn guests(machine: &Machine) -> Vec<(String, u64)> {
    let launches = |teller: &str| teller == "launch" || teller == "init";
    let moments = machine.timeline().moments.into_iter().filter(|moment| launches(moment.teller));
    moments.map(|moment| (moment.name, moment.at_ns)).collect()
}

/// Nanoseconds of CLOCK_REALTIME.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

fn say(name: &str, value: u64, unit: &str) {
    Said::Value { name: name.into(), value, unit: unit.into() }.say();
}
