//! Names of distributions, and of their folders.

use sha2::{Digest as _, Sha256};

use super::error::StoreError;
use crate::digest::Digest;

/// The longest name of a distribution, in bytes.
const LONGEST: usize = 256;
/// The longest name that is its folder's as it is, in bytes: a file's may have 255 (NAME_MAX), with what stands in front of
/// it while it is being made.
const PLAIN: usize = 200;

/// Whether a distribution can be called that.
pub fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let bad =
        name.is_empty() || name.len() > LONGEST || !name.bytes().all(fits) || matches!(name, "." | "..");
    if bad { Err(StoreError::Name(name.into())) } else { Ok(()) }
}

/// The folder of a name that was checked: one for all that differ only in case, so that the file system itself knows no two
/// of them.
pub(super) fn folder(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    if lower.len() <= PLAIN {
        return lower;
    }
    // No name has a tilde.
    let rest = Digest::of(Sha256::new_with_prefix(&lower)).short();
    format!("{}~{rest}", &lower[..PLAIN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_may_be() {
        for good in ["a", "Debian-12", ".hidden", "...", "a.b_c-d", &"x".repeat(256)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a\0", "a~b", &"x".repeat(257)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folders_differ_as_names_do() {
        assert_eq!(folder("Debian"), folder("dEBIAN"));
        let long = |last: &str| folder(&format!("{}{last}", "X".repeat(255)));
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a"), long("A"));
        assert!(long("a").len() <= 230);
    }
}
