//! Which distribution is meant when none is named.

use serde::{Deserialize, Serialize};

use super::{Guard, Store, StoreError, check_name, is_absent, name::folder, partial::Partial, record};
use crate::error::Result;

/// The version of its file.
const VERSION: u64 = 1;
const FILE: &str = "default.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Default {
    version: u64,
    name: String,
}

impl Store {
    /// The default distribution: the one that was [set](Self::set_default), as long as it is there, or else the oldest.
    pub fn default_distribution(&self) -> Result<Option<String>> {
        let guard = self.lock()?;
        let listed = self.list_locked(&guard)?.distributions;
        let named = self.named_default()?.map(|name| folder(&name));
        let set = listed.iter().find(|one| Some(folder(&one.name)) == named);
        let oldest = || listed.iter().min_by_key(|one| (one.created, &one.name));
        Ok(set.or_else(oldest).map(|one| one.name.clone()))
    }

    /// Makes one the default.
    pub fn set_default(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let guard = self.lock()?;
        let record = self.read(&guard, &folder(name))?.ok_or_else(|| StoreError::Unknown(name.into()))?;
        self.write_default(&guard, &record.name)
    }

    /// What was set, there or not.
    pub(super) fn named_default(&self) -> Result<Option<String>> {
        match record::read_version::<Default>(&self.directory.join(FILE), VERSION) {
            Ok(default) => Ok(Some(default.name)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write_default(&self, guard: &Guard, name: &str) -> Result<()> {
        let partial = Partial::new(guard, self.partial(FILE))?;
        record::write(&partial.path, &Default { version: VERSION, name: name.into() })?;
        partial.move_to(&self.directory.join(FILE))
    }

    /// Forgets that it was set, if it was this one: another of its name is another.
    pub(super) fn forget_default(&self, of: &str) -> Result<()> {
        if self.named_default()?.is_some_and(|name| folder(&name) == of) {
            super::partial::remove(&self.directory.join(FILE))?;
        }
        Ok(())
    }
}
