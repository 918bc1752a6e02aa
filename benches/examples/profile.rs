//! Where the two kernels spend their instructions, by function.
//!
//!     cargo run -p undercroft-benches --example profile -- VMLINUX boot [device-tree | command-line | acpi]
//!     cargo run -p undercroft-benches --example profile -- VMLINUX share
//!     cargo run -p undercroft-benches --example profile -- VMLINUX launch [flat | layered]
//!
//! `boot`: the product's, to mini-init. `share`: the boot that `vmm_share_instructions` counts; first what comes before the
//! first VM entry, then all to `/init`. Anything else is a part of the scenario's, the last of that name. The names of the
//! host's kernel's functions are asked of the ruler's machine once, which takes a minute, and kept in
//! `target/ruler-symbols`.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use undercroft_benches::{
    archive::Archive,
    boot::{self, Boot},
    machine::Machine,
    peers::monitors,
    scenario::{self, Scenario},
    tools,
};
use undercroft_harness::guest;
use undercroft_kernel_config::{Kernel, initramfs};

/// Functions that are printed of each kernel.
const TOP: usize = 70;
const BUSYBOX: &str = "/bin/busybox";
/// The ruler's machine's functions: its console is slow, so they are packed.
const SYMBOLS: &str =
    "echo SYMBOLS; grep -i ' [tw] ' /proc/kallsyms | cut -d' ' -f1-3 | gzip | base64; echo END";

type Functions = BTreeMap<u64, String>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, what, more @ ..] = &arguments[..] else {
        return Err("expected: VMLINUX boot|share|PART …".into());
    };
    let kernel = undercroft_kernel_config::given(Path::new(kernel))?;
    let work = guest::target().join("ruler-profile");
    fs::create_dir_all(&work)?;
    let mut machine = tools::machine()?;
    let functions = [host_functions(&machine, &work)?, of_vmlinux(&kernel.image)?];
    let profile = work.join("profile");
    machine.profile = Some(profile.clone());
    let beside = |ending: &str| PathBuf::from(format!("{}{ending}", profile.display()));
    match what.as_str() {
        "boot" => {
            let mut boot = Boot::new("profiled", &kernel, &image(&kernel, &work)?, 512);
            boot.counted = 1;
            if let Some(description) = more.first() {
                boot.config.description = serde_json::from_value(description.as_str().into())?;
            }
            boot::measure(&machine, &tools::vmm()?, &[boot], &work)?;
            print("to mini-init", &profile, &functions)
        }
        "share" => {
            let image = work.join("alone.cpio");
            monitors::initramfs(&image)?;
            let boot = Boot::alone("share", &kernel, &image, monitors::MEMORY_MIB, true);
            boot::measure(&machine, &tools::vmm()?, &[Boot { counted: 1, ..boot }], &work)?;
            print("to the first VM entry", &beside(".entry"), &functions)?;
            print("to /init", &profile, &functions)
        }
        part => {
            let scenario = Scenario {
                vmm: tools::vmm()?,
                program: tools::scenario()?,
                initramfs: image(&kernel, &work)?,
                kernel,
                memory_mib: 512,
                root: serde_json::from_value(more.first().map_or("layered", |root| root).into())?,
                own_users: true,
                idle: 0,
                contents: scenario::Contents::Busybox,
            };
            let result = scenario::measure(&machine, &scenario, &work)?;
            let number = result.order.iter().rposition(|name| name == part).ok_or("there is no such part")?;
            print(part, &beside(&format!(".span-{number}")), &functions)
        }
    }
}

fn image(kernel: &Kernel, work: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let guest = guest::build()?;
    let image = work.join("guest.cpio");
    initramfs::build(&guest.mini_init, &guest.init, &kernel.initramfs_modules, &image)?;
    Ok(image)
}

/// The functions of the ruler's machine's kernel and modules, which lie at the same addresses each time.
fn host_functions(machine: &Machine, work: &Path) -> Result<Functions, Box<dyn Error>> {
    let kept = guest::target().join("ruler-symbols");
    if let Ok(text) = fs::read_to_string(&kept) {
        return Ok(functions(&text));
    }
    let mut archive = Archive::default();
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    let script = format!("{BUSYBOX} --install -s /bin; export PATH=/bin; {SYMBOLS}");
    let program = [BUSYBOX, "sh", "-c", &script].map(String::from).into();
    let console = machine.clocked(archive, "symbols", program, work)?;
    let lines = console.lines().map(str::trim_end).skip_while(|line| *line != "SYMBOLS").skip(1);
    let packed: Vec<&str> = lines.take_while(|line| *line != "END").collect();
    let text =
        duct::cmd!("base64", "-d").stdin_bytes(packed.join("\n")).pipe(duct::cmd!("gunzip", "-c")).read()?;
    fs::write(&kept, &text)?;
    Ok(functions(&text))
}

/// A tuned kernel has its symbols beside it.
fn of_vmlinux(vmlinux: &Path) -> Result<Functions, Box<dyn Error>> {
    match fs::read_to_string(vmlinux.with_file_name("System.map")) {
        Ok(map) => Ok(functions(&map)),
        Err(_) => Ok(functions(&duct::cmd!("nm", "--defined-only", vmlinux).read()?)),
    }
}

/// Functions by their addresses, from lines of nm(1) or of /proc/kallsyms.
fn functions(text: &str) -> Functions {
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
    };
    text.lines().filter_map(symbol).collect()
}

fn print(what: &str, profile: &Path, functions: &[Functions; 2]) -> Result<(), Box<dyn Error>> {
    let profile = fs::read_to_string(profile)?;
    for (level, name) in [("1", "host's kernel"), ("2", "guest's kernel")] {
        let sums = by_function(&profile, level, &functions[usize::from(level == "2")]);
        println!("{what}, {name}: {}", sums.iter().map(|(_, sum)| sum).sum::<u64>());
        for (name, count) in sums.iter().take(TOP) {
            println!("{count:>10} {name}");
        }
    }
    Ok(())
}

fn by_function(profile: &str, level: &str, functions: &Functions) -> Vec<(String, u64)> {
    let mut sums = BTreeMap::<&str, u64>::new();
    for line in profile.lines() {
        let mut words = line.split(' ');
        let (Some(of), Some(address), Some(count)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if of == level {
            let address = u64::from_str_radix(address, 16).unwrap_or_default();
            let name = functions.range(..=address).next_back().map_or("(entry code)", |(_, name)| name);
            *sums.entry(name).or_default() += count.parse::<u64>().unwrap_or_default();
        }
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().map(|(name, sum)| (name.to_owned(), sum)).collect();
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    sums
}
