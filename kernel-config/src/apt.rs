//! Fetching a Debian package with the host's apt, as the user that calls, and unpacking it without installing it.

use std::{
    cmp::Ordering,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, program};

/// A package that apt offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Package {
    /// Name and version, fit for a file name.
    pub(crate) fn key(&self) -> String {
        format!("{}_{}", self.name, self.version).replace(['/', ':'], "-")
    }
}

/// The newest of those whose whole name matches the extended regular expression; errors call it `wanted`.
///
/// Apt's own lists are read. Those that come with a machine's image may be older than the package: root has them renewed
/// and looks once more.
pub(crate) fn newest(pattern: &str, wanted: &str) -> Result<Package, Error> {
    match listed(pattern, wanted) {
        Err(Error::NoPackage { .. }) if nix::unistd::geteuid().is_root() => {
            program::run(program::command("apt-get").args(["update", "-qq"]), "apt")?;
            listed(pattern, wanted)
        }
        other => other,
    }
}

fn listed(pattern: &str, wanted: &str) -> Result<Package, Error> {
    let missing = || Error::NoPackage { wanted: wanted.into() };
    let mut search = program::command("apt-cache");
    let found = program::run(search.args(["search", "--names-only", pattern]), "apt")?;
    let found = String::from_utf8_lossy(&found);
    let name = found
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .map(|(name, _)| name.trim())
        .max_by(|a, b| natural(a, b))
        .ok_or_else(missing)?;
    let mut show = program::command("apt-cache");
    let shown = program::run(show.args(["show", "--no-all-versions", name]), "apt")?;
    let version = String::from_utf8_lossy(&shown)
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .map(|v| v.trim().to_owned())
        .ok_or_else(missing)?;
    Ok(Package { name: name.to_owned(), version })
}

/// Downloads the package into `scratch` (apt checks it against its signed lists) and unpacks its files into
/// `scratch/root`, whose path is returned. No root is needed.
pub(crate) fn unpack(package: &Package, scratch: &Path) -> Result<PathBuf, Error> {
    let mut download = program::command("apt-get");
    download
        .args(["download", "-q"])
        .arg(format!("{}={}", package.name, package.version))
        .current_dir(scratch);
    if nix::unistd::geteuid().is_root() {
        // apt would drop to its own user, who may not write here, and warn.
        download.args(["-o", "APT::Sandbox::User=root"]);
    }
    program::run(&mut download, "apt")?;
    let deb = fs::read_dir(scratch)
        .map_err(Error::io("list", scratch))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .ok_or_else(|| Error::Package { path: scratch.into(), expected: format!("{}.deb", package.key()) })?;
    let root = scratch.join("root");
    program::run(program::command("dpkg-deb").arg("-x").arg(&deb).arg(&root), "dpkg")?;
    fs::remove_file(&deb).map_err(Error::io("remove", &deb))?;
    Ok(root)
}

/// Compares as people read versions: runs of digits by value.
pub(crate) fn natural(a: &str, b: &str) -> Ordering {
    fn number(text: &str) -> Option<(u128, &str)> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        Some((text[..end].parse().ok()?, &text[end..]))
    }
    let (mut a, mut b) = (a, b);
    loop {
        match (number(a), number(b)) {
            (Some((x, rest_a)), Some((y, rest_b))) => {
                if x != y {
                    return x.cmp(&y);
                }
                (a, b) = (rest_a, rest_b);
            }
            _ => match (a.chars().next(), b.chars().next()) {
                (Some(x), Some(y)) if x == y => {
                    (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
                }
                (x, y) => return x.cmp(&y),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_count_by_value() {
        let image = |v: &str| format!("linux-image-{v}-cloud-amd64-unsigned");
        assert_eq!(natural(&image("6.12.9+deb12"), &image("6.12.117+deb12")), Ordering::Less);
        assert_eq!(natural(&image("6.12.117+deb13"), &image("6.12.117+deb12")), Ordering::Greater);
        assert_eq!(natural("6.12", "6.12"), Ordering::Equal);
        assert_eq!(natural("6.12", "6.12.1"), Ordering::Less);
    }
}
