//! The Linux source that the tuned kernel is built from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, apt, cache, program, stock::digest};

/// Debian's source of the LTS kernel that the fragments were written for.
const PACKAGE: &str = r"^linux-source-6\.12$";
const TARBALL: &str = "linux-source-6.12.tar.xz";

/// Where the source comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// Debian's `linux-source-6.12`: installed, in the cache, or fetched with apt.
    #[default]
    Debian,
    /// A tarball, held against its sha256 if one is given.
    Tarball {
        /// The file.
        path: PathBuf,
        /// In hexadecimal.
        sha256: Option<String>,
    },
    /// A tarball in the network, which must have this sha256.
    Url {
        /// `https://…`
        url: String,
        /// In hexadecimal.
        sha256: String,
    },
}

/// The texts of the terms that a kernel is under, and of those of the GNU C Library, as the source has them.
pub const LICENCES: [&str; 4] = [
    "COPYING",
    "LICENSES/preferred/GPL-2.0",
    "LICENSES/exceptions/Linux-syscall-note",
    "LICENSES/preferred/LGPL-2.1",
];

impl Source {
    /// From what somebody typed: a URL or a path.
    pub fn named(name: &str, sha256: Option<String>) -> Result<Self, Error> {
        if !name.contains("://") {
            return Ok(Self::Tarball { path: name.into(), sha256 });
        }
        let sha256 = sha256.ok_or_else(|| Error::NoChecksum { url: name.into() })?;
        Ok(Self::Url { url: name.into(), sha256 })
    }
}

/// A tarball that is here, and whose checksum is known to be right.
pub(crate) struct Tarball {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    /// For people.
    pub(crate) origin: String,
}

/// Finds or fetches the tarball.
pub(crate) fn tarball(source: &Source) -> Result<Tarball, Error> {
    let (path, expected, origin) = match source {
        Source::Debian => {
            let (path, origin) = debian()?;
            (path, None, origin)
        }
        Source::Tarball { path, sha256 } => (path.clone(), sha256.clone(), path.display().to_string()),
        Source::Url { url, sha256 } => (download(url, sha256)?, Some(sha256.clone()), url.clone()),
    };
    let actual = digest(&path)?;
    match expected {
        Some(expected) if !expected.eq_ignore_ascii_case(&actual) => {
            Err(Error::Checksum { path, expected, actual })
        }
        _ => Ok(Tarball { path, sha256: actual, origin }),
    }
}

fn debian() -> Result<(PathBuf, String), Error> {
    let installed = Path::new("/usr/src").join(TARBALL);
    if installed.is_file() {
        return Ok((installed, "Debian's linux-source-6.12".into()));
    }
    // What was fetched before is taken without asking apt, so that the same fragments give the same kernel until
    // somebody empties the cache.
    let fetched = cache::dir()?.join("debs");
    let before = fs::read_dir(&fetched).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let before = before
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("linux-source-6.12_")))
        .max_by(|a, b| apt::natural(&a.to_string_lossy(), &b.to_string_lossy()));
    let directory = match before {
        Some(directory) => directory,
        None => {
            let package = apt::newest(PACKAGE, "linux-source-6.12")?;
            cache::obtain("debs", &package.key(), |dir| {
                let root = apt::unpack(&package, dir)?;
                let inside = root.join("usr/src").join(TARBALL);
                fs::rename(&inside, dir.join(TARBALL)).map_err(Error::io("find", &inside))?;
                cache::remove_all(&root)
            })?
        }
    };
    let version = directory.file_name().unwrap_or_default().to_string_lossy().replace('_', " ");
    Ok((directory.join(TARBALL), format!("Debian's {version}")))
}

