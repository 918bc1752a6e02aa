//! A machine's life beyond its boot, by parts: import, launch, exec, idle distributions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use undercroft_harness::archive::{Archive as Tar, Meta};
use undercroft_kernel_config::Kernel;
use undercroft_ruler_runner::{Run, Said, Until};
use undercroft_ruler_scenario::PROGRAM;
pub use undercroft_ruler_scenario::{RootKind, Setting};

use crate::{
    Error,
    archive::Archive,
    counts::Counts,
    machine::{Machine, Repetition},
    program,
};

/// Where things are in L1.
const SCENARIO: &str = "/undercroft-ruler-scenario";
const VMM: &str = "/undercroft-vmm";
const SETTING: &str = "/scenario.json";
const TAR: &str = "/distribution.tar";

/// Seconds of L1's time for all of it.
const LIMIT_SECONDS: u64 = 600;

/// What is played.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The VMM.
    pub vmm: PathBuf,
    /// The scenario's program.
    pub program: PathBuf,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// The guest's memory in MiB; it has one CPU.
    pub memory_mib: u64,
    /// How roots are made.
    pub root: RootKind,
    /// Whether distributions have users of their own.
    pub own_users: bool,
    /// How many idle distributions are looked at.
    pub idle: u32,
    /// What is played, with which distribution.
    pub contents: Contents,
}

/// What a scenario's distribution is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// A busybox, with the small init: all parts are played.
    Busybox,
    /// This tar, with the small init.
    Tar(PathBuf),
    /// This tar, which asks for systemd: launches and what two idle ones take.
    Systemd(PathBuf),
}

/// What a part took: the median of its repetitions but the first, or its only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What the program calls it.
    pub name: String,
    /// Its counts.
    pub whole: Counts,
    /// To the first instruction of the program in the guest, if there was one.
    pub program: Option<Counts>,
    /// The steps between the moments that the guest told of, and what each took in nanoseconds of the machine's clock,
    /// which are instructions of everybody.
    pub steps: Vec<(String, u64)>,
}

/// What all of it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Result {
    /// In the order of their first time.
    pub parts: Vec<Part>,
    /// The names of all, repetitions too, in the order in which they were.
    pub order: Vec<String>,
    /// Name, value and unit of what is no count.
    pub values: Vec<(String, u64, String)>,
}

impl Result {
    /// The part of this name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The value of this name.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.values.iter().find(|(known, ..)| known == name).map(|(_, value, _)| *value)
    }

    pub(crate) fn of(repetition: &Repetition) -> Self {
        let mut result = Self::default();
        let parts: Vec<_> = repetition.parts().collect();
        result.order = parts.iter().map(|part| part.name.into()).collect();
        for first in &parts {
            if result.part(first.name).is_some() {
                continue;
            }
            let mut all: Vec<_> = parts.iter().filter(|part| part.name == first.name).collect();
            if all.len() > 1 {
                all.remove(0);
            }
            all.sort_by_key(|named| named.part.whole.total());
            let Some(median) = all.get(all.len() / 2) else { continue };
            result.parts.push(Part {
                name: first.name.into(),
                whole: median.part.whole,
                program: median.part.program,
                steps: steps(median.moments, median.part.whole.total()),
            });
        }
        result.values = repetition
            .said
            .iter()
            .filter_map(|said| match said {
                Said::Value { name, value, unit } => Some((name.clone(), *value, unit.clone())),
                Said::Span { .. } => None,
            })
            .collect();
        result
    }
}

/// Moments since a begin as steps: each is called by the moment that ends it, the last one leads to the end.
fn steps(moments: &[(String, u64)], end: u64) -> Vec<(String, u64)> {
    let mut before = 0;
    let mut steps: Vec<(String, u64)> = Vec::new();
    for (name, at) in moments {
        steps.push((format!("to {name}"), at.saturating_sub(before)));
        before = *at;
    }
    if !steps.is_empty() {
        steps.push(("to the host's knowledge".into(), end.saturating_sub(before)));
    }
    steps
}

/// The busybox distribution with the marker's program in it, as a tar.
pub fn distribution(out: &Path) -> std::result::Result<(), Error> {
    let marker = program::that_ends();
    let tar = Tar::busybox("measured")
        .and_then(|tar| tar.file(PROGRAM.trim_start_matches('/'), &marker, Meta::default()))
        .and_then(Tar::bytes)
        .map_err(Error::io("read", "/bin/busybox"))?;
    fs::write(out, tar).map_err(Error::io("write", out))
}

/// Puts what makes disks into the archive.
pub(crate) fn disk_tools(archive: &mut Archive) -> std::result::Result<(), Error> {
    let mke2fs = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(Path::new).into_iter().find(|path| path.exists());
    let mke2fs = mke2fs.unwrap_or(Path::new("/sbin/mke2fs"));
    archive.program(mke2fs, "/sbin/mke2fs")?;
    let features = Path::new("/etc/mke2fs.conf");
    if features.exists() {
        archive.copy(features, features);
    }
    Ok(())
}

/// Plays it in the machine; `work` is a directory for the machine's files.
pub fn measure(machine: &Machine, scenario: &Scenario, work: &Path) -> std::result::Result<Result, Error> {
    let mut archive = Archive::default();
    let setting = place(scenario, &mut archive, work)?;
    archive.program(&scenario.program, SCENARIO)?;
    archive.bytes(serde_json::to_vec(&setting).expect("a setting is paths, strings and numbers"), SETTING);
    let run = Run {
        name: "scenario".into(),
        program: vec![SCENARIO.into(), SETTING.into()],
        repetitions: 1,
        until: Until::Exit,
        limit_seconds: LIMIT_SECONDS,
        log: None,
    };
    let repetitions = machine.measure(archive, vec![run], work)?;
    Ok(repetitions.first().map(Result::of).unwrap_or_default())
}

/// Puts what a stage is made of into the archive; gives the setting with its paths in L1.
pub fn place(scenario: &Scenario, archive: &mut Archive, work: &Path) -> std::result::Result<Setting, Error> {
    let inside = |path: &Path| PathBuf::from("/boot").join(path.strip_prefix("/").unwrap_or(path));
    let mut put = |path: &Path| {
        archive.copy(path, inside(path));
        inside(path)
    };
    let mut config = undercroft::machine_config(&scenario.kernel, 1, scenario.memory_mib);
    config.kernel = put(&scenario.kernel.image);
    config.initramfs = Some(put(&scenario.initramfs));
    let modules_disk = scenario.kernel.modules_disk.as_deref().map(put);
    archive.program(&scenario.vmm, VMM)?;
    disk_tools(archive)?;
    let tar = match &scenario.contents {
        Contents::Systemd(tar) | Contents::Tar(tar) => tar.clone(),
        Contents::Busybox => {
            let tar = work.join("busybox.tar");
            distribution(&tar)?;
            tar
        }
    };
    archive.copy(tar, TAR);
    Ok(Setting {
        vmm: VMM.into(),
        config,
        modules_disk,
        archive: TAR.into(),
        root: scenario.root,
        own_users: scenario.own_users,
        idle: scenario.idle,
        systemd: matches!(scenario.contents, Contents::Systemd(_)),
        patience: 1,
    })
}
