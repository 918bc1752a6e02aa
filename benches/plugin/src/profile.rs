//! Where the two kernels spend their instructions: a count for each address, from a marker on. Written when a stretch ends:
//!
//! | file | from | to |
//! | --- | --- | --- |
//! | `PATH.entry` | a `BEGIN` marker | the first VM entry |
//! | `PATH` | the same | the first L2 user instruction |
//! | `PATH.span-N` | the N-th (from 0) `SPAN_BEGIN` marker | the `SPAN_END` marker behind it |

use std::{
    collections::BTreeMap,
    ffi::OsString,
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
    /// By the kernel's level (1 or 2) and the instruction's address.
    executed: BTreeMap<(u8, u64), &'static AtomicU64>,
    spans: usize,
}

/// What has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stretch {
    ToEntry,
    ToGuestUser,
    Span,
}

/// Asks for a profile.
pub(crate) fn write_to(path: &str) {
    *PROFILE.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Profile { path: path.into(), executed: BTreeMap::new(), spans: 0 });
}

/// The word that counts how often the instruction at this address of that level's kernel executes; none without a profile.
pub(crate) fn word(level: u8, address: u64) -> Option<&'static AtomicU64> {
    let mut profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    let words = &mut profile.as_mut()?.executed;
    Some(words.entry((level, address)).or_insert_with(|| Box::leak(Box::default())))
}

/// A run or a span begins: all counts are 0 again.
pub(crate) fn begin() {
    if let Some(profile) = &*PROFILE.lock().unwrap_or_else(PoisonError::into_inner) {
        profile.executed.values().for_each(|word| word.store(0, Relaxed));
    }
}

/// Writes `LEVEL ADDRESS COUNT` lines, the address in hexadecimal, in place of those of an earlier run.
pub(crate) fn write(stretch: Stretch) -> io::Result<()> {
    let mut profile = PROFILE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(profile) = &mut *profile else { return Ok(()) };
    let mut path = OsString::from(&profile.path);
    match stretch {
        Stretch::ToEntry => path.push(".entry"),
        Stretch::ToGuestUser => {}
        Stretch::Span => {
            path.push(format!(".span-{}", profile.spans));
            profile.spans += 1;
        }
    }
    let mut text = String::new();
    for ((level, address), word) in &profile.executed {
        match word.load(Relaxed) {
            0 => {}
            count => {
                let _ = writeln!(text, "{level} {address:016x} {count}");
            }
        }
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_run_are_written() {
        assert!(word(2, 1).is_none());
        let path = std::env::temp_dir().join(format!("undercroft-ruler-profile-{}", std::process::id()));
        write_to(&path.to_string_lossy());
        word(1, 0xffff_ffff_8100_0000).unwrap().store(9, Relaxed);
        begin();
        word(1, 0xffff_ffff_8100_0000).unwrap().fetch_add(2, Relaxed);
        word(2, 16).unwrap();
        write(Stretch::ToGuestUser).unwrap();
        write(Stretch::Span).unwrap();
        for path in [path.clone(), path.with_extension("span-0")] {
            assert_eq!(fs::read_to_string(&path).unwrap(), "1 ffffffff81000000 2\n");
            fs::remove_file(path).unwrap();
        }
    }
}
