//! The Debian that `cargo xtask boot` has when nobody names another, and those that tests have: made once by mmdebstrap, kept
//! as tar archives.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use undercroft_kernel_config::cache;

use super::apart;
use crate::packages::Group;

/// What a person expects to find beyond the smallest Debian. systemd is there for who asks for it in /etc/wsl.conf; a
/// distribution that does not ask never starts it, so one archive does for both.
const PACKAGES: &str = "procps,vim-tiny,less,iproute2,iputils-ping,ca-certificates,\
    systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,login";

/// A container engine, and what it would like for networks; a busybox to make an image of.
const ENGINE: &str = "podman,crun,netavark,nftables,busybox-static";

/// Whether the archive is there already.
pub(crate) fn is_made(cache: &Path, suite: &str) -> bool {
    path(cache, suite, PACKAGES).exists()
}

/// One for each release and list of packages.
fn path(cache: &Path, suite: &str, packages: &str) -> PathBuf {
    let digest = Sha256::digest(packages);
    let digest: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    cache.join("distros").join(format!("debian-{suite}-{digest}.tar"))
}

/// The archive's path, made if it is not there.
pub(crate) fn archive(cache: &Path, suite: &str) -> anyhow::Result<PathBuf> {
    archive_of(cache, suite, PACKAGES)
}

/// Those that tests start from.
pub(crate) struct ForTests {
    pub(crate) bookworm: PathBuf,
    pub(crate) trixie: PathBuf,
    /// With a container engine, installed where dpkg runs at the host's speed.
    pub(crate) engine: PathBuf,
}

/// Makes or finds them.
pub(crate) fn for_tests() -> anyhow::Result<ForTests> {
    let cache = cache::dir()?;
    Ok(ForTests {
        bookworm: archive(&cache, "bookworm")?,
        trixie: archive(&cache, "trixie")?,
        engine: archive_of(&cache, "trixie", &format!("{PACKAGES},{ENGINE}"))?,
    })
}

fn archive_of(cache: &Path, suite: &str, packages: &str) -> anyhow::Result<PathBuf> {
    let directory = cache.join("distros");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let archive = path(cache, suite, packages);
    if archive.exists() {
        return Ok(archive);
    }
    crate::packages::ensure(Group::Debian)?;
    let _lock = cache::lock(&directory.join(format!(".debian-{suite}.lock")))?;
    if archive.exists() {
        return Ok(archive);
    }
    let root = nix::unistd::geteuid().is_root();
    if !root {
        can_map_users()?;
    }
    eprintln!("making a Debian {suite} with mmdebstrap (once; about a minute)");
    let partial = Partial(directory.join(format!(".debian-{suite}.tar.partial")));
    let out = File::create(&partial.0).with_context(|| format!("cannot create {}", partial.0.display()))?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .arg(if root { "--mode=root" } else { "--mode=unshare" })
        // Not --quiet: a full disk is a warning.
        .args(["--variant=minbase", "--format=tar"])
        .arg(format!("--include={packages}"))
        // What mmdebstrap copies from this host is not this distribution's.
        .arg("--customize-hook=rm -f \"$1/etc/hostname\" \"$1/etc/resolv.conf\"")
        .arg(suite)
        .arg("-")
        .args(sources(suite))
        .env("LC_ALL", "C.UTF-8")
        // Its files belong to a user of a namespace that cannot enter a private home directory.
        .env("TMPDIR", "/tmp")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out);
    let outcome = apart::run(&mut mmdebstrap).context("mmdebstrap cannot be run")?;
    if let Some(signal) = outcome.interrupted {
        drop(partial);
        // Who interrupted us expects us to end by it.
        nix::sys::signal::raise(signal)?;
        bail!("interrupted");
    }
    if !outcome.status.success() {
        bail!("mmdebstrap could not make a Debian {suite}: {}", reason(&outcome.stderr, &directory));
    }
    fs::rename(&partial.0, &archive).with_context(|| format!("cannot create {}", archive.display()))?;
    Ok(archive)
}

/// A release's lines of sources.list(5) from where this host's apt has Debian from; none, for mmdebstrap's own choice, if
/// it has it from nowhere.
fn sources(suite: &str) -> Vec<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let output = apt.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    lines_of_sources(&text, suite)
}

fn lines_of_sources(targets: &str, suite: &str) -> Vec<String> {
    let of = |label: &str| targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
    let Some(main) = of("Debian") else { return Vec::new() };
    let mut lines = vec![format!("deb {main} {suite} main"), format!("deb {main} {suite}-updates main")];
    lines.extend(of("Debian-Security").map(|uri| format!("deb {uri} {suite}-security main")));
    lines
}

/// What mmdebstrap says first of what went wrong. For a full disk that is a warning, and the errors are what came of it.
fn reason(stderr: &[u8], directory: &Path) -> String {
    let said = String::from_utf8_lossy(stderr);
    if said.contains("No space left on device") {
        return format!(
            "no space is left; it takes 600 MiB in /tmp for a while, and 200 MiB in {}: make room there and try again",
            directory.display()
        );
    }
    let error = said.lines().find_map(|line| line.trim().strip_prefix("E:"));
    error.unwrap_or("it did not say why").trim().to_owned()
}

struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It has been renamed, or is removed before the next try.
        let _ = fs::remove_file(&self.0);
    }
}

/// This host's release, if it is a Debian; else the oldest that undercroft is tested with.
pub(crate) fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    let known = |name: &String| name.chars().all(|c| c.is_ascii_lowercase());
    match value("ID").as_deref() {
        Some("debian") => value("VERSION_CODENAME").filter(known).unwrap_or_else(|| "bookworm".into()),
        _ => "bookworm".into(),
    }
}

/// Whether this user may make a user namespace with a range of users in it, which mmdebstrap needs without root.
fn can_map_users() -> anyhow::Result<()> {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())?
        .map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name);
    let listed = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.split(':').next() == Some(&user))
    };
    if !listed("/etc/subuid") || !listed("/etc/subgid") {
        bail!(
            "{user} has no range of users in /etc/subuid and /etc/subgid, which mmdebstrap needs: \
             sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
        );
    }
    let switch = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").unwrap_or_default();
    if switch.trim() == "0" {
        bail!("user namespaces are turned off here: sudo sysctl kernel.unprivileged_userns_clone=1");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_comes_from_where_this_one_does() {
        let targets = "Debian-Security http://mirror.example/security/\nDebian http://mirror.example/debian/\n\
                       Debian http://other.example/\nNode http://node.example/\n";
        assert_eq!(
            lines_of_sources(targets, "trixie"),
            [
                "deb http://mirror.example/debian/ trixie main",
                "deb http://mirror.example/debian/ trixie-updates main",
                "deb http://mirror.example/security/ trixie-security main",
            ]
        );
        assert!(lines_of_sources("Ubuntu http://mirror.example/ubuntu/\n", "trixie").is_empty());
    }
}
