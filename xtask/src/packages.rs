//! Which Debian packages a chore needs: named here and nowhere else.
//!
//! What is looked for is what is used (a program, a file), so another distribution's package is as good.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use undercroft_kernel_config::cache;

/// A chore that needs programs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "groups belong to the chores that use them; this file names them all")]
pub(crate) enum Group {
    /// A machine made in software.
    Lab,
    /// Fetching a distribution's kernel and making its module disk.
    StockKernel,
    /// Building a kernel.
    KernelBuild,
    /// Making a Debian root file system.
    Debian,
    /// Making a distribution's disk.
    Disk,
    /// Distributions that tests make themselves.
    Tests,
    /// Putting others beside us.
    Peers,
}

/// Something that is used, and the package that Debian has it in.
struct Need {
    /// Any one of these: a program's name, or a file's absolute path.
    any: &'static [&'static str],
    package: &'static str,
}

const fn need(any: &'static [&'static str], package: &'static str) -> Need {
    Need { any, package }
}

impl Group {
    /// What for, to be read after "needed to".
    fn purpose(self) -> &'static str {
        match self {
            Self::Lab => "make a machine with working KVM in software",
            Self::StockKernel => "get a distribution's kernel",
            Self::KernelBuild => "build a kernel",
            Self::Debian => "make a Debian root file system",
            Self::Disk => "make a file system",
            Self::Tests => "make a small distribution for tests",
            Self::Peers => "put others beside us",
        }
    }

    fn needs(self) -> &'static [Need] {
        match self {
            Self::Lab => {
                const {
                    &[
                        need(&["qemu-system-x86_64"], "qemu-system-x86"),
                        need(&["/usr/share/qemu/qboot.rom"], "qemu-system-data"),
                        need(&["apt-get"], "apt"),
                        need(&["dpkg-deb"], "dpkg"),
                    ]
                }
            }
            Self::StockKernel => {
                const { &[need(&["apt-get"], "apt"), need(&["dpkg-deb"], "dpkg"), need(&["mke2fs"], "e2fsprogs")] }
            }
            Self::KernelBuild => {
                const {
                    &[
                        need(&["gcc"], "gcc"),
                        need(&["make"], "make"),
                        need(&["flex"], "flex"),
                        need(&["bison"], "bison"),
                        need(&["bc"], "bc"),
                        need(&["perl"], "perl"),
                        need(&["xz"], "xz-utils"),
                        need(&["/usr/include/gelf.h"], "libelf-dev"),
                        need(&["mke2fs"], "e2fsprogs"),
                    ]
                }
            }
            Self::Debian => {
                const {
                    &[
                        need(&["mmdebstrap"], "mmdebstrap"),
                        need(&["newuidmap"], "uidmap"),
                        need(&["/usr/share/keyrings/debian-archive-keyring.gpg"], "debian-archive-keyring"),
                    ]
                }
            }
            Self::Disk => const { &[need(&["mke2fs"], "e2fsprogs")] },
            Self::Tests => {
                const {
                    &[
                        need(&["/bin/busybox"], "busybox-static"),
                        need(&["mke2fs"], "e2fsprogs"),
                        need(&["passt"], "passt"),
                        need(&["ip"], "iproute2"),
                    ]
                }
            }
            Self::Peers => {
                const {
                    &[
                        need(&["bwrap"], "bubblewrap"),
                        need(&["crun"], "crun"),
                        need(&["systemd-nspawn"], "systemd-container"),
                        need(&["passt"], "passt"),
                        need(&["/usr/bin/iperf3"], "iperf3"),
                    ]
                }
            }
        }
    }

    /// The packages that are not there.
    fn missing(self) -> Vec<&'static str> {
        let needs = self.needs().iter();
        let absent =
            needs.filter(|need| !need.any.iter().any(|what| is_there(what))).map(|need| need.package);
        match self {
            Self::Lab => absent.chain(lab_server()).collect(),
            Self::Tests => absent.chain(folder_server()).collect(),
            _ => absent.collect(),
        }
    }
}

/// What a virtiofsd for the lab takes if there is none that serves this user. The one in Debian 12's QEMU serves root only.
fn lab_server() -> Vec<&'static str> {
    let root = nix::unistd::geteuid().is_root();
    if root && is_there("/usr/lib/qemu/virtiofsd") {
        return Vec::new();
    }
    match folder_server() {
        missing if root && !missing.is_empty() && missing != ["virtiofsd"] => vec!["qemu-system-common"],
        missing => missing,
    }
}

/// What a virtiofsd for folders takes: the one in Rust, a package of its own since Debian 13. Elsewhere cargo builds it, with
/// these libraries.
fn folder_server() -> Vec<&'static str> {
    let built = cache::dir().is_ok_and(|cache| cache.join("tools/bin/virtiofsd").exists());
    if is_there("/usr/libexec/virtiofsd") || built {
        return Vec::new();
    }
    if apt_offers("virtiofsd") {
        return vec!["virtiofsd"];
    }
    let libraries =
        [("/usr/include/cap-ng.h", "libcap-ng-dev"), ("/usr/include/seccomp.h", "libseccomp-dev")];
    libraries.into_iter().filter(|(header, _)| !is_there(header)).map(|(_, package)| package).collect()
}

fn apt_offers(package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", package]).stdin(Stdio::null());
    show.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Makes sure that a chore has what it needs: root installs what is missing, anybody else is told the command.
pub(crate) fn ensure(group: Group) -> anyhow::Result<()> {
    ensure_all(&[group])
}

/// As [`ensure`], for a chore of several parts: what is missing for any of them is told at once.
pub(crate) fn ensure_all(groups: &[Group]) -> anyhow::Result<()> {
    let (missing, purpose) = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let root = nix::unistd::geteuid().is_root();
    if !root || !is_there("apt-get") {
        let update = if lists_are_empty() { "sudo apt-get update && " } else { "" };
        bail!("packages are missing, needed to {purpose}: {update}sudo apt-get install {list}");
    }
    eprintln!("installing {list}, needed to {purpose}");
    if lists_are_empty() {
        apt(&["update"])?;
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing);
    apt(&arguments).with_context(|| format!("tried to install {list}, needed to {purpose}"))?;
    match self::missing(groups) {
        (still, _) if still.is_empty() => Ok(()),
        (still, purpose) => bail!("{} did not bring what is needed to {purpose}", still.join(" ")),
    }
}

/// The packages that are not there, each once, and what for.
fn missing(groups: &[Group]) -> (Vec<&'static str>, String) {
    let (mut packages, mut purposes) = (Vec::new(), Vec::new());
    for group in groups {
        let missing = group.missing();
        if !missing.is_empty() && !purposes.contains(&group.purpose()) {
            purposes.push(group.purpose());
        }
        for package in missing {
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
    }
    let purpose = match purposes.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => purposes.concat(),
    };
    (packages, purpose)
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("apt-get")
        .arg("-qq")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("apt-get cannot be run")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.lines().rev().find(|line| line.starts_with("E:")).unwrap_or("it did not say why");
    bail!("apt-get {} failed: {reason}", arguments.first().unwrap_or(&""))
}

/// A container image often comes without them.
fn lists_are_empty() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') {
        return Path::new(what).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A normal user's PATH often lacks these two.
    let mut directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), "/sbin".into()]);
    directories.any(|directory| directory.join(what).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_a_user_does_not_look() {
        assert!(is_there("sh"));
        assert!(is_there("/bin/sh"));
        assert!(!is_there("no-such-program-anywhere"));
    }
}
