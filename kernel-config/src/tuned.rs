//! The tuned kernel: built from a source and the fragments, once for each pair of them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use sha2::{Digest as _, Sha256};

use crate::{
    Description, Error, Kernel, Kind, cache,
    fragments::{self, Fragment},
    kbuild, kernel,
    merge::{Config, Lost, Merged},
    modules::{Choice, Tree},
    modules_disk, program,
    source::{self, Source, Tarball},
};

/// Changes when the way of building changes, so that kernels built in another way are built anew.
const RECIPE: u32 = 1;

/// Objects in a build with our fragments: what progress is measured by before the first build.
const OBJECTS: usize = 2900;

/// Parameters that this kernel boots faster with, each measured in instructions at 1 CPU and 512 MiB: the I/O APIC's timer
/// is not tried out (50 million), per-CPU memory is made of pages and not of a block of 2 MiB that is cleared (4), names
/// of enums in trace events' formats stay unresolved (110), and /sys/kernel/slab stays empty (4).
pub(crate) const COMMAND_LINE: &str =
    "no_timer_check percpu_alloc=page initcall_blacklist=trace_eval_init,slab_late_init,cmos_init";

/// How this kernel is told which devices there are: the command line costs it least (docs/decisions.md). This and the parameters are no part of a build and of its name:
/// [`Kernel::load`] puts them in, so that another choice needs no other build.
pub(crate) const DESCRIPTION: Description = Description::CommandLine;

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// From what.
    pub source: Source,
    /// Names of files in `optional/` (without `.config`) to add to the fragments.
    pub with: Vec<String>,
    /// Leave the build's folder (400 MB) when it has succeeded.
    pub keep_build: bool,
    /// Parallel jobs; 0 for one a CPU.
    pub jobs: usize,
}

/// What a build is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The next step, for people.
    Step(String),
    /// So many objects of about so many; with the seconds that the rest will take, once there is something to go by.
    Objects {
        /// Compiled, or found in ccache.
        done: usize,
        /// Of how many, as the last build had.
        expected: usize,
        /// Until the end, in seconds.
        remaining: Option<u64>,
    },
    /// Options that this source does not have.
    Unknown(Vec<Lost>),
}

/// The fragments and the optional ones that are asked for.
pub fn merged(with: &[String]) -> Result<Merged, Error> {
    let mut all: Vec<Fragment> = fragments::ALL.to_vec();
    for name in with {
        let found = fragments::OPTIONAL.iter().find(|f| f.name.strip_suffix(".config") == Some(name));
        all.push(*found.ok_or_else(|| Error::NoFragment {
            name: name.clone(),
            known: fragments::OPTIONAL.iter().map(|f| f.name.trim_end_matches(".config")).collect(),
        })?);
    }
    Merged::parse(&all)
}

