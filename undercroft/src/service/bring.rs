//! The parts of an installation, brought by an archive of undercroft's to a program that came without them (`cargo install`).

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{ServiceError, parts::Parts, paths::Paths};
use crate::{
    Archive,
    digest::Digest,
    error::{Error, Result, chain},
    source::{Cache, Cancel, Content, Order, Progress, Source},
};

/// The folder of the parts in such an archive, below its prefix.
const FOLDER: [&str; 2] = ["lib", "undercroft"];
/// More than all parts of any release.
const MOST: u64 = 2 << 30;

/// Brings the parts out of an archive (a path, or an address of the web) into the user's data folder, in place of what was there.
///
/// # Errors
///
/// That the archive cannot be had, is another than `digest` says, or has not all of them. What was there stays then.
pub fn bring(
    archive: &str,
    digest: Option<&Digest>,
    paths: &Paths,
    tell: &mut dyn FnMut(Progress<'_>),
) -> Result<Parts> {
    let here = std::env::current_dir().map_err(failed("tell where this is"))?;
    let cache = Cache::open(&paths.cache.join("downloads"))?;
    let source = Source::parse(archive, &here)?;
    let obtained = source.obtain(&Order::new(&cache), &Cancel::new(), tell)?;
    let Content::File(file) = &obtained.content else {
        return Err(
            ServiceError::NoParts { archive: archive.into(), why: "nothing of it was read".into() }.into()
        );
    };
    if let Some(expected) = digest.filter(|digest| **digest != file.digest()) {
        let why = format!("its sha256 is {}, and {expected} was expected", file.digest());
        return Err(ServiceError::NoParts { archive: archive.into(), why }.into());
    }
    let content = Archive::open(file.path())?.into_content();
    let parts = unpack(content, &paths.parts()).map_err(|why| match why {
        Why::System(error) => error,
        Why::Archive(why) => ServiceError::NoParts { archive: archive.into(), why }.into(),
    })?;
    obtained.discard();
    Ok(parts)
}

/// Whose fault it is.
enum Why {
    Archive(String),
    System(Error),
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Makes `folder` of what an archive has of the parts.
fn unpack(content: impl io::Read, folder: &Path) -> std::result::Result<Parts, Why> {
    let broken = |error: io::Error| Why::Archive(error.to_string());
    let system = |error| Why::System(failed("unpack the parts")(error));
    let above = folder.parent().unwrap_or(folder);
    fs::create_dir_all(above).map_err(system)?;
    let new = tempfile::Builder::new().prefix(".parts-").tempdir_in(above).map_err(system)?;
    let mut archive = tar::Archive::new(content);
    let mut total = 0_u64;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let Some(part) = part(&path).filter(|_| entry.header().entry_type().is_file()) else { continue };
        total = total.saturating_add(entry.size());
        if total > MOST {
            return Err(Why::Archive(format!("its parts are larger than {} GiB", MOST >> 30)));
        }
        let to = new.path().join(part);
        fs::create_dir_all(to.parent().unwrap_or(above)).map_err(system)?;
        entry.unpack(&to).map_err(broken)?;
    }
    Parts::find_in(new.path()).map_err(|error| match error {
        Error::Service(ServiceError::Missing { what, .. }) => Why::Archive(format!("it has not {what}")),
        error => Why::Archive(chain(&error)),
    })?;
    // Whoever starts a machine at this moment finds the old ones, none, or the new ones, and none is a clear error.
    let aside = tempfile::Builder::new().prefix(".parts-").tempdir_in(above).map_err(system)?;
    let old = aside.path().join("old");
    if folder.exists() {
        fs::rename(folder, &old).map_err(system)?;
    }
    if let Err(error) = fs::rename(new.path(), folder) {
        // If that does not go either, the first error says why.
        let _ = fs::rename(&old, folder);
        return Err(system(error));
    }
    Parts::find_in(folder).map_err(Why::System)
}

/// What a path of the archive is below the parts' folder, if it is there.
fn part(path: &Path) -> Option<PathBuf> {
    let mut names = path.components().filter(|one| *one != Component::CurDir);
    // One prefix: `undercroft-0.1.0-x86_64`, or a package's `usr`.
    names.next()?;
    if !FOLDER.iter().all(|name| names.next().is_some_and(|one| one.as_os_str() == *name)) {
        return None;
    }
    let rest: Option<PathBuf> = names.map(|one| matches!(one, Component::Normal(_)).then_some(one)).collect();
    rest.filter(|rest| !rest.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_below_one_prefix() {
        let of = |path: &str| part(Path::new(path)).map(|part| part.to_string_lossy().into_owned());
        assert_eq!(of("undercroft-1/lib/undercroft/kernel/vmlinux").as_deref(), Some("kernel/vmlinux"));
        assert_eq!(of("./usr/lib/undercroft/undercroft-vmm").as_deref(), Some("undercroft-vmm"));
        for other in
            ["x/bin/undercroft", "lib/undercroft/x", "x/lib/undercroft", "x/lib/undercroft/../../y", ""]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_whole_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("data/parts");
        fs::create_dir_all(&parts).unwrap();
        fs::write(parts.join("old"), "").unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o755);
        tar.append_data(&mut header, "u/lib/undercroft/undercroft-vmm", &b"vmm"[..]).unwrap();
        let bytes = tar.into_inner().unwrap();
        let Err(Why::Archive(why)) = unpack(&bytes[..], &parts) else { panic!("it is not whole") };
        assert_eq!(why, "it has not the kernel");
        let Err(Why::Archive(_)) = unpack(&bytes[..600], &parts) else { panic!("it is cut off") };
        let left: Vec<_> = fs::read_dir(folder.path().join("data")).unwrap().flatten().collect();
        assert!(left.len() == 1 && parts.join("old").exists(), "{left:?}");
    }
}
