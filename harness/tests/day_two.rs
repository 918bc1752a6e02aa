//! The product's second day: what people do with distributions that they have, by its own verbs and by those of the program called
//! `wsl`.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use undercroft_harness::{
    outcome::{Failure, Outcome},
    product::Product,
    vm::{Kernel, guest_test},
};

/// A small machine that nobody is idle in for long.
const SHORT: &str =
    "memory=512MB\nprocessors=1\nswap=0\ndefaultVhdSize=1GB\n[general]\ninstanceIdleTimeout=3000\n";
/// The same, and times that no test comes to.
const QUIET: &str =
    "memory=512MB\nprocessors=1\nswap=0\ndefaultVhdSize=1GB\n[general]\ninstanceIdleTimeout=-1\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// That a line is refused as a mistake of undercroft's own; what it says then.
fn refused(one: &Product, line: &str) -> Result<String, Failure> {
    let output = one.try_say(line)?;
    assert_eq!(output.status.code(), Some(125), "{line}: {output:?}");
    Ok(text(&output.stderr))
}

/// One of `list --json`.
fn listed(one: &Product, name: &str) -> Result<Value, Failure> {
    let all: Value = serde_json::from_str(&one.say("list --json")?)
        .map_err(|error| Failure::Failed(format!("list --json: {error}")))?;
    let found = all.as_array().into_iter().flatten().find(|one| one["name"] == name);
    Ok(found.cloned().unwrap_or_default())
}

/// Two distributions of one archive.
fn two(one: &Product, archive: &Path) -> Outcome {
    one.say(&format!("import first {}", archive.display()))?;
    // The older one is the default, and how old it is is known by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    one.say(&format!("import second {}", archive.display()))?;
    Ok(())
}

/// Called otherwise, kept, somebody else's: what is set for a distribution stays with it.
#[test]
fn what_is_set_for_one_stays_set() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, SHORT)?;
        let asked = one.say("config --json wsl2.memory")?;
        assert!(asked.contains("\"512MB\"") && asked.contains(".wslconfig:3\""), "{asked}");
        let table = one.say("config idle")?;
        assert!(table.contains("general.instanceIdleTimeout") && !table.contains("memory"), "{table}");
        two(&one, &suite.busybox)?;

        // Who it is whose sessions are nobody's in particular.
        one.say("set-default-user first user")?;
        assert_eq!(one.say("run first id -un")?, "user");
        assert_eq!(one.say("run --user root first id -un")?, "root");
        let error = refused(&one, "set-default-user first nobody-of-this-name")?;
        assert!(error.contains("nobody-of-this-name: no such user"), "{error}");
        one.say("set-default-user second 1000")?;
        assert_eq!(one.say("run second id -un")?, "user");
        one.say("set-default-user second root")?;

        // One stays, the other one does not, and why is told.
        one.say("keep-alive first")?;
        one.say("run first true")?;
        let why = listed(&one, "first")?["why"].clone();
        assert_eq!(why, "it is to be kept alive");
        assert!(one.say("list -v")?.lines().any(|line| line.ends_with("it is to be kept alive")));
        one.until("the other one stops", || Ok(one.state("second")? == "stopped"))?;
        let (first, second) = (listed(&one, "first")?, listed(&one, "second")?);
        assert_eq!((&first["state"], &first["default"]), (&"running".into(), &true.into()));
        assert_eq!((&second["state"], &second["default"]), (&"stopped".into(), &false.into()));
        assert_eq!((&second["sessions"], &second["why"]), (&0.into(), &"".into()));

        // In what runs a command runs; what has stopped is not started for it.
        assert_eq!(one.say("exec first hostname")?, "first");
        assert_eq!(one.say("exec --user root --cd /etc first pwd")?, "/etc");
        assert_eq!(one.try_say("exec first false")?.status.code(), Some(1));
        let error = refused(&one, "exec second true")?;
        assert!(error.contains("second"), "{error}");
        assert_eq!(one.state("second")?, "stopped");

        // It runs, and is called otherwise: it keeps what is in it and what is set for it, and is the default one as before.
        one.sh("first", "echo stays > ~/kept; sync")?;
        assert!(refused(&one, "rename first SECOND")?.contains("SECOND"));
        one.say("rename first third")?;
        assert_eq!(one.say("list -q")?, "third\nsecond");
        assert_eq!(listed(&one, "third")?["default"], true);
        assert_eq!(one.sh("third", "hostname; id -un; cat ~/kept")?, "third\nuser\nstays");
        assert!(refused(&one, "run first true")?.contains("first"));
        one.say("rename third Third")?;
        assert_eq!(one.say("list -q")?, "Third\nsecond");
        // A name is free again at once.
        one.say("rename second first")?;
        one.say("set-default first")?;
        assert_eq!(one.say("list -q")?, "first\nThird");
        assert_eq!(one.say("-e hostname")?, "first");

        // A machine later it is kept as before; until it is not.
        one.say("shutdown")?;
        one.say("run Third true")?;
        assert_eq!(listed(&one, "Third")?["why"], "it is to be kept alive");
        one.say("keep-alive Third off")?;
        one.until("it stops", || Ok(one.state("Third")? == "stopped"))?;
        one.finish()
    })
}

