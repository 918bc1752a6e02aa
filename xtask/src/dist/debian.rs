//! The Debian package: an archive's tree below /usr, and what it says of itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use super::{VERSION, call};

/// What undercroft executes, and does not link.
const EXECUTED: &str = "e2fsprogs";
/// Which package of Debian's has a library.
const PACKAGES: [(&str, &str); 4] = [
    ("libc.so.6", LIBC),
    ("libm.so.6", LIBC),
    ("ld-linux-x86-64.so.2", LIBC),
    ("libgcc_s.so.1", "libgcc-s1"),
];
const LIBC: &str = "libc6";

/// A package of this tree, where dpkg-deb is there to make it.
pub(super) fn package(out: &Path, tree: &Path) -> anyhow::Result<Option<PathBuf>> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("no .deb: dpkg-deb is not here (Debian package dpkg)");
        return Ok(None);
    }
    let root = out.join("deb");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join("DEBIAN"))?;
    let usr = root.join("usr");
    call(Command::new("cp").arg("-a").arg(tree).arg(&usr))?;
    // The reference system's name is not ours to take on everybody's machine.
    for file in ["bin/wsl", "share/man/man1/wsl.1"] {
        fs::remove_file(usr.join(file))?;
    }
    // Where Debian's own are.
    fs::rename(usr.join("share/systemd"), usr.join("lib/systemd"))?;
    let mut depends = needs(&super::output("objdump", "-p", &usr.join("bin/undercroft"))?)?;
    depends.push(EXECUTED.into());
    let control = format!(
        "Package: undercroft\nVersion: {VERSION}\nArchitecture: amd64\nSection: admin\nPriority: optional\n\
         Maintainer: the undercroft founders <undercroft@localhost>\nDepends: {}\n\
         Recommends: passt, virtiofsd\n\
         Description: many Linux distributions on one kernel, in one lightweight virtual machine\n \
         Every distribution is a container on one kernel in one small virtual machine:\n \
         it starts at once, shares memory and page cache with the others, and keeps its files.\n",
        depends.join(", ")
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    let package = out.join(format!("undercroft_{VERSION}_amd64.deb"));
    call(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&package))?;
    fs::remove_dir_all(&root)?;
    Ok(Some(package))
}

/// The packages that a program needs, as `objdump -p` describes it: of the C library the newest version of a symbol's that it
/// links.
fn needs(dump: &str) -> anyhow::Result<Vec<String>> {
    let mut packages = Vec::new();
    for library in dump.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")).map(str::trim) {
        let package = PACKAGES.iter().find(|(name, _)| *name == library);
        let (_, package) = package.with_context(|| format!("no package is known that has {library}"))?;
        packages.push(*package);
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.contains(&LIBC) {
        bail!("objdump names no C library");
    }
    let symbols = dump.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_"));
    let number =
        |version: &str| version.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    let newest = symbols.filter_map(|version| Some((number(version)?, version))).max();
    let (_, newest) = newest.context("objdump names no symbol of the C library's")?;
    Ok(packages
        .into_iter()
        .map(|package| if package == LIBC { format!("{LIBC} (>= {newest})") } else { package.into() })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_what_a_program_links() {
        let dump = "Dynamic Section:\n  NEEDED               libgcc_s.so.1\n  NEEDED               libm.so.6\n  \
                    NEEDED               libc.so.6\n  INIT  0x1\nVersion References:\n  required from libgcc_s.so.1:\n    \
                    0x0b792650 0x00 05 GCC_4.2.0\n  required from libm.so.6:\n    0x06969189 0x00 08 GLIBC_2.29\n  \
                    required from libc.so.6:\n    0x09691a75 0x00 03 GLIBC_2.2.5\n    0x069691b4 0x00 02 GLIBC_2.34\n    \
                    0x0d696919 0x00 11 GLIBC_2.9\n    0x0963cf85 0x00 12 GLIBC_PRIVATE\n";
        assert_eq!(needs(dump).unwrap(), ["libc6 (>= 2.34)", "libgcc-s1"]);
        assert!(needs(&dump.replace("libm.so.6", "libssl.so.3")).unwrap_err().to_string().contains("libssl"));
        assert!(needs("").is_err());
    }
}
