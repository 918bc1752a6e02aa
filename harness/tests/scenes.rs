//! The scenes of the article that started this project (`notes/scenes.md`), in its order, on real distributions, through the
//! product's command line. Scenes 6 and 7 are those of apt.rs; 9 and 18 are numbers, which benches/budget.toml holds. Two come
//! earlier or later than there, so that nothing is started twice for them: 8 is the third distribution's origin, and 4 has its half
//! with systemd where 13 is.

use std::{io::Write, path::Path, process::Stdio};

use undercroft_harness::{
    oci,
    outcome::{Failure, Outcome},
    product::Product,
    vm::{Kernel, guest_test},
};

const NAMES: [&str; 3] = ["bookworm", "trixie", "busybox"];

/// Nothing is idle for long enough to stop while it is not looked for.
const CONFIGURATION: &str =
    "memory=1GB\nprocessors=1\nswap=256MB\nvmIdleTimeout=-1\n[general]\ninstanceIdleTimeout=-1\n";

/// What a script prints in each.
fn each(one: &Product, script: &str) -> Result<Vec<String>, Failure> {
    NAMES.iter().map(|name| one.sh(name, script)).collect()
}

/// A script that prints the same in each; what that is.
fn equal(one: &Product, script: &str) -> Result<String, Failure> {
    let all = each(one, script)?;
    assert!(!all[0].is_empty() && all.iter().all(|text| *text == all[0]), "{script}: {all:?}");
    Ok(all[0].clone())
}

/// A script that prints something else in each.
fn different(one: &Product, script: &str) -> Outcome {
    let mut all = each(one, script)?;
    all.sort();
    all.dedup();
    assert_eq!(all.len(), NAMES.len(), "{script}: {all:?}");
    Ok(())
}

/// Columns of the memory line of free(1).
const FREE: usize = 3;
const CACHE: usize = 5;
const AVAILABLE: usize = 6;

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
        let version = one.say("--version")?;
        installs(&one, &suite.debian, &suite.debian13, &suite.busybox)?;
        are_their_own(&one, &version)?;
        let configure =
            |text: &str| one.configure(&format!("[wsl2]\nkernel={}\n{text}", suite.tuned.image.display()));
        configure(&CONFIGURATION.replace("instanceIdleTimeout=-1", "instanceIdleTimeout=4000"))?;
        stop_one_after_another(&one)?;
        configure(CONFIGURATION)?;
        shares_memory(&one)?;
        shares_processors(&one)?;
        systemd_is_an_option(&one)?;
        files_stay(&one)?;
        one.say("shutdown")?;
        configure("memory=640MB\nprocessors=1\nswap=0\n")?;
        memory_is_the_machines(&one)?;
        what_is_shared_and_what_is_not(&one)?;
        one.finish()
    })
}

/// Scenes 2 and 8: three distributions of three kinds of source; order and mark.
fn installs(one: &Product, debian: &Path, debian13: &Path, busybox: &Path) -> Outcome {
    let layout = one.folder().join("layout");
    oci::layout(&layout, busybox)?;
    one.say(&format!("import bookworm {}", debian.display()))?;
    one.say(&format!("--install --from-file {} --name trixie", debian13.display()))?;
    one.say(&format!("install oci:{} --name busybox", layout.display()))?;
    let list = one.say("--list")?;
    let lines: Vec<_> = list.lines().skip(1).collect();
    assert_eq!(lines, ["bookworm (Default)", "trixie", "busybox"]);
    Ok(())
}

/// Scenes 1, 3 and 4: their own release, one kernel, and nobody else's processes.
fn are_their_own(one: &Product, version: &str) -> Outcome {
    let release = equal(one, "uname -r")?;
    assert!(version.contains(&format!("Kernel version: {release}")), "{release}: {version}");
    different(one, "cat /etc/os-release")?;
    equal(one, "uname -srvm")?;
    // Without systemd: init, the session's relay, the shell, and ps.
    let processes = one.sh("bookworm", "ps -eo comm=")?;
    assert_eq!(processes.lines().map(str::trim).collect::<Vec<_>>(), ["init", "init", "sh", "ps"]);
    Ok(())
}

/// Scene 5: left alone each stops, and who is used does not.
fn stop_one_after_another(one: &Product) -> Outcome {
    let mut inside = one.command(["run", "trixie", "cat"]).stdin(Stdio::piped()).spawn()?;
    one.until("the two that are left stop, and the third does not", || {
        let list = one.say("--list --verbose")?;
        let states: Vec<_> = list.lines().skip(1).map(|line| line[2..].split_whitespace().nth(1)).collect();
        Ok(states == [Some("Stopped"), Some("Running"), Some("Stopped")])
    })?;
    drop(inside.stdin.take());
    assert!(inside.wait()?.success());
    one.until("the last one stops", || Ok(one.state("trixie")? == "stopped"))
}