fn download(url: &str, sha256: &str) -> Result<PathBuf, Error> {
    let valid = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
    if !valid {
        return Err(Error::Checksum {
            path: url.into(),
            expected: "64 hexadecimal digits".into(),
            actual: sha256.into(),
        });
    }
    let directory = cache::obtain("debs", &format!("tarball-{}", sha256.to_ascii_lowercase()), |dir| {
        let path = dir.join("tarball");
        let mut curl = program::command("curl");
        curl.args(["--fail", "--location", "--silent", "--show-error", "--proto", "=https,http", "--output"]);
        program::run(curl.arg(&path).arg("--").arg(url), "curl")?;
        let actual = digest(&path)?;
        if actual.eq_ignore_ascii_case(sha256) {
            Ok(())
        } else {
            Err(Error::Checksum { path: url.into(), expected: sha256.into(), actual })
        }
    })?;
    Ok(directory.join("tarball"))
}

/// The unpacked tree, in the cache. Builds go into folders directly below it, because then the kernel's makefiles call it
/// `..`, and no path of this machine gets into the objects or into ccache's keys.
pub(crate) fn tree(tarball: &Tarball) -> Result<PathBuf, Error> {
    cache::obtain("sources", &format!("linux-{}", &tarball.sha256[..16]), |dir| {
        let mut tar = program::command("tar");
        tar.arg("--extract").arg("--file").arg(&tarball.path);
        tar.args(["--strip-components=1", "--no-same-owner", "--directory"]).arg(dir);
        program::run(&mut tar, "tar xz-utils")?;
        if dir.join("Makefile").is_file() && dir.join("Kconfig").is_file() {
            Ok(())
        } else {
            Err(Error::NotASource { path: tarball.path.clone() })
        }
    })
}

/// A folder of the cache with [`LICENCES`]: who passes a kernel on passes them on too. The source need not be unpacked.
pub fn licences(source: &Source) -> Result<PathBuf, Error> {
    let tarball = tarball(source)?;
    cache::obtain("licences", &format!("linux-{}", &tarball.sha256[..16]), |dir| {
        take_licences(&tarball.path, dir)
    })
}

fn take_licences(tarball: &Path, dir: &Path) -> Result<(), Error> {
    let mut tar = program::command("tar");
    tar.arg("--extract").arg("--file").arg(tarball).arg("--directory").arg(dir);
    // One of each, and no more is read: a tarball is sorted, and they come early.
    tar.args(["--strip-components=1", "--no-same-owner", "--wildcards", "--occurrence=1"]);
    tar.args(["--no-wildcards-match-slash"]).args(LICENCES.map(|text| format!("*/{text}")));
    program::run(&mut tar, "tar xz-utils").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_a_checksum_and_a_path_does_not() {
        assert!(matches!(Source::named("https://x/linux.tar.xz", None), Err(Error::NoChecksum { .. })));
        assert!(matches!(Source::named("linux.tar.xz", None), Ok(Source::Tarball { .. })));
    }

    #[test]
    fn terms_are_taken_out_of_a_tarball() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("linux.tar");
        for text in LICENCES.iter().chain(&["Makefile"]) {
            let text = dir.path().join("linux-6").join(text);
            fs::create_dir_all(text.parent().unwrap()).unwrap();
            fs::write(&text, text.to_string_lossy().as_bytes()).unwrap();
        }
        let mut tar = program::command("tar");
        program::run(tar.arg("-C").arg(dir.path()).arg("-cf").arg(&path).arg("linux-6"), "tar").unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        take_licences(&path, &out).unwrap();
        for text in LICENCES {
            assert!(fs::read_to_string(out.join(text)).unwrap().ends_with(text));
        }
        assert!(!out.join("Makefile").exists());
    }

    #[test]
    fn a_wrong_checksum_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("linux.tar");
        fs::write(&path, "not it").unwrap();
        let source = Source::Tarball { path, sha256: Some("00".repeat(32)) };
        let error = tarball(&source).err().unwrap().to_string();
        assert!(error.contains("0000") && error.contains("expected sha256"), "{error}");
    }
}
