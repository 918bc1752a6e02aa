//! `cargo xtask kernel`: get, build, check or describe a kernel.
//!
//! The last line on standard output is where the kernel is; everything else is on standard error. CI starts
//! `cargo xtask kernel` first, in the background, and does what needs no kernel (format, clippy, unit tests) meanwhile:
//! a second `cargo xtask kernel` waits for the first one's lock and finds its result. `--check` needs no build and runs
//! beside it.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use undercroft_kernel_config::{
    Error, Kernel, Options, Progress, Source, config, configuration, merged, newest_stock,
    requirements::{self, Requirement},
    tuned as tuned_kernel, tuned_if_built,
};

use crate::packages::{self, Group};

/// Get, build, check or describe a kernel.
///
/// Without options: the tuned kernel, built from Debian's linux-source-6.12 and the fragments in kernel-config/, or found
/// in the cache. The path of the image is printed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A stock kernel instead: this machine's own if it will do, else Debian's 6.12 cloud kernel.
    #[arg(long, conflicts_with_all = ["source", "with", "check", "config", "explain"])]
    stock: bool,
    /// Build from this Linux source: a tarball's path or URL.
    #[arg(long, value_name = "TARBALL|URL")]
    source: Option<String>,
    /// What the source must hash to; needed for a URL.
    #[arg(long, value_name = "HEX", requires = "source")]
    sha256: Option<String>,
    /// Add an optional fragment (kernel-config/optional/NAME.config).
    #[arg(long, value_name = "NAME")]
    with: Vec<String>,
    /// Parallel jobs; as many as there are CPUs if not given.
    #[arg(long, short, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Leave the build's folder where it is.
    #[arg(long)]
    keep_build: bool,
    /// Print the path and nothing else; fail if the kernel is not built yet.
    #[arg(long)]
    path_only: bool,
    /// Hold the configuration against what Docker, Podman and systemd ask for; builds nothing.
    #[arg(long, conflicts_with_all = ["config", "explain"])]
    check: bool,
    /// Print the configuration that Kconfig makes of the fragments; builds nothing.
    #[arg(long, conflicts_with = "explain")]
    config: bool,
    /// Say which fragment asks for an option, and why.
    #[arg(long, value_name = "OPTION")]
    explain: Option<String>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(option) = &arguments.explain {
        return explain(option, &arguments.with);
    }
    if arguments.stock {
        return print(&stock()?);
    }
    let source = match &arguments.source {
        Some(name) => Source::named(name, arguments.sha256)?,
        None => Source::Debian,
    };
    let options =
        Options { source, with: arguments.with, keep_build: arguments.keep_build, jobs: arguments.jobs };
    if arguments.path_only {
        let kernel = tuned_if_built(&options)?;
        return print(&kernel.context("the tuned kernel is not built yet: run cargo xtask kernel")?);
    }
    if arguments.check || arguments.config {
        packages::ensure(Group::KernelBuild)?;
    }
    if arguments.check {
        return check(&options);
    }
    if arguments.config {
        // A reader that has seen enough (`| head`) is no error.
        let _ = std::io::stdout().write_all(configuration(&options)?.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    print(&build(&options)?)
}

/// Where this machine's own kernel will do, none of the packages is needed; so they are only asked for on demand.
pub(crate) fn stock() -> anyhow::Result<Kernel> {
    match newest_stock() {
        Err(Error::NoProgram { .. }) => {
            packages::ensure(Group::StockKernel)?;
            Ok(newest_stock()?)
        }
        other => Ok(other?),
    }
}

/// The tuned kernel of Debian's source and our fragments, built if it is not there.
pub(crate) fn ensure_tuned() -> anyhow::Result<Kernel> {
    build(&Options { source: Source::Debian, with: Vec::new(), keep_build: false, jobs: 0 })
}

fn print(kernel: &Kernel) -> anyhow::Result<ExitCode> {
    println!("{}", kernel.image.display());
    Ok(ExitCode::SUCCESS)
}

/// The tuned kernel, from the cache or built with progress on standard error.
fn build(options: &Options) -> anyhow::Result<Kernel> {
    packages::ensure(Group::KernelBuild)?;
    let mut report = Report::new();
    let start = Instant::now();
    let kernel = tuned_kernel(options, &mut |progress| report.show(progress));
    report.bar.finish_and_clear();
    let kernel = kernel?;
    if report.built {
        eprintln!("kernel: {} built in {}", kernel.release, minutes(start.elapsed().as_secs()));
    }
    Ok(kernel)
}

/// Progress: a bar on a terminal, elsewhere a line every twenty seconds.
struct Report {
    bar: ProgressBar,
    terminal: bool,
    last: Option<Instant>,
    built: bool,
}

impl Report {
    const EVERY: Duration = Duration::from_secs(20);

    fn new() -> Self {
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("kernel: {wide_bar} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self { bar, terminal: std::io::stderr().is_terminal(), last: None, built: false }
    }

    fn show(&mut self, progress: Progress) {
        self.built = true;
        match progress {
            Progress::Step(step) => self.line(&format!("kernel: {step}")),
            Progress::Unknown(lost) => {
                for lost in lost {
                    self.line(&format!("kernel: {}: this source has no {}", lost.place, lost.option));
                }
            }
            Progress::Objects { done, expected, remaining } => {
                let left = remaining.map_or_else(String::new, |s| format!("about {} left", minutes(s)));
                if self.terminal {
                    self.bar.set_length(expected as u64);
                    self.bar.set_position(done as u64);
                    self.bar.set_message(left);
                } else if self.last.is_none_or(|at| at.elapsed() >= Self::EVERY) {
                    self.last = Some(Instant::now());
                    eprintln!("kernel: {done} of {expected} objects, {left}");
                }
            }
        }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

fn minutes(seconds: u64) -> String {
    if seconds < 100 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

fn explain(option: &str, with: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(asked) = merged(with)?.get(option) {
        println!("{}={} ({})\n{}", asked.option, asked.value, asked.place, asked.reason);
        return Ok(ExitCode::SUCCESS);
    }
    let name = format!("CONFIG_{}", option.strip_prefix("CONFIG_").unwrap_or(option));
    for requirement in required()?.into_iter().filter(|r| r.option == name) {
        if let Some(reason) = requirement.reason {
            println!("{name} is left out, though {} could use it\n{reason}", requirement.who);
            return Ok(ExitCode::SUCCESS);
        }
    }
    anyhow::bail!("no fragment asks for {name}: it is off, or follows from another (see --config)")
}

fn required() -> anyhow::Result<Vec<Requirement>> {
    let lists: Result<Vec<_>, _> = requirements::ALL.iter().map(requirements::parse).collect();
    Ok(lists?.into_iter().flatten().collect())
}

fn check(options: &Options) -> anyhow::Result<ExitCode> {
    let verdict = requirements::judge(&config(options)?, required()?);
    let each = |list: &[Requirement], what: &str| {
        for requirement in list {
            let (who, option) = (requirement.who, &requirement.option);
            let reason = requirement.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
            println!("{who:8} {what} {option}{reason}");
        }
    };
    each(&verdict.left_out, "left out ");
    each(&verdict.missing, "MISSING  ");
    each(&verdict.unexplained, "NO REASON");
    each(&verdict.outdated, "PRESENT  ");
    println!(
        "{} requirements met, {} optional ones left out with a reason, {} necessary ones missing",
        verdict.met,
        verdict.left_out.len(),
        verdict.missing.len()
    );
    Ok(if verdict.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
