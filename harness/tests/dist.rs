//! What `cargo xtask dist` packs, where somebody has unpacked it: it finds its parts, and needs nothing else.

use std::{fs, path::Path, process::Command};

use undercroft_harness::{
    outcome::{Failure, Outcome},
    product::Product,
    vm::guest_test,
};

#[test]
fn what_is_unpacked_anywhere_runs() -> Outcome {
    guest_test(|suite| {
        // A place that nobody has thought of, with a blank in its name.
        let place = tempfile::tempdir()?;
        let prefix = place.path().join("some where");
        let copied = Command::new("cp").arg("-a").args([&suite.installed, &prefix]).status()?;
        assert!(copied.success());
        let one = Product::installed(suite, &prefix, "memory=512MB\nprocessors=1\nswap=0\n")?;
        let version = one.say("version")?;
        assert!(version.contains(&suite.tuned.release), "{version}");
        let doctor = one.command(["doctor"]).output()?;
        let said = String::from_utf8_lossy(&doctor.stdout);
        assert!(said.contains(prefix.to_str().expect("UTF-8")), "{said}");
        one.say(&format!("import a {}", suite.busybox.display()))?;
        assert_eq!(one.sh("a", "uname -r")?, suite.tuned.release);

        // The program alone, as `cargo install` leaves it, says what it lacks, and an archive brings it.
        one.say("shutdown")?;
        let alone = place.path().join("alone/bin");
        fs::create_dir_all(&alone)?;
        fs::copy(prefix.join("bin/undercroft"), alone.join("undercroft"))?;
        let other =
            Product::installed(suite, alone.parent().expect("a folder"), "memory=512MB\nprocessors=1\n")?;
        let lacking = other.try_say(&format!("import a {}", suite.busybox.display()))?;
        let error = String::from_utf8_lossy(&lacking.stderr);
        assert!(error.contains("the kernel is missing: `undercroft parts ARCHIVE`"), "{error}");
        let archive = place.path().join("archive.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(place.path())
            .arg("-cf")
            .arg(&archive)
            .arg("some where")
            .status()?;
        assert!(packed.success());
        let wrong = other.command(["parts", "--sha256", &"0".repeat(64)]).arg(&archive).output()?;
        let error = String::from_utf8_lossy(&wrong.stderr);
        assert!(wrong.status.code() == Some(125) && error.contains("was expected"), "{error}");
        other.say_words(["parts".as_ref(), archive.as_os_str()])?;
        other.say(&format!("import a {}", suite.busybox.display()))?;
        assert_eq!(other.sh("a", "uname -r")?, suite.tuned.release);
        other.finish()?;

        // What is read by others is where they look.
        assert_eq!(fs::read_link(prefix.join("bin/wsl"))?, Path::new("undercroft"));
        let has = |path: &str, text: &str| -> Outcome {
            let content = fs::read_to_string(prefix.join(path))?;
            let missing = || Failure::Failed(format!("{text:?} is not in {path}"));
            content.contains(text).then_some(()).ok_or_else(missing)
        };
        has("share/man/man1/undercroft.1", "undercroft")?;
        has("share/man/man1/undercroft-run.1", "mount")?;
        has("share/bash-completion/completions/undercroft", "keep-alive")?;
        has("share/zsh/site-functions/_undercroft", "keep-alive")?;
        has("share/fish/vendor_completions.d/undercroft.fish", "keep-alive")?;
        has("share/doc/undercroft/copyright", &suite.tuned.release)?;
        has("share/doc/undercroft/README.md", "](docs/tutorial.md)")?;
        has("share/doc/undercroft/docs/tutorial.md", "undercroft install")?;
        has("share/doc/undercroft/licences/linux/GPL-2.0", "GNU GENERAL PUBLIC LICENSE")?;
        has("share/doc/undercroft/licences/LGPL-2.1", "GNU LESSER GENERAL PUBLIC LICENSE")?;
        has("share/doc/undercroft/licences/crates.md", "| rustls |")?;
        has("share/doc/undercroft/licences/crates.txt", "Permission is hereby granted")?;
        has("share/systemd/user/undercroft.socket", "ListenStream=")?;
        has("share/systemd/user/undercroft.service", "undercroft service")?;
        one.finish()
    })
}