/// As an archive of any kind, as a stream, as an image: what comes in again goes out the same.
#[test]
fn what_goes_out_comes_in() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        let at = |name: &str| one.folder().join(name);
        one.say(&format!("import first {}", suite.busybox.display()))?;
        one.sh("first", "echo mine > /root/mine; chown 7:8 /root/mine; rm /usr/bin/env")?;
        let out = |name: &str, file: &str| -> Result<Vec<u8>, Failure> {
            one.say(&format!("export {name} {}", at(file).display()))?;
            Ok(fs::read(at(file))?)
        };
        let plain = out("first", "first.tar")?;
        let piped = one.command(["export", "first", "-"]).output()?;
        assert!(piped.status.success() && piped.stdout == plain, "{}", text(&piped.stderr));
        let (status, screen) = one.at_a_terminal("export first -")?.end()?;
        assert_eq!(status.code(), Some(125), "{screen}");

        // By the file's name, or as somebody says; gzip (RFC 1952, 2.3.1) and zstd (RFC 8878, 3.1.1) begin so.
        for (file, magic) in
            [("first.tar.gz", &[0x1f, 0x8b][..]), ("first.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd])]
        {
            let packed = out("first", file)?;
            assert!(packed.starts_with(magic) && packed.len() < plain.len(), "{file}");
            one.say(&format!("import again {}", at(file).display()))?;
            assert!(out("again", "again.tar")? == plain, "{file} is another one's");
            one.say("unregister again")?;
            fs::remove_file(at("again.tar"))?;
        }
        let format = one.command(["export", "first", "-", "--format", "tar.gz"]).output()?;
        assert!(format.stdout.starts_with(&[0x1f, 0x8b]), "{}", text(&format.stderr));

        // An image is a distribution where it stands, and stays there when that goes.
        one.say(&format!("export first {}", at("first.img").display()))?;
        assert!(refused(&one, &format!("import-in-place x {}", at("first.tar").display()))?.contains("ext4"));
        one.say(&format!("import-in-place image {}", at("first.img").display()))?;
        assert!(out("image", "image.tar")? == plain, "the image is another one's");
        let owned = refused(&one, &format!("import-in-place y {}", at("first.img").display()))?;
        assert!(owned.contains("image"), "{owned}");
        assert_eq!(
            one.sh("image", "cat /root/mine; stat -c %u:%g /root/mine; hostname")?,
            "mine\n7:8\nimage"
        );
        one.sh("image", "echo more > /root/more; sync")?;
        one.say("unregister image")?;
        one.say(&format!("import-in-place back {}", at("first.img").display()))?;
        assert_eq!(one.sh("back", "cat /root/more")?, "more");
        one.finish()
    })
}

