//! What there is to know of a key, and the three files' tables of them.

use crate::{
    facts::HostFacts,
    grammar::quote,
    value::{Kind, Value},
};

/// One file's keys.
#[derive(Debug)]
pub struct Table {
    /// The file as people call it.
    pub file: &'static str,
    /// Where it lies and who reads it, for the documentation.
    pub about: &'static str,
    /// Its keys, sections together.
    pub keys: &'static [Key],
    /// Files whose keys people write into this one.
    pub neighbours: &'static [&'static Table],
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its section. One with a [subsection](SUBSECTION) is followed by a name in the file.
    pub section: &'static str,
    /// Its name; the file may have it in any case.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What holds where the file says nothing.
    pub default: Default,
    /// When a change of it acts.
    pub acts: Acts,
    /// What becomes of it here.
    pub fate: Fate,
    /// What it is, in a sentence.
    pub what: &'static str,
    /// What else there is to say, in sentences.
    pub more: &'static str,
}

/// The host file's section that has a distribution's name behind it: `[distribution "NAME"]`.
pub const SUBSECTION: &str = "distribution";

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It does what it says.
    Honoured,
    /// It has no meaning here, for this reason; in a file it is a warning.
    NoMeaning(&'static str),
}

/// When a change acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acts {
    /// On what runs.
    AtOnce,
    /// On distributions that are installed from then on.
    NextInstall,
    /// When the distribution starts the next time.
    DistributionStart,
    /// When the virtual machine starts the next time.
    MachineStart,
}

impl Acts {
    /// In people's words.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NextInstall => "for distributions installed from then on",
            Self::DistributionStart => "at the distribution's next start",
            Self::MachineStart => "at the virtual machine's next start",
        }
    }
}

/// What holds where a file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Nothing does; the words say what that means.
    Unset(&'static str),
    /// A boolean.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// Milliseconds.
    Milliseconds(u32),
    /// Bytes.
    Size(u64),
    /// An octal mask.
    Umask(u32),
    /// A word.
    Text(&'static str),
    /// Half of the host's memory.
    HalfOfMemory,
    /// As many as the host has.
    AllProcessors,
    /// A quarter of the virtual machine's memory, rounded up to a GB.
    QuarterOfMachine,
}

impl Default {
    /// The value, on this host; `machine` is the virtual machine's memory in bytes.
    pub fn value(self, facts: &HostFacts, machine: u64) -> Option<Value> {
        Some(match self {
            Self::Unset(_) => return None,
            Self::Bool(value) => Value::Bool(value),
            Self::Integer(value) => Value::Integer(value),
            Self::Milliseconds(value) => Value::Milliseconds(Some(value)),
            Self::Size(value) => Value::Size(value),
            Self::Umask(value) => Value::Umask(value),
            Self::Text(value) => Value::Text(value.into()),
            Self::HalfOfMemory => Value::Size((facts.memory / 2) & !((1 << 20) - 1)),
            Self::AllProcessors => Value::Integer(facts.processors.into()),
            Self::QuarterOfMachine => Value::Size((machine / 4).div_ceil(1 << 30) << 30),
        })
    }

    /// In people's words.
    pub fn describe(self) -> String {
        match self {
            Self::Unset(meaning) => meaning.into(),
            Self::HalfOfMemory => "half of the host's memory".into(),
            Self::AllProcessors => "all of the host's".into(),
            Self::QuarterOfMachine => "a quarter of the virtual machine's memory, rounded up to a GB".into(),
            other => {
                let value = other.value(&HostFacts::default(), 0);
                format!("`{}`", value.map(|v| v.to_string()).unwrap_or_default())
            }
        }
    }
}

impl Table {
    /// Finds a key, in any case.
    pub fn find(&self, section: &str, name: &str) -> Option<&'static Key> {
        let same =
            |key: &&Key| key.section.eq_ignore_ascii_case(section) && key.name.eq_ignore_ascii_case(name);
        self.keys.iter().find(same)
    }

    /// Where somebody may have meant a key to stand who wrote it under another section or into another file.
    pub(crate) fn misplaced(&'static self, name: &str) -> Option<String> {
        let named = |table: &'static Self| table.keys.iter().find(|key| key.name.eq_ignore_ascii_case(name));
        if let Some(key) = named(self) {
            return Some(format!("it belongs under {}", key.heading(None)));
        }
        let (table, key) = self.neighbours.iter().find_map(|table| Some((table, named(table)?)))?;
        Some(format!("it belongs into {}, under {}", table.file, key.heading(None)))
    }
}

impl Key {
    /// Whether its section is followed by a distribution's name.
    pub fn is_of_a_distribution(&self) -> bool {
        self.section == SUBSECTION
    }

    /// Its section as the file has it.
    pub fn heading(&self, subsection: Option<&str>) -> String {
        match (self.is_of_a_distribution(), subsection) {
            (true, name) => format!("[{} {}]", self.section, quote(name.unwrap_or("NAME"))),
            (false, _) => format!("[{}]", self.section),
        }
    }

    /// `section.name`, as people write of it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}