/// Scenes 10 and 11.
fn shares_memory(one: &Product) -> Outcome {
    for shared in ["nproc", "grep MemTotal /proc/meminfo"] {
        equal(one, shared)?;
    }
    // It is there some time after the machine.
    const SWAP: &str = "awk '/^SwapTotal/ { print int($2 / 1024) }' /proc/meminfo";
    one.until("there is swap", || Ok(one.sh("busybox", SWAP)? == "255"))?;
    equal(one, SWAP)?;
    let all = |column| NAMES.iter().map(|name| free(one, name, column)).collect::<Result<Vec<_>, _>>();
    // What the commands themselves use, and what goes back to the host meanwhile.
    const LITTLE_KIB: u64 = 16 << 10;
    one.until("they agree on what is free", || {
        let free = all(FREE)?;
        Ok(free.iter().all(|kib| kib.abs_diff(free[0]) < LITTLE_KIB))
    })?;

    // A large file, written and read in one, is in the page cache that all of them see. dd has all of it in its own memory first,
    // and is kept there until the others have looked.
    const FILE_KIB: u64 = 128 << 10;
    let (cache, available) = (all(CACHE)?, all(AVAILABLE)?);
    let script = "{ dd if=/dev/zero bs=128M count=1 iflag=fullblock 2>/dev/null | { read line <&3; cat > testfile; }; } 3<&0";
    let mut dd = one.command(["run", "bookworm", "sh", "-c", script]).stdin(Stdio::piped()).spawn()?;
    one.until("what is available falls in all", || {
        let now = all(AVAILABLE)?;
        Ok(now.iter().zip(&available).all(|(now, before)| now + FILE_KIB * 9 / 10 < *before))
    })?;
    dd.stdin.take().expect("a pipe").write_all(b"go on\n")?;
    assert!(dd.wait()?.success());
    one.sh("bookworm", "cat testfile > /dev/null")?;
    for (name, before) in NAMES.iter().zip(cache) {
        let risen = free(one, name, CACHE)?.saturating_sub(before);
        // The article's own figures: the file, within a twentieth.
        assert!(risen.abs_diff(FILE_KIB) <= FILE_KIB / 20, "buff/cache rose by {risen} KiB in {name}");
    }
    Ok(())
}

/// Scene 12.
fn shares_processors(one: &Product) -> Outcome {
    let busy = |name| -> Result<u64, Failure> {
        Ok(one.sh(name, "awk '/^cpu / {print $2 + $4}' /proc/stat")?.parse().unwrap_or(0))
    };
    let before = busy("busybox")?;
    one.sh("trixie", "timeout 3 sh -c 'while :; do :; done'; true")?;
    assert!(busy("busybox")? >= before + 100);
    // It is counted anew every five seconds: all three may look in between.
    one.until("all see one load", || {
        let all = each(one, "cut -d ' ' -f 1-3 /proc/loadavg")?;
        Ok(!all[0].starts_with("0.00 ") && all.iter().all(|load| *load == all[0]))
    })
}

/// Scene 13, and 4 with systemd.
fn systemd_is_an_option(one: &Product) -> Outcome {
    one.sh("bookworm", "touch -d '2001-02-03 04:05:06' /root/kept; echo synced > /root/synced; sync")?;
    one.sh("bookworm", "printf '[boot]\\nsystemd=true\\ninitTimeout=500000\\n' > /etc/wsl.conf")?;
    one.say("terminate bookworm")?;
    let first = one.sh("bookworm", "ps -o args= -p 1,2; systemctl is-system-running")?;
    assert_eq!(first, "/sbin/init\n/init\nrunning");
    // No thread of the kernel's, and nobody else's process.
    assert_eq!(one.sh("bookworm", "ps -eo comm= | grep -c '^kthreadd' || true")?, "0");
    assert_eq!(one.sh("trixie", "cat /proc/1/comm")?, "init");
    Ok(())
}

/// Scene 14: what was in it before it stopped is in it.
fn files_stay(one: &Product) -> Outcome {
    let script = "stat -c %Y /root/kept; cat /root/synced; stat -c %s testfile; rm /etc/wsl.conf";
    assert_eq!(one.sh("bookworm", script)?, "981173106\nsynced\n134217728");
    Ok(())
}

/// Scene 15.
fn memory_is_the_machines(one: &Product) -> Outcome {
    for name in NAMES {
        // It boots with less, and grows.
        one.until("the machine has its memory", || {
            let mib = one.sh(name, "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo")?;
            Ok((520..=640).contains(&mib.parse::<u64>().unwrap_or(0)))
        })?;
    }
    Ok(())
}

/// Scenes 16, 17 and 19.
fn what_is_shared_and_what_is_not(one: &Product) -> Outcome {
    for shared in ["readlink /proc/self/ns/net", "stat -L -c %d:%i /init"] {
        equal(one, shared)?;
    }
    for own in ["pid", "mnt", "user", "cgroup"] {
        different(one, &format!("readlink /proc/self/ns/{own}"))?;
    }
    // The chain of its boot, and one machine.
    let status = one.status()?;
    let chain = status["vm"]["timeline"].as_str().unwrap_or_default().to_owned();
    assert!(chain.contains("guest") && chain.contains("launch") && chain.contains("init"), "{chain}");
    assert_eq!(one.say("vms")?.lines().count(), 2);
    Ok(())
}
