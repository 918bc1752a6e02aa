//! `cargo xtask budget`: measures on the ruler what has a budget, and holds it against `benches/budget.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use undercroft_benches::{
    boot::{self, Boot},
    budget::{self, Budgets, Measurement, Verdict},
    counts::Counts,
    peers::monitors,
    product::{self, Product},
    scenario::{self, RootKind, Scenario},
    tools,
};
use undercroft_harness::guest;
use undercroft_kernel_config::{Kernel, initramfs};
use undercroft_vmm::{MachineConfig, config::Description};

use crate::{
    packages::{self, Group},
    workspace_root,
};

const INSTRUCTIONS: &str = "instructions";
const ENTRIES: &str = "entries";
const KIB: &str = "KiB";
const BYTES: &str = "bytes";
const PERCENT: &str = "percent";

/// How distributions' roots are made, and whether they have users of their own.
pub(crate) const ROOT: RootKind = RootKind::Layered;
pub(crate) const OWN_USERS: bool = true;

/// How many idle distributions are looked at.
pub(crate) const IDLE: u32 = 10;

/// Measure what has a budget, in instructions, VM entries and bytes, and fail if it is exceeded by more than 2 %.
///
/// The measuring machine is made in software and its time is executed instructions, so that the numbers are the same
/// everywhere. They are never milliseconds. Prints `name value budget unit`; a budget of `-` is a number for
/// information.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Measure this kernel in place of the tuned one (a vmlinux; its manifest.json is heeded if it lies beside it).
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Only what has a budget: leave the numbers for information out, and be done in half the time.
    #[arg(long)]
    brief: bool,
    /// Print the phases of each number too, in the budget file's words.
    #[arg(long)]
    phases: bool,
    /// Write the results to this file too, as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { kernel, brief, phases, json } = arguments;
    let started = Instant::now();
    let root = workspace_root();
    let budgets = Budgets::read(&root)?;
    let measurements = measure(kernel.as_deref(), brief)?;
    let verdicts = budgets.judge(&measurements);
    for verdict in &verdicts {
        println!("{verdict}");
        if phases && !verdict.phases.is_empty() {
            println!("{}", verdict.recorded());
        }
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&verdicts)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("measured in {} s", started.elapsed().as_secs());
    Ok(conclude(&budgets, &measurements, &verdicts))
}

/// Says on stderr what is wrong, if anything.
fn conclude(budgets: &Budgets, measurements: &[Measurement], verdicts: &[Verdict]) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for verdict in verdicts.iter().filter(|verdict| verdict.exceeded) {
        let (over, name) = (verdict.value - verdict.budget.unwrap_or(0), &verdict.name);
        let percent = over as f64 * 100.0 / verdict.budget.unwrap_or(1) as f64;
        eprintln!(
            "{name} exceeds its budget by {over} {} ({percent:.1} %); find what costs it, or raise the budget in {} with its \
             reason",
            verdict.unit,
            budget::FILE
        );
        if let Some(phase) = verdict.culprit() {
            eprintln!("what grew most is {:?}, by {}", phase.name, phase.growth());
        }
        eprint!("{}", verdict.table());
        status = ExitCode::FAILURE;
    }
    for name in budgets.unmeasured(measurements) {
        eprintln!("{} has a budget for {name}, and nothing measures that", budget::FILE);
        status = ExitCode::FAILURE;
    }
    status
}

