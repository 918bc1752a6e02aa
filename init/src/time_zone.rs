//! The host's time zone, for a distribution that wants to have it (`time.useWindowsTimezone`).

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
};

use crate::log;

/// Where a distribution has the zones (tzfile(5)).
const ZONES: &str = "/usr/share/zoneinfo";

/// Makes a zone the distribution's, if it has it.
pub(crate) fn set(name: &str) {
    if let Err(error) = set_in(Path::new("/"), name) {
        log::warning(&format!("the host's time zone {name:?} cannot be set: {error}"));
    }
}

/// Both are files that other programs write too: what says the same already is left alone.
fn set_in(root: &Path, name: &str) -> io::Result<()> {
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !Path::new(name).components().all(plain) || name.is_empty() {
        return Err(io::Error::other("that is no zone's name"));
    }
    let zones = inside(ZONES);
    // Small images have no zones, and mean UTC.
    if !zones.is_dir() {
        return Ok(());
    }
    if !zones.join(name).is_file() {
        return Err(io::Error::other(format!("the distribution has no {ZONES}/{name}")));
    }
    let (link, target) = (inside("/etc/localtime"), PathBuf::from(format!("{ZONES}/{name}")));
    let is = |target: &Path| fs::read_link(&link).is_ok_and(|there| there == target);
    if !is(&target) && !is(&Path::new("..").join(target.strip_prefix("/").unwrap_or(&target))) {
        replace(&link, |new| symlink(&target, new))?;
    }
    // Debian's older way, where it is used; never a way to write to another file.
    let written = inside("/etc/timezone");
    if fs::symlink_metadata(&written).is_ok_and(|about| about.is_file()) {
        let text = format!("{name}\n");
        if fs::read_to_string(&written).is_ok_and(|there| there != text) {
            replace(&written, |new| fs::write(new, &text))?;
        }
    }
    Ok(())
}

/// Puts something new in a file's place, at once.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("undercroft");
    let _ = fs::remove_file(&new);
    make(&new)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_is_there_is_set_and_another_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc")).unwrap();
        set_in(root.path(), "Europe/Berlin").unwrap();
        assert!(!at("etc/localtime").exists(), "an image without zones");
        fs::create_dir_all(at("usr/share/zoneinfo/Europe")).unwrap();
        fs::write(at("usr/share/zoneinfo/Europe/Berlin"), "TZif").unwrap();
        fs::write(at("etc/timezone"), "Etc/UTC\n").unwrap();
        symlink("/usr/share/zoneinfo/Etc/UTC", at("etc/localtime")).unwrap();
        set_in(root.path(), "Europe/Berlin").unwrap();
        assert_eq!(
            fs::read_link(at("etc/localtime")).unwrap(),
            Path::new("/usr/share/zoneinfo/Europe/Berlin")
        );
        assert_eq!(fs::read_to_string(at("etc/timezone")).unwrap(), "Europe/Berlin\n");
        for wrong in ["", "../../etc/passwd", "/etc/passwd", "Mars/Olympus"] {
            assert!(set_in(root.path(), wrong).is_err(), "{wrong}");
        }
    }
}
