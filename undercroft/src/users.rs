//! Ranges of the VM's user ids: each distribution has one of its own as long as the VM runs.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use undercroft_protocol::command::Users;

use crate::error::{Error, Result};

/// Ids of one distribution: enough for its users, and for the 65536 that each of them may hand on to containers of its own
/// (subuid(5) starts at 100000).
const COUNT: u32 = 1 << 20;
/// Ranges that there are: the first belongs to the VM itself, and the last holds -1, which is no id.
const RANGES: u32 = u32::MAX / COUNT;

/// Who has which. Owners on disks are written as the distribution itself sees them, so a range need not be the same in
/// another run of the VM; in one run it stays, for what lies in the memory that distributions share.
#[derive(Debug, Default)]
pub(crate) struct UserRanges(Mutex<BTreeMap<String, u32>>);

impl UserRanges {
    /// The range of the distribution with this name; names that differ in case only are one.
    pub(crate) fn of(&self, name: &str) -> Result<Users> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u32::try_from(known.len()).unwrap_or(u32::MAX).saturating_add(1);
        let number = *known.entry(name.to_ascii_lowercase()).or_insert(next);
        if number >= RANGES {
            return Err(Error::NoUsersLeft { most: RANGES - 1 });
        }
        Ok(Users::Own { first: number * COUNT, count: COUNT })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_and_do_not_overlap() {
        let ranges = UserRanges::default();
        let a = ranges.of("a").unwrap();
        assert_eq!(a, Users::Own { first: COUNT, count: COUNT });
        assert_eq!(ranges.of("b").unwrap(), Users::Own { first: 2 * COUNT, count: COUNT });
        assert_eq!(ranges.of("A").unwrap(), a);
        for n in 2..RANGES - 1 {
            let Users::Own { first, count } = ranges.of(&n.to_string()).unwrap() else { panic!() };
            assert!(first.checked_add(count).is_some());
        }
        assert!(matches!(ranges.of("one too many"), Err(Error::NoUsersLeft { .. })));
    }
}