fn measure(kernel: Option<&Path>, brief: bool) -> anyhow::Result<Vec<Measurement>> {
    packages::ensure(Group::Lab)?;
    packages::ensure(Group::Disk)?;
    eprintln!("building the VMM, the inits, the plugin and the ruler's runner");
    let guest = guest::build()?;
    let vmm = tools::vmm()?;
    let machine = tools::machine()?;
    let tuned = match kernel {
        Some(path) => undercroft_kernel_config::given(path)?,
        None => crate::kernel::ensure_tuned()?,
    };
    let work = directory()?;
    let pack = |kernel: &Kernel, name: &str| -> anyhow::Result<PathBuf> {
        let path = work.join(name);
        initramfs::build(&guest.mini_init, &guest.init, &kernel.initramfs_modules, &path)?;
        Ok(path)
    };
    let image = pack(&tuned, "tuned.cpio")?;
    let alone = work.join("alone.cpio");
    monitors::initramfs(&alone)?;
    let mut small = Boot::new("small", &tuned, &image, 128);
    small.with_disks();
    let mut boots = vec![
        sized("tuned", &tuned, &image, 1, 512),
        small,
        Boot::alone("share", &tuned, &alone, monitors::MEMORY_MIB, true),
        sized("large", &tuned, &image, LARGE.0, LARGE.1),
    ];
    if !brief {
        for (name, description) in DESCRIPTIONS {
            let mut boot = Boot::new(name, &tuned, &image, 512);
            boot.config.description = description;
            boots.push(boot);
        }
        let stock = crate::kernel::stock()?;
        let image = pack(&stock, "stock.cpio")?;
        boots.push(Boot { counted: 1, ..Boot::new("stock", &stock, &image, 512) });
    }
    eprintln!(
        "booting {} guests under {} in a machine made in software; a minute or two",
        boots.iter().map(|boot| boot.counted + 1).sum::<u32>(),
        vmm.display()
    );
    let results = boot::measure(&machine, &vmm, &boots, &work)?;
    let mut measurements = Vec::new();
    for (boot, result) in boots.iter().zip(&results) {
        measurements.append(&mut numbers(&boot.name, result));
    }
    measurements.extend(growth(&boots, &results));
    eprintln!("importing, launching, executing");
    let whole = Product {
        undercroft: tools::product()?,
        vmm: vmm.clone(),
        guest: &guest,
        kernel: &tuned,
        program: tools::product_scenario()?,
    };
    measurements.append(&mut life(&product::measure(&machine, &whole, &work)?));
    let scenario = Scenario {
        vmm,
        program: tools::scenario()?,
        kernel: tuned,
        initramfs: image.clone(),
        memory_mib: 512,
        root: ROOT,
        own_users: OWN_USERS,
        idle: IDLE,
        contents: scenario::Contents::Busybox,
    };
    measurements.append(&mut life(&scenario::measure(&machine, &scenario, &work)?));
    for (name, path) in [("initramfs", &image), ("mini_init", &guest.mini_init), ("init", &guest.init)] {
        measurements.push(Measurement::new(format!("{name}_bytes"), size(path)?, BYTES));
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(measurements)
}

/// The CPUs and the MiB of a machine whose boot is to cost no more than a small one's.
const LARGE: (u8, u64) = (4, 8192);

/// A boot of the machine that the product makes of this size: it has grown to it some time after the greeting.
fn sized(name: &str, kernel: &Kernel, image: &Path, cpus: u8, memory_mib: u64) -> Boot {
    let mut boot = Boot::new(name, kernel, image, memory_mib);
    let product = undercroft::machine_config(kernel, cpus, memory_mib);
    boot.config = MachineConfig {
        command_line: product.command_line,
        cpus,
        memory_mib: product.memory_mib,
        max_memory_mib: product.max_memory_mib,
        timer_hz: product.timer_hz,
        ..boot.config
    };
    boot
}

/// What the large machine's boot to mini-init takes of the small one's, in percent, rounded up.
fn growth(boots: &[Boot], results: &[boot::Result]) -> Option<Measurement> {
    let of = |name| {
        let (_, result) = boots.iter().zip(results).find(|(boot, _)| boot.name == name)?;
        Some(result.to_mini_init.total())
    };
    let percent = (of("large")? * 100).div_ceil(of("tuned")?.max(1));
    Some(Measurement::new("large_percent_of_tuned", percent, PERCENT))
}

/// The tuned kernel, by each way to tell it what there is. It has no PCI, and without PCI Linux cannot use ACPI's tables.
const DESCRIPTIONS: [(&str, Description); 2] =
    [("device_tree", Description::DeviceTree), ("command_line", Description::CommandLine)];

/// What of a boot's result is printed: all of it for the product's boot, memory for the small one, for the stock kernel
/// all up to the greeting, and of the others what the kernel took.
fn numbers(name: &str, result: &boot::Result) -> Vec<Measurement> {
    let kernel = result.to_mini_init.l2();
    match name {
        "tuned" => {
            let boot = phases(result);
            let of = |part: fn(&Counts) -> u64| boot.map(|(name, counts)| (name, part(&counts)));
            let (total, entries) = (of(Counts::total), of(|counts| counts.vmruns));
            vec![
                Measurement::new("tuned_kernel_instructions", kernel, INSTRUCTIONS),
                Measurement::new("tuned_entries", result.to_mini_init.vmruns, ENTRIES).of(entries),
                Measurement::new("vmm_user_instructions", result.set_up.l1_user, INSTRUCTIONS),
                Measurement::new("tuned_total_instructions", result.to_mini_init.total(), INSTRUCTIONS),
                Measurement::new("greeting_instructions", result.to_greeting.total(), INSTRUCTIONS).of(total),
                Measurement::new("greeting_entries", result.to_greeting.vmruns, ENTRIES).of(entries),
            ]
        }
        "share" => {
            let (before, all) = (result.set_up, result.to_mini_init);
            let during = all - before;
            let share = [
                ("host's kernel, to the first VM entry", before.l1_kernel),
                ("VMM, to the first VM entry", before.l1_user),
                ("host's kernel, while the guest boots", during.l1_kernel),
                ("VMM, while the guest boots", during.l1_user),
            ];
            let value = all.l1_kernel + all.l1_user;
            vec![
                Measurement::new("vmm_share_instructions", value, INSTRUCTIONS).of(share),
                Measurement::new("vmm_share_entries", all.vmruns, ENTRIES),
            ]
        }
        "small" => vec![Measurement::new("vmm_resident_kib", result.resident_kib, KIB)],
        // Its kernel calls modprobe before mini-init is there, so that the first user instruction says little.
        "stock" => vec![
            Measurement::new("stock_greeting_instructions", result.to_greeting.total(), INSTRUCTIONS),
            Measurement::new("stock_greeting_entries", result.to_greeting.vmruns, ENTRIES),
        ],
        name => vec![
            Measurement::new(format!("{name}_kernel_instructions"), kernel, INSTRUCTIONS),
            Measurement::new(format!("{name}_entries"), result.to_mini_init.vmruns, ENTRIES),
        ],
    }
}

/// A boot's phases, by the event that ends each. With the stock kernel they overlap: its modprobe is the first user program.
fn phases(result: &boot::Result) -> [(&'static str, Counts); 3] {
    [
        ("VMM's execve to the first VM entry", result.set_up),
        ("kernel, to mini-init", result.to_mini_init - result.set_up),
        ("mini-init, to its greeting", result.to_greeting - result.to_mini_init),
    ]
}

/// The parts of a machine's life that have budgets or are good to know.
fn life(result: &scenario::Result) -> Vec<Measurement> {
    let mut measurements = Vec::new();
    for part in &result.parts {
        let name = part.name.replace('-', "_");
        let shares = part.whole.shares().map(|(name, count)| (name.to_owned(), count));
        let total = part.whole.total();
        measurements.push(
            Measurement::new(format!("{name}_instructions"), total, INSTRUCTIONS)
                .of(shares.into_iter().chain(part.steps.iter().cloned())),
        );
        measurements.push(Measurement::new(format!("{name}_entries"), part.whole.vmruns, ENTRIES));
        if let Some(program) = part.program {
            let value = program.total();
            let name = format!("{name}_to_program_instructions");
            measurements.push(Measurement::new(name, value, INSTRUCTIONS).of(program.shares()));
        }
    }
    let values = result.values.iter().filter(|(_, _, unit)| unit == KIB);
    measurements.extend(values.map(|(name, value, _)| Measurement::new(format!("{name}_kib"), *value, KIB)));
    measurements
}

fn size(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len())
}

/// A directory that is left behind when measuring fails: its `console.log` says why.
fn directory() -> anyhow::Result<PathBuf> {
    let path = guest::target().join("ruler").join("work");
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}