/// At once means that no program is asked, whatever it would do.
#[test]
fn by_force() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        two(&one, &suite.busybox)?;
        let stubborn = |name: &str| -> Result<_, Failure> {
            let script = "trap '' TERM HUP INT; echo begins; while :; do sleep 1000; done";
            let mut child = one.command(["run", name, "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line)?;
            assert_eq!(line, "begins\n");
            Ok(child)
        };
        one.sh("first", "echo synced > /kept; sync")?;
        let machine = one.status()?["vm"]["pid"].clone();
        let (mut first, mut second) = (stubborn("first")?, stubborn("second")?);
        one.say("terminate --force first")?;
        assert!(!first.wait()?.success());
        // Nobody else had a part in it.
        assert_eq!((one.state("first")?, one.state("second")?), ("stopped".into(), "running".into()));
        assert_eq!(listed(&one, "second")?["sessions"], 1);
        assert_eq!(one.status()?["vm"]["pid"], machine);
        assert_eq!(one.sh("first", "cat /kept")?, "synced");
        // One that does not run is stopped already.
        one.say("terminate first")?;
        one.say("terminate --force first")?;

        one.say("shutdown --force")?;
        assert!(!second.wait()?.success());
        assert_eq!(one.say("vms")?, "no virtual machine runs");
        assert_eq!((one.state("first")?, one.state("second")?), ("stopped".into(), "stopped".into()));
        assert_eq!(one.sh("first", "cat /kept")?, "synced");
        one.finish()
    })
}

/// The program called `wsl` with a line of words.
fn wsl(one: &Product, line: &str) -> Result<Output, Failure> {
    Ok(one.wsl(line.split_whitespace())?.output()?)
}

/// What it prints, when it must succeed.
fn says(one: &Product, line: &str) -> Result<String, Failure> {
    let output = wsl(one, line)?;
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(one.failure(&format!("wsl {line}: {}: {}", output.status, text(&output.stderr))))
}

/// Its status.
fn status(one: &Product, line: &str) -> Result<Option<i32>, Failure> {
    Ok(wsl(one, line)?.status.code())
}

