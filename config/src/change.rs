//! What has changed between two readings of a file, and what has to start anew for it.

use crate::{
    facts::HostFacts,
    key::{Acts, Key},
    settings::Settings,
    value::Value,
};

/// A key whose value is another now.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The key.
    pub key: &'static Key,
    /// The distribution whose key it is, if it is of one.
    pub subsection: Option<String>,
    /// Its value before.
    pub old: Option<Value>,
    /// Its value now.
    pub new: Option<Value>,
}

/// What has to start anew until a change acts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Restart {
    /// Nothing: it acts, or will on what is yet to be installed.
    Nothing,
    /// This distribution.
    Distribution(String),
    /// The virtual machine.
    Machine,
}

impl Change {
    /// What has to start anew. `file_of` is the distribution whose file it is, where it is a distribution's.
    pub fn restart(&self, file_of: Option<&str>) -> Restart {
        match (self.key.acts, self.subsection.as_deref().or(file_of)) {
            (Acts::MachineStart, _) => Restart::Machine,
            (Acts::DistributionStart, Some(name)) => Restart::Distribution(name.into()),
            // A key of the machine's that acts on every distribution.
            (Acts::DistributionStart, None) => Restart::Machine,
            (Acts::AtOnce | Acts::NextInstall, _) => Restart::Nothing,
        }
    }
}

/// Compares two readings of one file, defaults counted in: to write a default down changes nothing.
pub fn changed(old: &Settings, new: &Settings, facts: &HostFacts) -> Vec<Change> {
    let mut names = old.distributions();
    names.extend(new.distributions());
    names.sort_unstable_by_key(|name| name.to_ascii_lowercase());
    names.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
    let rows = old.rows(facts, &names).into_iter().zip(new.rows(facts, &names));
    rows.filter(|(old, new)| old.value != new.value)
        .map(|(old, new)| Change { key: new.key, subsection: new.subsection, old: old.value, new: new.value })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::HOST;
    use std::path::Path;

    #[test]
    fn a_change_says_what_it_waits_for() {
        let facts = HostFacts { memory: 16 << 30, processors: 4, home: None };
        let read = |text: &str| Settings::parse(&HOST, Path::new(".wslconfig"), text.as_bytes());
        let old = read(
            "[wsl2]\nprocessors=4\n[distribution \"Deb\"]\nmemory=1GB\nuser=shared\n[distribution \"x\"]\nkeepAlive=1",
        );
        let new = read(
            "[general]\ninstanceIdleTimeout=1\n[wsl2]\nmemory=4GB\n[distribution \"deb\"]\nmemory=2GB\n",
        );
        let changes = changed(&old, &new, &facts);
        let found: Vec<(String, Restart)> =
            changes.iter().map(|c| (c.key.full_name(), c.restart(None))).collect();
        let deb = || Restart::Distribution("Deb".into());
        assert_eq!(
            found,
            [
                ("wsl2.memory".to_owned(), Restart::Machine),
                // Its default is a quarter of the machine's memory.
                ("wsl2.swap".to_owned(), Restart::Machine),
                ("general.instanceIdleTimeout".to_owned(), Restart::Nothing),
                ("distribution.user".to_owned(), deb()),
                ("distribution.memory".to_owned(), deb()),
                ("distribution.keepAlive".to_owned(), Restart::Nothing),
            ]
        );
        assert_eq!(
            (changes[1].old.clone(), changes[1].new.clone()),
            (Some(Value::Size(2 << 30)), Some(Value::Size(1 << 30)))
        );
        assert_eq!(changed(&old, &old, &facts), []);
    }
}
