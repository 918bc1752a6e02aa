//! Where a guest's kernel spends its instructions on the way to mini-init, by function.
//!
//!     cargo run -p undercroft-benches --example profile -- VMLINUX INITRAMFS [device-tree | command-line | acpi]

use std::{collections::BTreeMap, error::Error, fs, path::Path};

use undercroft_benches::{
    boot::{self, Boot},
    tools,
};

/// Functions that are printed.
const TOP: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, more @ ..] = &arguments[..] else {
        return Err("expected: VMLINUX INITRAMFS".into());
    };
    let kernel = undercroft_kernel_config::given(Path::new(kernel))?;
    let mut boot = Boot::new("profiled", &kernel, Path::new(initramfs), 512);
    boot.counted = 1;
    if let Some(description) = more.first() {
        boot.config.description = serde_json::from_value(description.as_str().into())?;
    }
    let work = tempfile::tempdir()?;
    let mut machine = tools::machine()?;
    let profile = work.path().join("profile");
    machine.profile = Some(profile.clone());
    boot::measure(&machine, &tools::vmm()?, &[boot], work.path())?;
    for (name, count) in
        by_function(&fs::read_to_string(profile)?, &functions(&kernel.image)?).iter().take(TOP)
    {
        println!("{count:>10} {name}");
    }
    Ok(())
}

/// The functions of a vmlinux by their addresses.
fn functions(vmlinux: &Path) -> Result<BTreeMap<u64, String>, Box<dyn Error>> {
    let text = duct::cmd!("nm", "--defined-only", vmlinux).read()?;
    let symbol = |line: &str| {
        let mut words = line.split(' ');
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
    };
    Ok(text.lines().filter_map(symbol).collect())
}

fn by_function(profile: &str, functions: &BTreeMap<u64, String>) -> Vec<(String, u64)> {
    let mut sums = BTreeMap::<&str, u64>::new();
    for line in profile.lines() {
        let Some((address, count)) = line.split_once(' ') else { continue };
        let address = u64::from_str_radix(address, 16).unwrap_or_default();
        let name = functions.range(..=address).next_back().map_or("(entry code)", |(_, name)| name);
        *sums.entry(name).or_default() += count.parse::<u64>().unwrap_or_default();
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().map(|(name, sum)| (name.to_owned(), sum)).collect();
    sums.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    sums
}