/// The whole grammar of those who know nothing of undercroft.
#[test]
fn by_the_name_of_wsl() -> Outcome {
    guest_test(|suite| {
        let one = Product::new(suite, Kernel::Tuned, QUIET)?;
        let at = |name: &str| one.folder().join(name).display().to_string();
        let busybox = suite.busybox.display().to_string();

        // There is nothing yet; and our own verbs are nothing here.
        assert_eq!(status(&one, "--list")?, Some(1));
        for mistake in ["--lost", "-d", "-d nobody -- true", "--shutdown now", "--mount /dev/sda", "version"]
        {
            assert_eq!(status(&one, mistake)?, Some(255), "{mistake}");
        }
        assert!(says(&one, "--help")?.starts_with("Usage: wsl"));
        assert!(says(&one, "--version")?.contains("Kernel version: "));

        says(&one, &format!("--import first {} {busybox}", at("disks")))?;
        let piped = one
            .wsl(["--import", "second", &at("disks"), "-", "--version", "2"])?
            .stdin(File::open(&suite.busybox)?)
            .output()?;
        assert!(piped.status.success(), "{}", text(&piped.stderr));
        assert!(one.folder().join("disks/second.ext4").is_file());
        assert_eq!(says(&one, "-l -q")?, "first\nsecond");
        assert_eq!(says(&one, "--list")?.lines().skip(1).collect::<Vec<_>>(), ["first (Default)", "second"]);

        // With the user's shell and without; the status is the command's.
        assert_eq!(says(&one, "-d second -- hostname")?, "second");
        assert_eq!(says(&one, "echo $HOME")?, "/root");
        assert_eq!(says(&one, "--exec echo $HOME")?, "$HOME");
        assert_eq!(says(&one, "--shell-type none echo $HOME")?, "$HOME");
        assert_eq!(says(&one, "--shell-type standard echo $0")?, "sh");
        assert_eq!(says(&one, "--shell-type login echo $0")?, "-sh");
        assert_eq!(says(&one, "-u user --cd /etc echo $(id -un) $(pwd)")?, "user /etc");
        assert_eq!(status(&one, "-d first -- exit 7")?, Some(7));
        assert_eq!(status(&one, "-e nothing-of-this-name")?, Some(127));
        assert_eq!(one.wsl(["-e", "sh", "-c", "kill -9 $$"])?.status()?.code(), Some(137));

        let columns = |line: &str| -> Result<Vec<Vec<String>>, Failure> {
            let text = says(&one, line)?;
            Ok(text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
        };
        says(&one, "--set-default second")?;
        assert_eq!(says(&one, "hostname")?, "second");
        says(&one, "--terminate first")?;
        assert_eq!(
            columns("--list --verbose")?,
            [&["NAME", "STATE", "VERSION"][..], &["*", "second", "Running", "2"], &["first", "Stopped", "2"]]
        );
        assert_eq!(says(&one, "--list --running --quiet")?, "second");

        // What can be changed of one that is there.
        says(&one, "--manage first --set-default-user user")?;
        assert_eq!(says(&one, "-d first id -un")?, "user");
        says(&one, "--manage first --resize 2GB")?;
        assert_eq!(fs::metadata(one.folder().join("disks/first.ext4"))?.size(), 2 << 30);
        says(&one, &format!("--manage first --move {}", at("elsewhere")))?;
        assert!(one.folder().join("elsewhere/first.ext4").is_file());
        assert!(!one.folder().join("disks/first.ext4").exists());
        let blocks = one.wsl(["-d", "first", "-u", "root", "-e", "df", "-m", "/"])?.output()?;
        let blocks = text(&blocks.stdout);
        let size = blocks.lines().last().and_then(|line| line.split_whitespace().rev().nth(4));
        assert!(size.and_then(|size| size.parse::<u64>().ok()).is_some_and(|mib| mib > 1500), "{blocks}");
        for (sparse, expected) in [(true, 0), (false, 255)] {
            assert_eq!(status(&one, &format!("--manage first --set-sparse {sparse}"))?, Some(expected));
        }

        // Out and in, and away.
        one.wsl(["-d", "first", "-u", "root", "echo went out > /kept"])?.status()?;
        says(&one, &format!("--export first {}", at("first.tar")))?;
        let packed = wsl(&one, "--export first - --format tar.gz")?;
        assert!(packed.stdout.starts_with(&[0x1f, 0x8b]), "{}", text(&packed.stderr));
        says(&one, &format!("--import third {} {}", at("disks"), at("first.tar")))?;
        assert_eq!(says(&one, "-d third cat /kept")?, "went out");
        says(&one, &format!("--export first {} --vhd", at("first.vhd")))?;
        says(&one, &format!("--import copy {} {} --vhd", at("disks"), at("first.vhd")))?;
        assert_eq!(says(&one, "-d copy cat /kept")?, "went out");
        says(&one, "--unregister copy")?;
        says(&one, &format!("--import-in-place fourth {}", at("first.vhd")))?;
        assert_eq!(says(&one, "-d fourth cat /kept")?, "went out");
        says(&one, "--unregister second")?;
        assert_eq!(status(&one, "--unregister second")?, Some(255));
        assert!(!one.folder().join("disks/second.ext4").exists());
        let mut left: Vec<_> = says(&one, "--list --quiet")?.lines().map(str::to_owned).collect();
        left.sort();
        assert_eq!(left, ["first", "fourth", "third"]);

        assert_eq!(says(&one, "--status")?, "Default Distribution: first\nDefault Version: 2");
        says(&one, "--shutdown")?;
        assert_eq!(status(&one, "--list --running")?, Some(1));
        one.finish()
    })
}