/// Names the result: by all that decides its bytes.
fn id(tarball: &Tarball, merged: &Merged, toolchain: &str) -> String {
    let mut hash = Sha256::new();
    for part in [&RECIPE.to_string(), &tarball.sha256, &merged.text(), toolchain] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tuned kernel if it has been built before, without building or fetching anything.
pub fn tuned_if_built(options: &Options) -> Result<Option<Kernel>, Error> {
    let tarball = source::tarball(&options.source)?;
    let id = id(&tarball, &merged(&options.with)?, &kbuild::toolchain()?);
    let directory = cache::dir()?.join("kernels").join(format!("tuned-{id}"));
    if directory.is_dir() { Kernel::load(&directory).map(Some) } else { Ok(None) }
}

/// The tuned kernel; built if it is not in the cache, which takes half an hour of CPU time and 2 GB. A build that is
/// interrupted goes on where it was.
pub fn tuned(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Kernel, Error> {
    let merged = merged(&options.with)?;
    kbuild::check_tools()?;
    let tarball = source::tarball(&options.source)?;
    let id = id(&tarball, &merged, &kbuild::toolchain()?);
    let directory = cache::obtain("kernels", &format!("tuned-{id}"), |dir| {
        progress(Progress::Step(format!("unpacking {}", tarball.origin)));
        let source = source::tree(&tarball)?;
        let build = source.join(format!("build-{id}"));
        progress(Progress::Step("configuring".into()));
        let (_, unknown) = kbuild::configure(&source, &build, &merged, false)?;
        if !unknown.is_empty() {
            progress(Progress::Unknown(unknown));
        }
        compile(&source, &build, options.jobs, progress)?;
        progress(Progress::Step("collecting".into()));
        collect(&build, dir, &tarball, &id)?;
        if options.keep_build { Ok(()) } else { cache::remove_all(&build) }
    })?;
    Kernel::load(&directory)
}

/// The configuration that [`tuned`] would build with, and nothing built: a minute the first time, for the source is
/// unpacked; then it comes from the cache. Here, unlike there, an option that the source does not know is an error.
pub fn configuration(options: &Options) -> Result<String, Error> {
    let merged = merged(&options.with)?;
    kbuild::check_tools()?;
    let tarball = source::tarball(&options.source)?;
    let id = id(&tarball, &merged, &kbuild::toolchain()?);
    let directory = cache::obtain("configs", &id, |dir| {
        let source = source::tree(&tarball)?;
        let build = source.join(format!("config-{id}"));
        let made = kbuild::configure(&source, &build, &merged, true).and_then(|_| {
            let from = build.join(".config");
            fs::copy(&from, dir.join("config")).map_err(Error::io("copy", &from))
        });
        cache::remove_all(&build)?;
        made.map(|_| ())
    })?;
    let path = directory.join("config");
    fs::read_to_string(&path).map_err(Error::io("read", &path))
}

/// The same, understood.
pub fn config(options: &Options) -> Result<Config, Error> {
    configuration(options).map(|text| Config::parse(&text))
}

/// Runs make, counting objects; everything it says goes to a log.
fn compile(
    source: &Path,
    build: &Path,
    jobs: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let log = build.join("build.log");
    let mut file = fs::File::create(&log).map_err(Error::io("create", &log))?;
    let jobs = match jobs {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let (reader, writer) = std::io::pipe().map_err(Error::io("make a pipe for", &log))?;
    let mut make = kbuild::make(source, build);
    make.arg(format!("-j{jobs}")).args(["vmlinux", "modules"]);
    make.stderr(writer.try_clone().map_err(Error::io("make a pipe for", &log))?).stdout(writer);
    let mut child = make.spawn().map_err(|e| program::not_started(&make, "make", e))?;
    drop(make); // and with it the pipe's writing ends on this side

    let counted = source.join(".objects");
    let expected = fs::read_to_string(&counted).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(OBJECTS);
    let start = Instant::now();
    let mut done = 0;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(Error::io("read what make says in", &log))?;
        file.write_all(&line).and_then(|()| file.write_all(b"\n")).map_err(Error::io("write", &log))?;
        if is_object(&line) {
            done += 1;
            let expected = expected.max(done);
            let elapsed = start.elapsed().as_secs();
            let remaining = (done >= 100).then(|| elapsed * (expected - done) as u64 / done as u64);
            progress(Progress::Objects { done, expected, remaining });
        }
    }
    let status = child.wait().map_err(Error::io("wait for", "make"))?;
    if !status.success() {
        let text = fs::read(&log).map_err(Error::io("read", &log))?;
        return Err(Error::Build { tail: errors(&String::from_utf8_lossy(&text)), log });
    }
    if done > OBJECTS / 2 {
        // A build that went on from an interrupted one counted only the rest.
        let _ = cache::write(&counted, done.to_string().as_bytes());
    }
    Ok(())
}

/// Whether make's line says that an object was made: `  CC      init/main.o`, `  CC [M]  fs/xfs/xfs_log.o`, `  AS …`.
fn is_object(line: &[u8]) -> bool {
    matches!(line, [b' ', b' ', b'C', b'C', b' ', ..] | [b' ', b' ', b'A', b'S', b' ', ..])
}

/// The lines from the first error on, a dozen at most; without one, the log's end.
fn errors(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    let is_error = |line: &&str| {
        ["error:", "undefined reference", "undefined!", "No space left", "Killed"]
            .iter()
            .any(|e| line.contains(e))
    };
    let first = lines.iter().position(is_error).or_else(|| lines.iter().position(|l| l.contains("*** ")));
    let from = first.unwrap_or(lines.len().saturating_sub(LINES));
    lines[from..].iter().take(LINES).copied().collect::<Vec<_>>().join("\n")
}

/// Puts together what a build made.
fn collect(build: &Path, dir: &Path, tarball: &Tarball, id: &str) -> Result<(), Error> {
    let copy = |from: &str, to: &str| {
        let from = build.join(from);
        fs::copy(&from, dir.join(to)).map_err(Error::io("copy", &from))
    };
    copy("System.map", "System.map")?;
    copy(".config", kernel::CONFIG)?;
    let image = dir.join("vmlinux");
    let mut strip = program::command("objcopy");
    strip.arg("--strip-all").arg(build.join("vmlinux")).arg(&image);
    program::run(&mut strip, "binutils")?;
    let path = build.join("include/config/kernel.release");
    let release = fs::read_to_string(&path).map_err(Error::io("read", &path))?.trim().to_owned();

    let staging = dir.join("staging");
    stage_modules(build, &staging)?;
    let tree = Tree::open(&staging)?;
    let initramfs_modules = tree.extract_early(&dir.join("modules"))?;
    let disk = dir.join("modules.ext4");
    modules_disk::make(&tree, Choice::All, &release, &disk)?;
    cache::remove_all(&staging)?;

    let kernel = Kernel {
        image,
        release,
        kind: Kind::Tuned,
        origin: format!("{} with undercroft's fragments ({id})", tarball.origin),
        initramfs_modules,
        modules_disk: Some(disk),
        description: DESCRIPTION,
        command_line: COMMAND_LINE.into(),
        timer_hz: None,
        grows: false,
    };
    kernel.save(dir)
}

/// What `make modules_install` would lay out, without depmod: `modules.order` lists the objects, relative to the build.
fn stage_modules(build: &Path, staging: &Path) -> Result<(), Error> {
    let path = build.join("modules.order");
    let order = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    fs::create_dir_all(staging.join("kernel")).map_err(Error::io("create", staging))?;
    for line in order.lines() {
        // Since 5.18 with `.o`, before with `.ko`.
        let relative = PathBuf::from(line).with_extension("ko");
        let (from, to) = (build.join(&relative), staging.join("kernel").join(&relative));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let mut strip = program::command("objcopy");
        program::run(strip.arg("--strip-debug").arg(&from).arg(&to), "binutils")?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(build.join(name), staging.join(name)).map_err(Error::io("copy", build.join(name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tarball(sha256: &str) -> Tarball {
        Tarball { path: PathBuf::new(), sha256: sha256.into(), origin: String::new() }
    }

    #[test]
    fn the_name_depends_on_all_that_decides_the_bytes_and_on_nothing_else() {
        let fragment = |text| Merged::parse(&[Fragment { name: "f.config", text }]).unwrap();
        let plain = id(&tarball("a"), &fragment("# why\nCONFIG_A=y\n"), "gcc 12");
        assert_eq!(plain, id(&tarball("a"), &fragment("# because\n\n# yes\nCONFIG_A=y\n"), "gcc 12"));
        assert_ne!(plain, id(&tarball("b"), &fragment("# why\nCONFIG_A=y\n"), "gcc 12"));
        assert_ne!(plain, id(&tarball("a"), &fragment("# why\nCONFIG_A=m\n"), "gcc 12"));
        assert_ne!(plain, id(&tarball("a"), &fragment("# why\nCONFIG_A=y\n"), "gcc 13"));
        assert_eq!(plain.len(), 16);
    }

    #[test]
    fn objects_are_told_from_the_rest() {
        assert!(is_object(b"  CC      init/main.o") && is_object(b"  CC [M]  fs/xfs/xfs_log.o"));
        assert!(!is_object(b"  AR      init/built-in.a") && !is_object(b"make[1]: Entering directory"));
    }

    #[test]
    fn a_failure_shows_the_first_error() {
        let log = "  CC  a.o\n../b.c:3:1: error: expected ';'\n    3 | x\nmake[2]: *** [b.o] Error 1\n";
        assert!(errors(log).starts_with("../b.c:3:1: error:"));
        assert_eq!(errors("nothing special\n"), "nothing special");
        assert_eq!(errors(""), "");
    }

    #[test]
    fn optional_fragments_are_added_by_name() {
        assert!(merged(&["btf".into()]).unwrap().get("DEBUG_INFO_BTF").is_some());
        let error = merged(&["bft".into()]).unwrap_err().to_string();
        assert!(error.contains("bft") && error.contains("btf"), "{error}");
    }
}
