//! Folders of the host's in distributions: whose files they are, what can be done with them, and what a lost server costs.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use rstest::rstest;
use undercroft::{FolderOptions, SharedFolder, Store, error::chain};
use undercroft_harness::{
    outcome::{Failure, Outcome},
    product::Product,
    vm::{Kernel, boot, guest_test},
};

const MACHINE: &str = "memory=512MB\nprocessors=1\nswap=0\n";

/// A folder with a file, a program and something large.
fn fill(folder: &Path) -> Outcome {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("from-host"), "hello\n")?;
    fs::write(folder.join("run"), "#!/bin/sh\necho ran as $(id -u)\n")?;
    fs::set_permissions(folder.join("run"), fs::Permissions::from_mode(0o755))?;
    let large: Vec<u8> = (0..24_u32 << 20).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    fs::write(folder.join("large"), large)?;
    Ok(())
}

fn sum(path: &Path) -> Result<String, Failure> {
    let output = Command::new("sha256sum").arg(path).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

/// The servers of a product's folders.
fn servers(one: &Product) -> Result<Vec<String>, Failure> {
    let service = one.service().ok_or_else(|| Failure::Failed("there is no service".into()))?;
    let output = Command::new("pgrep").args(["-P", &service.to_string(), "virtiofsd"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

#[test]
fn folders_by_configuration() -> Outcome {
    guest_test(|suite| {
        let home = tempfile::Builder::new().prefix("shared-").tempdir()?;
        let (src, fixed) = (home.path().join("src"), home.path().join("fixed"));
        fill(&src)?;
        fill(&fixed)?;
        let (at, to) = (src.display(), fixed.display());
        let mounts = format!(
            "{MACHINE}[distribution \"a\"]\nmount={at}:/mnt/src\nmount={to}:/fixed:ro\nmount=/nonexistent:/x\n"
        );
        let one = Product::new(suite, Kernel::Tuned, &mounts)?;
        for name in ["a", "b", "c"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        let sh = |script: &str| one.sh("a", script);

        // From the host, as the first person's.
        assert_eq!(sh("cat /mnt/src/from-host")?, "hello");
        assert_eq!(sh("stat -c %u:%g /mnt/src/from-host /mnt/src")?, "1000:1000\n1000:1000");
        assert_eq!(sh("/mnt/src/run")?, "ran as 0");
        assert_eq!(one.say("run --user 1000 a /mnt/src/run")?, "ran as 1000");
        let large = sh("sha256sum < /mnt/src/large")?;
        assert_eq!(large.split(' ').next(), Some(sum(&src.join("large"))?.as_str()));
        // To the host, as its user's, whoever it was.
        sh("echo root > /mnt/src/by-root; chown 7:7 /mnt/src/by-root; mkdir -p /mnt/src/d/e")?;
        one.say_words(["run", "--user", "1000", "a", "/bin/sh", "-c", "echo person > /mnt/src/by-person"])?;
        sh("cp /mnt/src/large /mnt/src/copy; mv /mnt/src/copy /mnt/src/d/e/; ln -s by-root /mnt/src/link")?;
        let user = nix::unistd::geteuid().as_raw();
        for (name, text) in [("by-root", "root\n"), ("by-person", "person\n"), ("link", "root\n")] {
            assert_eq!(fs::read_to_string(src.join(name))?, text);
            assert_eq!(fs::metadata(src.join(name))?.uid(), user, "{name}");
        }
        assert_eq!(sum(&src.join("d/e/copy"))?, sum(&src.join("large"))?);
        // What the host changes is seen a second later at the latest.
        fs::write(src.join("from-host"), "changed\n")?;
        one.until("the change is seen", || Ok(sh("cat /mnt/src/from-host")? == "changed"))?;

        // Nothing can be written where it may only be read, and no mount of root's changes that.
        assert_eq!(sh("cat /fixed/from-host")?, "hello");
        let write = "echo x > /fixed/from-host";
        assert_eq!(one.command(["run", "a", "sh", "-c", write]).status()?.code(), Some(1));
        let again = format!("mount -o remount,rw /fixed; {write}");
        assert_ne!(one.command(["run", "a", "sh", "-c", &again]).status()?.code(), Some(0));
        assert_eq!(fs::read_to_string(fixed.join("from-host"))?, "hello\n");

        // Nobody else has them; what is not there is told with its line.
        assert_eq!(one.sh("b", "test -e /mnt/src || test -e /fixed || echo nothing")?, "nothing");
        let status = one.say("status")?;
        for wanted in [
            format!("folder: /mnt/src in a is {at}\n"),
            format!("folder: /fixed in a is {to}, read-only\n"),
            ".wslconfig:9: /nonexistent is not shared: No such file".into(),
        ] {
            assert!(status.contains(&wanted), "{wanted:?} is not in\n{status}");
        }

        // A server that is killed while it works: who waits for it is told, and all else goes on.
        let before = servers(&one)?;
        assert_eq!(before.len(), 2, "{before:?}");
        let mut reader = one
            .command(["run", "a", "sh", "-c", "while cat /mnt/src/large > /dev/null; do :; done 2>/dev/null"])
            .spawn()?;
        Command::new("kill").arg("-9").args(&before).status()?;
        assert!(reader.wait()?.success(), "what read from it has ended by itself");
        let lost = one.try_say("run a cat /mnt/src/from-host")?;
        let error = String::from_utf8_lossy(&lost.stderr).into_owned();
        assert!(lost.status.code() == Some(1) && error.contains("not connected"), "{error}");
        let status = one.say("status")?;
        assert!(status.contains("it is gone until a is started anew"), "{status}");
        assert_eq!(sh("echo lives")?, "lives");
        // When the distribution starts again it has it again, by another way.
        one.say("terminate a")?;
        assert_eq!(sh("cat /mnt/src/by-root; grep -c fuse.undercroft /proc/mounts")?, "root\n2");
        one.say("shutdown")?;

        // One that is recorded as having the machine's users sees its own in them all the same, by a device and by a stream.
        Store::open(&one.folder().join("data/undercroft"))
            .and_then(|store| store.configure("c", |settings| settings.own_users = false))
            .map_err(|error| Failure::Failed(chain(&error)))?;
        for (host, place) in [(&src, "/mnt/src"), (&fixed, "/fixed")] {
            let (mount, new) = (format!("{}:{place}", host.display()), host.join("by-c"));
            let script =
                format!("stat -c %u:%g {place}/from-host; echo c > {place}/by-c; chown 7:7 {place}/by-c");
            assert_eq!(one.say_words(["run", "-m", &mount, "c", "sh", "-c", &script])?, "1000:1000");
            assert_eq!((fs::read_to_string(&new)?.as_str(), fs::metadata(&new)?.uid()), ("c\n", user));
        }
        assert_eq!(one.sh("c", "awk '{ print $1, $2 }' /proc/self/uid_map")?, "0 0");
        assert_eq!(sh("cat /mnt/src/by-root")?, "root");
        one.finish()
    })
}

/// Without a word of it in the configuration, and no longer than the machine runs.
#[test]
fn folders_by_the_command_line() -> Outcome {
    guest_test(|suite| {
        let home = tempfile::Builder::new().prefix("shared-").tempdir()?;
        fs::create_dir(home.path().join("src"))?;
        fs::write(home.path().join("src/from-host"), "hello\n")?;
        let one = Product::new(suite, Kernel::Tuned, MACHINE)?;
        for name in ["a", "b"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        // The machine runs since the imports, and nothing in it: it starts anew with the folder.
        let mut relative = one.command(["run", "-m", "src:/mnt/src", "a", "cat", "/mnt/src/from-host"]);
        let output = relative.current_dir(home.path()).output()?;
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"hello\n"[..], &b""[..]));
        // Who is in it on the host is in it inside.
        fs::create_dir(home.path().join("src/deep"))?;
        let pwd = one.command(["run", "a", "pwd"]).current_dir(home.path().join("src/deep")).output()?;
        assert_eq!(String::from_utf8_lossy(&pwd.stdout), "/mnt/src/deep\n");
        assert_eq!(one.say("run a pwd")?, "/root");
        // It stays as long as that machine, and whoever names it again is not in anybody's way.
        let mount = format!("{}:/mnt/src", home.path().join("src").display());
        assert_eq!(one.sh("a", "echo inside > /mnt/src/from-guest; cat /mnt/src/from-host")?, "hello");
        assert_eq!(one.say(&format!("run -m {mount} a cat /mnt/src/from-guest"))?, "inside");
        assert_eq!(fs::read_to_string(home.path().join("src/from-guest"))?, "inside\n");
        assert_eq!(one.sh("b", "test -e /mnt/src || echo nothing")?, "nothing");

        let refused = |line: String| -> Result<String, Failure> {
            let output = one.try_say(&line)?;
            assert_eq!(output.status.code(), Some(125), "{line}");
            Ok(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let error = refused("run -m /nonexistent:/x a true".into())?;
        assert!(error.contains("/nonexistent cannot be shared: No such file"), "{error}");
        one.say("shutdown")?;
        let write = "cat /mnt/src/from-host; echo x > /mnt/src/new";
        let output = one.command(["run", "-m", &format!("{mount}:ro"), "b", "sh", "-c", write]).output()?;
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"hello\n"[..]));
        assert_eq!(one.sh("a", "ls /mnt/src | wc -l")?, "0");
        one.finish()
    })
}

/// A machine that is used is not stopped for another folder: it comes by a stream.
#[rstest]
#[case::tuned(Kernel::Tuned)]
#[case::stock(Kernel::Stock)]
fn folders_for_who_runs_already(#[case] kernel: Kernel) -> Outcome {
    guest_test(|suite| {
        let home = tempfile::Builder::new().prefix("shared-").tempdir()?;
        let src = home.path().join("src");
        fill(&src)?;
        let one = Product::new(suite, kernel, MACHINE)?;
        one.say(&format!("import a {}", suite.busybox.display()))?;
        let mut stays = one.command(["run", "a", "sleep", "3600"]).spawn()?;
        one.until("it runs", || Ok(one.sh("a", "pidof sleep | wc -w")? == "1"))?;
        let boot = one.sh("a", "cat /proc/sys/kernel/random/boot_id")?;
        let mount = format!("{}:/home/me/src", src.display());
        let run = |script: &str| one.say_words(["run", "-m", &mount, "a", "sh", "-c", script]);

        // Whose files they are, what can be done with them, and that all of it comes as it was.
        assert_eq!(
            run("cat /home/me/src/from-host; stat -c %u:%g /home/me/src/from-host")?,
            "hello\n1000:1000"
        );
        let large = sum(&src.join("large"))?;
        let sh = |script: &str| one.sh("a", script);
        assert!(sh("sha256sum < /home/me/src/large")?.starts_with(&large));
        sh(
            "cd /home/me/src && mkdir -p d/e && cp large d/e/copy && mv d/e/copy d/moved && ln -s moved d/link && ./run",
        )?;
        assert_eq!((sum(&src.join("d/moved"))?, sum(&src.join("d/link"))?), (large.clone(), large));
        assert_eq!(fs::metadata(src.join("d/moved"))?.uid(), nix::unistd::geteuid().as_raw());
        // More at a time than there is room for.
        let many = "cd /home/me/src; mkdir many; for n in $(seq 40); do \
                    (echo $n > many/$n; dd if=large bs=64k count=16 skip=$n 2>/dev/null | md5sum > many/$n.sum) & done; wait; \
                    cat many/*.sum | sort -u | wc -l; rm -r many; ls | wc -l";
        assert_eq!(sh(many)?, "40\n4");
        fs::write(src.join("from-host"), "changed\n")?;
        one.until("the change is seen", || Ok(sh("cat /home/me/src/from-host")? == "changed"))?;
        // What is not there is refused as anywhere.
        assert_eq!(sh("cat /home/me/src/none 2>/dev/null; echo $?")?, "1");
        let status = one.say("status")?;
        assert!(
            status.contains(&format!("folder: /home/me/src in a is {}, added later\n", src.display())),
            "{status}"
        );

        // Read-only is the host's to see to, whatever root does.
        let fixed = format!("{}:/fixed:ro", src.display());
        let write = "mount -o remount,rw /fixed 2>/dev/null; echo x > /fixed/from-host";
        assert_eq!(one.command(["run", "-m", &fixed, "a", "sh", "-c", write]).status()?.code(), Some(1));
        assert_eq!(fs::read_to_string(src.join("from-host"))?, "changed\n");

        // Its server is killed: who waits is told, and who asks has it again.
        let before = servers(&one)?;
        assert_eq!(before.len(), 2, "{before:?}");
        let mut reader = one
            .command([
                "run",
                "a",
                "sh",
                "-c",
                "while cat /home/me/src/large >/dev/null; do :; done 2>/dev/null",
            ])
            .spawn()?;
        Command::new("kill").arg("-9").args(&before).status()?;
        assert!(reader.wait()?.success(), "what read from it has ended by itself");
        assert!(one.say("status")?.contains("it is gone until a is started anew"));
        assert_eq!(run("cat /home/me/src/from-host; grep -c /home/me/src /proc/mounts")?, "changed\n1");
        // Somebody inside does not want it any more.
        sh("umount /home/me/src")?;
        one.until("it is gone", || Ok(!one.say("status")?.contains("/home/me/src")))?;
        one.until("its server is gone", || Ok(servers(&one)?.is_empty()))?;
        assert_eq!(run("cat /home/me/src/from-host")?, "changed");

        // It ends with the distribution, server and all, and is there again when that is.
        one.say("terminate a")?;
        stays.wait()?;
        one.until("its server is gone", || Ok(servers(&one)?.is_empty()))?;
        assert_eq!(sh("cat /home/me/src/from-host /fixed/from-host")?, "changed\nchanged");
        assert_eq!(sh("cat /proc/sys/kernel/random/boot_id")?, boot);
        one.say("shutdown")?;
        assert_eq!(sh("ls /home/me/src | wc -l")?, "0");
        one.finish()
    })
}

/// A server that hangs, as one does whose folder is on a network's file system that is gone: not even SIGKILL reaches who waits for
/// its answer, and still a distribution stops, and the machine, and nobody else loses anything.
#[test]
fn a_folder_that_does_not_answer() -> Outcome {
    guest_test(|suite| {
        let home = tempfile::Builder::new().prefix("shared-").tempdir()?;
        let (device, stream) = (home.path().join("device"), home.path().join("stream"));
        fill(&device)?;
        fill(&stream)?;
        let mounts = format!("{MACHINE}[distribution \"a\"]\nmount={}:/device\n", device.display());
        let one = Product::new(suite, Kernel::Tuned, &mounts)?;
        for name in ["a", "b"] {
            one.say(&format!("import {name} {}", suite.busybox.display()))?;
        }
        let mut other = one.command(["run", "b", "cat"]).stdin(Stdio::piped()).spawn()?;
        one.until("it runs", || Ok(one.say("list -v")?.contains("1 session")))?;
        let mount = format!("{}:/stream", stream.display());
        one.say_words(["run", "-m", &mount, "a", "cat", "/device/from-host", "/stream/from-host"])?;
        // Nobody answers any more; then readers wait for it.
        let hang = |paths: &[&str]| -> Result<Vec<std::process::Child>, Failure> {
            // Each has a group of its own: itself, and who is in its sandbox.
            let groups = servers(&one)?.into_iter().map(|pid| format!("-{pid}"));
            Command::new("kill").args(["-STOP", "--"]).args(groups).status()?;
            let read = |path: &&str| -> Result<_, Failure> {
                let script = format!("echo begins; cat {path}/large > /dev/null");
                let mut reader =
                    one.command(["run", "a", "sh", "-c", &script]).stdout(Stdio::piped()).spawn()?;
                reader.stdout.take().expect("a pipe").read_exact(&mut [0; 6])?;
                Ok(reader)
            };
            let readers = paths.iter().map(read).collect();
            // As long as this takes, they have come to it.
            one.say("list -v")?;
            readers
        };
        let machine = one.status()?["vm"]["pid"].clone();
        let readers = hang(&["/device", "/stream"])?;
        one.say("terminate --force a")?;
        for mut reader in readers {
            assert!(!reader.wait()?.success());
        }
        let status = one.say("status")?;
        let told =
            "virtiofsd was killed because a did not stop while it ran; it is gone until a is started anew";
        assert_eq!(status.matches(told).count(), 2, "{status}");
        // It has both again, and who had no part in it noticed nothing.
        assert_eq!(one.sh("a", "cat /device/from-host /stream/from-host")?, "hello\nhello");
        assert_eq!(one.status()?["vm"]["pid"], machine);
        drop(other.stdin.take());
        assert!(other.wait()?.success());

        let readers = hang(&["/device", "/stream"])?;
        let said = one.try_say("shutdown --force")?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.contains("power cut"), "{said}");
        for mut reader in readers {
            assert!(!reader.wait()?.success());
        }
        assert_eq!(one.sh("a", "cat /device/from-host")?, "hello");
        one.finish()
    })
}

/// A program that watches a folder, makes something in it, and says what it was told (inotify(7), by its numbers on x86-64).
const WATCH: &str = r#"
my $fd = syscall(253); my $path = "/src"; syscall(254, $fd, $path, 0x100) >= 0 or die "watch: $!";
if (!fork) { open(my $f, ">", "/src/new") or die; exit }
alarm 60; open(my $in, "<&=", $fd); sysread($in, my $event, 4096);
my ($wd, $mask, $cookie, $length, $name) = unpack("i I I I Z*", $event); print "$mask $name\n";
"#;

#[test]
fn what_is_changed_inside_is_told_inside() -> Outcome {
    guest_test(|suite| {
        let host = tempfile::tempdir()?;
        let folder = SharedFolder {
            distribution: "a".into(),
            host: host.path().into(),
            guest: "/src".into(),
            read_only: false,
            own_users: true,
            owner: 0,
            origin: "test".into(),
        };
        let folders = FolderOptions { program: Some(suite.virtiofsd.clone()), shared: vec![folder] };
        let vm = boot(suite, Kernel::Tuned).folders(folders).distro("a", &suite.debian).start()?;
        fs::write(host.path().join("watch"), WATCH)?;
        assert_eq!(vm.machine().warnings(), [""; 0]);
        assert_eq!(vm.read("a", "perl /src/watch")?.trim(), "256 new");
        assert_eq!(vm.read("a", "stat -c %u /src/watch")?.trim(), "0");
        vm.power_off()
    })
}

/// A virtiofsd that is none costs the folder, and nothing else.
#[test]
fn a_host_without_virtiofsd() -> Outcome {
    guest_test(|suite| {
        let mut folders = FolderOptions { program: Some("/bin/false".into()), ..FolderOptions::default() };
        folders.shared.push(SharedFolder {
            distribution: "a".into(),
            host: "/tmp".into(),
            guest: "/src".into(),
            read_only: false,
            own_users: true,
            owner: 1000,
            origin: ".wslconfig:7".into(),
        });
        let vm = boot(suite, Kernel::Tuned).folders(folders).distro("a", &suite.busybox).start()?;
        let warnings = vm.machine().warnings().join("\n");
        assert!(
            warnings.contains(".wslconfig:7: /tmp is not shared: /bin/false is no virtiofsd"),
            "{warnings}"
        );
        assert_eq!(vm.read("a", "test -e /src || echo works")?.trim(), "works");
        vm.power_off()
    })
}

/// All exits that this host's KVM has counted, where they can be read.
fn exits() -> Option<u64> {
    // It is mounted already, or may not be: then there is no number.
    let _ = Command::new("mount").args(["-t", "debugfs", "none", "/sys/kernel/debug"]).output();
    fs::read_to_string("/sys/kernel/debug/kvm/exits").ok()?.trim().parse().ok()
}

/// What a stream costs beside a device: each message is packets of vsock, of 4 KiB. The numbers go to a file beside the logs; twice
/// what was measured is too much.
#[test]
fn a_stream_beside_a_device() -> Outcome {
    guest_test(|suite| {
        let host = tempfile::tempdir()?;
        fill(host.path())?;
        let folder = |guest: &str| SharedFolder {
            distribution: "a".into(),
            host: host.path().into(),
            guest: guest.into(),
            read_only: false,
            own_users: true,
            owner: 0,
            origin: "test".into(),
        };
        let folders =
            FolderOptions { program: Some(suite.virtiofsd.clone()), shared: vec![folder("/device")] };
        let vm = boot(suite, Kernel::Tuned).folders(folders).distro("a", &suite.busybox).start()?;
        vm.check(vm.machine().bring_folder(vm.distribution("a")?, folder("/stream")))?;
        let mut table = String::from("work: KVM's exits and milliseconds by a device, by a stream\n");
        for (work, script, most) in [
            ("read 24 MiB", "cat D/large > /dev/null", 17_600),
            ("write 24 MiB", "dd if=/dev/zero of=D/new bs=1M count=24 2>/dev/null", 19_000),
            ("make 200 files", "mkdir DD && for n in $(seq 200); do : > DD/$n; done", 21_500),
            ("remove 200 files", "rm -r DD", 9_500),
        ] {
            let mut counted = Vec::new();
            table.push_str(work);
            for place in ["/device", "/stream"] {
                let (before, begun) = (exits(), Instant::now());
                vm.read("a", &script.replace('D', place))?;
                let count = exits().zip(before).map(|(now, before)| now - before);
                table.push_str(&format!(" {count:?} {}", begun.elapsed().as_millis()));
                counted.extend(count);
            }
            table.push('\n');
            if let Some(stream) = counted.get(1) {
                assert!(*stream <= most, "{table}");
            }
        }
        fs::write(suite.logs.join("folders.measured"), table)?;
        vm.power_off()
    })
}
