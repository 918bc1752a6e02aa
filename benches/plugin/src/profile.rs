//! Where the guest's kernel spends its instructions: a count for each address, from a `BEGIN` marker to the first L2 user
//! instruction.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Where the profile is written to, if there is to be one, and its words. QEMU's translated code adds to these until the
/// process ends, so they are never freed.
static PROFILE: Mutex<Option<Profile>> = Mutex::new(None);

struct Profile {
    path: PathBuf,
    executed: BTreeMap<u64, &'static AtomicU64>,
}

/// Asks for a profile.
pub(crate) fn write_to(path: &str) {
    *PROFILE.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Profile { path: path.into(), executed: BTreeMap::new() });
}

/// The word that counts how often the instruction at this address executes; none without a profile.
pub(crate) fn word(address: u64) -> Option<&'static AtomicU64> {
    let mut profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    let words = &mut profile.as_mut()?.executed;
    Some(words.entry(address).or_insert_with(|| Box::leak(Box::default())))
}

/// A run begins: all counts are 0 again.
pub(crate) fn begin() {
    if let Some(profile) = &*PROFILE.lock().unwrap_or_else(PoisonError::into_inner) {
        profile.executed.values().for_each(|word| word.store(0, Relaxed));
    }
}

/// Writes `ADDRESS COUNT` lines, in hexadecimal and decimal, in place of those of an earlier run.
pub(crate) fn write() -> io::Result<()> {
    let profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(profile) = &*profile else { return Ok(()) };
    let mut text = String::new();
    for (address, count) in profile.executed.iter().map(|(a, w)| (a, w.load(Relaxed))).filter(|(_, c)| *c > 0)
    {
        let _ = writeln!(text, "{address:016x} {count}");
    }
    fs::write(&profile.path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_run_are_written() {
        assert!(word(1).is_none());
        let path = std::env::temp_dir().join(format!("undercroft-ruler-profile-{}", std::process::id()));
        write_to(&path.to_string_lossy());
        word(0xffff_ffff_8100_0000).unwrap().store(9, Relaxed);
        begin();
        word(0xffff_ffff_8100_0000).unwrap().fetch_add(2, Relaxed);
        word(16).unwrap();
        write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ffffffff81000000 2\n");
        fs::remove_file(path).unwrap();
    }
}
