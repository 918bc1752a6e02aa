//! The scenes of the article that started this project (`notes/scenes.md`), in its order, on real distributions, through the
//! product's command line. Scenes 6 and 7 are those of apt.rs; 9 and 18 are numbers, which benches/budget.toml holds.

use undercroft_harness::{
    oci,
    outcome::{Failure, Outcome},
    product::Product,
    vm::{Kernel, guest_test},
};

const NAMES: [&str; 3] = ["bookworm", "trixie", "busybox"];

/// Idle times that a lab's own slowness does not reach, and that a test can wait for.
const CONFIGURATION: &str =
    "memory=1GB\nprocessors=1\nswap=0\nvmIdleTimeout=20000\n[general]\ninstanceIdleTimeout=20000\n";

/// What a script prints in each.
fn each(one: &Product, script: &str) -> Result<Vec<String>, Failure> {
    NAMES.iter().map(|name| one.sh(name, script)).collect()
}

/// A column of the memory line of free(1) in KiB.
fn free(one: &Product, name: &str, column: usize) -> Result<u64, Failure> {
    let text = one.sh(name, "free -k | awk '/^Mem:/'")?;
    let number = text.split_whitespace().nth(column).and_then(|word| word.parse().ok());
    number.ok_or_else(|| Failure::Harness(format!("{text:?} has no column {column}")))
}

#[test]
fn in_their_order() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, CONFIGURATION)?;
        installs(&one, &suite.debian, &suite.debian13, &suite.busybox)?;
        shares(&one)?;
        stops_and_returns(&one)?;
        systemd_is_an_option(&one)?;
        memory_is_the_machines(&one, &suite.tuned.image)?;
        one.finish()
    })
}

/// Scenes 2, 8 and 1: three distributions of three kinds of source; order, mark, versions.
fn installs(
    one: &Product,
    debian: &std::path::Path,
    debian13: &std::path::Path,
    busybox: &std::path::Path,
) -> Outcome {
    let layout = one.folder().join("layout");
    oci::layout(&layout, busybox)?;
    one.say(&format!("import bookworm {}", debian.display()))?;
    one.say(&format!("--install --from-file {} --name trixie", debian13.display()))?;
    one.say(&format!("install oci:{} --name busybox", layout.display()))?;
    let list = one.say("--list")?;
    let lines: Vec<_> = list.lines().skip(1).collect();
    assert_eq!(lines, ["bookworm (Default)", "trixie", "busybox"]);
    let version = one.say("--version")?;
    for release in each(one, "uname -r")? {
        assert!(version.contains(&format!("Kernel version: {release}")), "{release}: {version}");
    }
    Ok(())
}

/// Scenes 3, 4, 10, 11, 12, 16, 17 and 19.
fn shares(one: &Product) -> Outcome {
    let equal = |script: &str| -> Outcome {
        let all = each(one, script)?;
        assert!(!all[0].is_empty() && all.iter().all(|text| *text == all[0]), "{script}: {all:?}");
        Ok(())
    };
    let different = |script: &str| -> Outcome {
        let mut all = each(one, script)?;
        all.sort();
        all.dedup();
        assert_eq!(all.len(), NAMES.len(), "{script}: {all:?}");
        Ok(())
    };
    equal("uname -srvm")?;
    different("cat /etc/os-release")?;
    for shared in
        ["readlink /proc/self/ns/net", "stat -L -c %d:%i /init", "nproc", "grep MemTotal /proc/meminfo"]
    {
        equal(shared)?;
    }
    for own in ["pid", "mnt", "user", "cgroup"] {
        different(&format!("readlink /proc/self/ns/{own}"))?;
    }
    // Without systemd: init, the session's relay, the shell, and ps.
    let processes = one.sh("bookworm", "ps -eo comm=")?;
    assert_eq!(processes.lines().map(str::trim).collect::<Vec<_>>(), ["init", "init", "sh", "ps"]);

    // A large file, written and read in one, is in the page cache that all of them see.
    const FILE_KIB: u64 = 128 << 10;
    const CACHE: usize = 5;
    let before = NAMES.iter().map(|name| free(one, name, CACHE)).collect::<Result<Vec<_>, _>>()?;
    one.sh("bookworm", "dd if=/dev/zero of=testfile bs=1M count=128 2>/dev/null; cat testfile > /dev/null")?;
    for (name, before) in NAMES.iter().zip(before) {
        let risen = free(one, name, CACHE)?.saturating_sub(before);
        // The article's own figures: the file, within a twentieth.
        assert!(risen.abs_diff(FILE_KIB) <= FILE_KIB / 20, "buff/cache rose by {risen} KiB in {name}");
    }
    let busy = |name| -> Result<u64, Failure> {
        Ok(one.sh(name, "awk '/^cpu / {print $2 + $4}' /proc/stat")?.parse().unwrap_or(0))
    };
    let before = busy("busybox")?;
    one.sh("trixie", "timeout 3 sh -c 'while :; do :; done'; true")?;
    assert!(busy("busybox")? >= before + 100);

    // One machine, and the chain of its boot.
    assert_eq!(one.say("vms")?.lines().count(), 2);
    let status = one.status()?;
    let chain = status["vm"]["timeline"].as_str().unwrap_or_default().to_owned();
    assert!(chain.contains("guest") && chain.contains("launch") && chain.contains("init"), "{chain}");
    Ok(())
}

/// Scenes 5, 14 and 7 as far as files go: left alone they stop, and what was in them stays.
fn stops_and_returns(one: &Product) -> Outcome {
    one.sh("bookworm", "touch -d '2001-02-03 04:05:06' /root/kept; sync")?;
    assert!(one.say("--list --verbose")?.contains("Running"));
    one.until("all of them stop", || Ok(!one.say("--list --verbose")?.contains("Running")))?;
    assert_eq!(one.sh("bookworm", "stat -c %Y /root/kept; stat -c %s testfile")?, "981173106\n134217728");
    Ok(())
}

/// Scene 13 and 4 with systemd.
fn systemd_is_an_option(one: &Product) -> Outcome {
    one.sh("bookworm", "printf '[boot]\\nsystemd=true\\ninitTimeout=500000\\n' > /etc/wsl.conf")?;
    one.say("terminate bookworm")?;
    let first = one.sh("bookworm", "ps -o args= -p 1,2; systemctl is-system-running")?;
    assert_eq!(first, "/sbin/init\n/init\nrunning");
    // No thread of the kernel's, and nobody else's process.
    assert_eq!(one.sh("bookworm", "ps -eo comm= | grep -c '^kthreadd' || true")?, "0");
    assert_eq!(one.sh("trixie", "cat /proc/1/comm")?, "init");
    Ok(())
}

/// Scene 15.
fn memory_is_the_machines(one: &Product, kernel: &std::path::Path) -> Outcome {
    one.say("shutdown")?;
    one.configure(&format!("[wsl2]\nkernel={}\nmemory=640MB\nprocessors=1\nswap=0\n", kernel.display()))?;
    for name in ["trixie", "busybox"] {
        // It boots with less, and grows.
        one.until("the machine has its memory", || {
            let mib = one.sh(name, "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo")?;
            Ok((520..=640).contains(&mib.parse::<u64>().unwrap_or(0)))
        })?;
    }
    Ok(())
}
