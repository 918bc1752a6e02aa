//! What a distribution writes into its wsl.conf holds when it starts the next time, and what is wrong there is told. What the
//! host's .wslconfig says acts.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use undercroft::LaunchOptions;
use undercroft_harness::{
    outcome::Outcome,
    product::Product,
    vm::{Kernel, boot, guest_test},
};

/// One file with what counts and what does not, a table of file systems, and zones, as a distribution would have them.
const FILES: &str = "
cat > /etc/wsl.conf <<'END'
[network]
hostname = other
generateHosts = false
[user]
default = ada
[filesystem]
umask = 0027
[boot]
command = \"echo $$ > /run/booted # and this\"
[undercroft]
keepAlive = true
[interop]
enabled = false
[wsl2]
memory = 64GB
END
echo 'tmpfs /data tmpfs size=1m,mode=1777 0 0' > /etc/fstab
echo 'nothing /nowhere nonsense defaults 0 0' >> /etc/fstab
echo kept > /etc/hosts
mkdir -p /data /nowhere /home/ada /usr/share/zoneinfo/Mars
echo TZif > /usr/share/zoneinfo/Mars/Olympus
echo 'ada:x:1001:1001::/home/ada:/bin/sh' >> /etc/passwd
";

#[test]
fn a_distributions_own_file_holds() -> Outcome {
    guest_test(|suite| {
        let mut vm = boot(suite, Kernel::Tuned).distro("a", &suite.busybox).start()?;
        let a = vm.distribution("a")?;
        assert_eq!((a.wants_to_live(), a.default_user()), (false, None));
        vm.read("a", FILES)?;
        vm.terminate("a")?;
        vm.machine().warnings();
        vm.options("a", |options: &mut LaunchOptions| options.time_zone = Some("Mars/Olympus".into()))?;
        vm.launch("a")?;

        let a = vm.distribution("a")?;
        assert_eq!((a.wants_to_live(), a.default_user()), (true, Some("ada".into())));
        for (script, expected) in [
            ("hostname", "other"),
            ("id -un", "ada"),
            ("umask", "0027"),
            ("cat /etc/hosts", "kept"),
            ("awk '$2 == \"/data\" { print $3 }' /proc/mounts", "tmpfs"),
            ("touch /data/f && stat -c %a /data/f", "640"),
            ("readlink /etc/localtime", "/usr/share/zoneinfo/Mars/Olympus"),
            ("until test -e /run/booted; do sleep 1; done; test -s /run/booted && echo yes", "yes"),
        ] {
            assert_eq!(vm.read("a", script)?, expected, "{script}");
        }
        let warnings = vm.machine().warnings().join("\n");
        for expected in [
            "/etc/wsl.conf:13: interop.enabled has no meaning here",
            "/etc/wsl.conf:15: `wsl2.memory` is not known",
            "mounting what /etc/fstab lists: ",
        ] {
            assert!(warnings.contains(expected), "{expected:?} is not among\n{warnings}");
        }
        vm.power_off()
    })
}

/// Keys of the machine and of distributions, each seen where it acts: two machines have them all.
#[test]
fn what_the_hosts_file_says_acts() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, "")?;
        let (swap, console) = (one.folder().join("swaps/swap.raw"), one.folder().join("console.txt"));
        fs::create_dir(one.folder().join("swaps"))?;
        let common = format!("[wsl2]\nkernel={}\nmemory=512MB\n", suite.tuned.image.display());
        one.configure(&format!(
            "{common}processors=2\nkernelCommandLine=\"loglevel=6 own.word=here\"\nswap=64MB\nswapFile={}\n\
             debugConsoleLogFile={}\n[experimental]\nautoMemoryReclaim=dropCache\n[undercroft]\nzram=32MB\n\
             [distribution \"a\"]\nkeepAlive=true\n",
            swap.display(),
            console.display()
        ))?;
        for name in ["a", "b"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        let sh = |script: &str| one.sh("a", script);
        let words = sh("cat /proc/cmdline")?;
        assert!(words.ends_with(" loglevel=6 own.word=here"), "{words}");
        // CPUs and swap come while distributions run already.
        one.until("two CPUs", || Ok(sh("nproc")? == "2"))?;
        // Compressed memory before the file: name, kind, KiB, what is used, priority (proc(5), /proc/swaps).
        let swaps = "tail -n +2 /proc/swaps | sort -nrk 5 | awk '{ print $1, $3 }'";
        one.until("two swaps", || Ok(sh(swaps)?.lines().count() == 2))?;
        let swaps: Vec<(String, u64)> = sh(swaps)?
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kib)| (name.to_owned(), kib.parse().unwrap_or(0)))
            .collect();
        // A page of each is its header.
        assert!(swaps[0].0.contains("zram") && swaps[0].1.abs_diff(32 << 10) <= 64, "{swaps:?}");
        assert!(!swaps[1].0.contains("zram") && swaps[1].1.abs_diff(64 << 10) <= 64, "{swaps:?}");
        assert_eq!(fs::metadata(&swap)?.len(), 64 << 20);
        let said = fs::read_to_string(&console)?;
        assert!(said.contains("Linux version") && said.contains("own.word=here"), "{said}");
        assert!(one.say("config reclaim")?.contains("dropCache"));

        // The environment that is named goes along, and nothing else.
        let mut run = one.command(["run", "a", "sh", "-c", "echo $FIRST $SECOND $THIRD"]);
        let named =
            [("FIRST", "one two"), ("SECOND", "/c"), ("THIRD", "no"), ("WSLENV", "FIRST:SECOND/p:LOST")];
        let output = run.envs(named).output()?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "one two /c\n");

        // Who stays, and why.
        one.say("run b true")?;
        let list = one.say("list -v")?;
        let why =
            |name: &str| list.lines().find(|line| line.contains(&format!(" {name} "))).unwrap_or_default();
        assert!(
            why("a").ends_with("it is to be kept alive") && why("b").contains("idle, stops in"),
            "{list}"
        );
        let status = one.say("status")?;
        assert!(!status.contains("Since the service runs"), "{status}");

        // The next service starts one by itself, in a machine without what that one had.
        let service = one.service().map(Pid::from_raw).expect("it runs");
        kill(service, Signal::SIGTERM).map_err(std::io::Error::from)?;
        one.until("the service leaves", || Ok(one.service().is_none()))?;
        one.configure(&format!("{common}processors=1\nswap=0\n[general]\ninstanceIdleTimeout=-1\n[distribution \"b\"]\nautoStart=true\n"))?;
        one.say("list")?;
        one.until("it starts", || Ok(one.state("b")? == "running"))?;
        assert_eq!(one.state("a")?, "stopped");
        let script = "nproc; tail -n +2 /proc/swaps | wc -l; grep -c own.word /proc/cmdline";
        assert_eq!(one.say_words(["exec", "b", "sh", "-c", &format!("{script} || true")])?, "1\n0\n0");
        one.finish()
    })
}
