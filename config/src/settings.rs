//! A file, read by its table: values, warnings, and rows for people to read.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    facts::HostFacts,
    grammar::{self, Entry, excerpt},
    key::{Fate, Key, Table},
    value::Value,
};

/// The longest file that is read, in bytes: it is a few lines of text.
pub const LONGEST: u64 = 1 << 20;

/// What a file sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its keys.
    pub table: &'static Table,
    /// Where it was read from.
    pub path: PathBuf,
    /// What it sets, in its order.
    pub set: Vec<Setting>,
    /// What is wrong with it: all of it is passed over.
    pub warnings: Vec<Warning>,
}

/// A key that a file gives a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// The distribution whose key it is, if it is of one.
    pub subsection: Option<String>,
    /// The value.
    pub value: Value,
    /// The line, from 1.
    pub line: usize,
}

/// Keys are the tables' own: the same one is at the same place.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// Something wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path.display(), self.text),
            line => write!(f, "{}:{line}: {}", self.path.display(), self.text),
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No file sets it.
    Default,
    /// A line of a file.
    Line(PathBuf, usize),
    /// It was set by this, and is kept beside the files.
    Set(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Set(by) => f.write_str(by),
        }
    }
}

/// A key with its value and where that comes from, for `undercroft config`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The key.
    pub key: &'static Key,
    /// The distribution whose key it is, if it is of one.
    pub subsection: Option<String>,
    /// The value; `None` where there is none, and [`Default::describe`](crate::Default::describe) says what that means.
    pub value: Option<Value>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Row {
    /// The value for people: as it would be written, or in words.
    pub fn shown(&self) -> String {
        self.value.as_ref().map_or_else(|| format!("({})", self.key.default.describe()), Value::to_string)
    }
}

impl Settings {
    /// A file that says nothing.
    pub fn none(table: &'static Table, path: &Path) -> Self {
        Self { table, path: path.into(), set: Vec::new(), warnings: Vec::new() }
    }

    /// Reads a file of this host's. That there is none is no warning.
    pub fn read(table: &'static Table, path: &Path) -> Self {
        use io::Read;
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
        let mut settings = Self::parse(table, path, &bytes);
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => settings.warn(0, error.to_string()),
            _ => {}
        }
        settings
    }

    /// Reads a file's bytes, of which the first [`LONGEST`] count; `path` is for the warnings.
    pub fn parse(table: &'static Table, path: &Path, bytes: &[u8]) -> Self {
        let mut settings = Self::none(table, path);
        let limit = usize::try_from(LONGEST).unwrap_or(usize::MAX);
        let document = grammar::parse(&bytes[..bytes.len().min(limit)]);
        if bytes.len() > limit {
            settings.warn(0, format!("is longer than {LONGEST} bytes; the rest is not read"));
        }
        for problem in document.problems {
            settings.warn(problem.line, problem.text);
        }
        for entry in document.entries {
            settings.take(entry);
        }
        settings.warnings.sort_by_key(|warning| warning.line);
        settings
    }

    fn warn(&mut self, line: usize, text: String) {
        self.warnings.push(Warning { path: self.path.clone(), line, text });
    }

    fn take(&mut self, entry: Entry) {
        let line = entry.line;
        if let Err(text) = self.try_take(entry) {
            self.warn(line, text);
        }
    }

    fn try_take(&mut self, entry: Entry) -> Result<(), String> {
        let Entry { section, subsection, key: name, value: text, line } = entry;
        let key = self.find(&section, subsection.as_deref(), &name)?;
        let full = key.full_name();
        if let Fate::NoMeaning(reason) = key.fate {
            return Err(format!("{full} has no meaning here, and is not used: {reason}"));
        }
        let value = key.kind.read(&text).map_err(|error| format!("{full}: {error}. It is not used"))?;
        let Some(mut value) = value else { return Ok(()) };
        if let Value::Mounts(mounts) = &mut value {
            mounts.iter_mut().for_each(|mount| mount.line = line);
        }
        let there = self.set.iter_mut().find(|s| s.key == key && same_name(&s.subsection, &subsection));
        match (there, &mut value) {
            (Some(Setting { value: Value::Mounts(all), .. }), Value::Mounts(more)) => all.append(more),
            (Some(first), _) => {
                return Err(format!("{full} was set in line {} already; this line is not used", first.line));
            }
            (None, _) => self.set.push(Setting { key, subsection, value, line }),
        }
        Ok(())
    }

    fn find(&self, section: &str, subsection: Option<&str>, name: &str) -> Result<&'static Key, String> {
        let shown = excerpt(&format!("{section}.{name}"));
        let Some(key) = self.table.find(section, name) else {
            let hint = self.table.misplaced(name).map(|hint| format!(": {hint}")).unwrap_or_default();
            return Err(format!("{shown} is not known, and is not used{hint}"));
        };
        match (key.is_of_a_distribution(), subsection) {
            (true, None | Some("")) => {
                Err(format!("{shown}: whose is it? It belongs under {}; it is not used", key.heading(None)))
            }
            (false, Some(_)) => {
                Err(format!("{shown}: expected [{section}] with no name behind it; it is not used"))
            }
            _ => Ok(key),
        }
    }

    /// What the file says of a key; `name` is a distribution's, for keys of one.
    pub fn get(&self, section: &str, key: &str, name: Option<&str>) -> Option<&Setting> {
        let name = name.map(str::to_owned);
        self.set
            .iter()
            .find(|s| s.key.section == section && s.key.name == key && same_name(&s.subsection, &name))
    }

    /// The distributions that the file names.
    pub fn distributions(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.set.iter().filter_map(|s| s.subsection.as_deref()).collect();
        names.sort_unstable_by_key(|name| name.to_ascii_lowercase());
        names.dedup_by(|a, b| a.eq_ignore_ascii_case(b));
        names
    }

    /// Every key with its value, in the table's order: those of distributions once for each in `names`. Keys without a
    /// meaning here have no rows.
    pub fn rows(&self, facts: &HostFacts, names: &[&str]) -> Vec<Row> {
        let of_machine =
            self.table.keys.iter().filter(|key| !key.is_of_a_distribution()).map(|key| (key, None));
        let of_distributions = names.iter().flat_map(|name| {
            let keys = self.table.keys.iter().filter(|key| key.is_of_a_distribution());
            keys.map(move |key| (key, Some(*name)))
        });
        of_machine
            .chain(of_distributions)
            .filter(|(key, _)| key.fate == Fate::Honoured)
            .map(|(key, name)| self.row(key, name, facts))
            .collect()
    }

    fn row(&self, key: &'static Key, name: Option<&str>, facts: &HostFacts) -> Row {
        let subsection = name.map(str::to_owned);
        match self.get(key.section, key.name, name) {
            Some(setting) => Row {
                key,
                subsection,
                value: Some(setting.value.clone()),
                origin: Origin::Line(self.path.clone(), setting.line),
            },
            None => {
                let value = key.default.value(facts, self.machine_memory(facts));
                Row { key, subsection, value, origin: Origin::Default }
            }
        }
    }

    /// The virtual machine's memory, which other defaults depend on.
    fn machine_memory(&self, facts: &HostFacts) -> u64 {
        match self.get("wsl2", "memory", None).map(|s| &s.value) {
            Some(Value::Size(bytes)) => *bytes,
            _ => facts.memory / 2,
        }
    }

    /// A key's value, the file's or the default, for the typed views. That the key is there and of the kind that they expect
    /// is what their tests show.
    pub(crate) fn value(
        &self,
        section: &str,
        name: &str,
        of: Option<&str>,
        facts: &HostFacts,
    ) -> Option<Value> {
        let key = self.table.find(section, name);
        let told = |key: &Key| !matches!(key.fate, Fate::NoMeaning(_));
        debug_assert!(key.is_some_and(told), "{section}.{name}");
        self.row(key?, of, facts).value
    }
}

/// Distributions' names are unique in any case.
fn same_name(a: &Option<String>, b: &Option<String>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        (None, None) => true,
        _ => false,
    }
}

/// Values by their types, for the typed views.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) facts: &'a HostFacts,
    /// The distribution whose keys are looked at.
    pub(crate) of: Option<&'a str>,
}

/// A getter that expects one kind of value; another kind is a mistake in a table, and a test's to find.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $kind:ident -> $type:ty;)*) => {
        $($(#[$doc])*
        pub(crate) fn $name(&self, section: &str, key: &str) -> Option<$type> {
            match self.settings.value(section, key, self.of, self.facts) {
                Some(Value::$kind(value)) => Some(value),
                other => {
                    debug_assert!(other.is_none(), "{section}.{key} is {other:?}");
                    None
                }
            }
        })*
    };
}

impl View<'_> {
    getters! {
        /// [`Value::Bool`].
        bool: Bool -> bool;
        /// [`Value::Integer`].
        integer: Integer -> i64;
        /// [`Value::Milliseconds`].
        milliseconds: Milliseconds -> Option<u32>;
        /// [`Value::Size`].
        size: Size -> u64;
        /// [`Value::Milli`].
        milli: Milli -> u32;
        /// [`Value::Umask`].
        umask: Umask -> u32;
        /// [`Value::Ports`].
        ports: Ports -> Vec<u16>;
        /// [`Value::Published`].
        published: Published -> Vec<crate::Published>;
        /// [`Value::Mounts`].
        mounts: Mounts -> Vec<crate::Mount>;
        /// [`Value::Tap`].
        tap: Tap -> crate::Tap;
        /// Text of any kind.
        text: Text -> String;
    }

    /// A path, with the home folder put in.
    pub(crate) fn path(&self, section: &str, key: &str) -> Option<PathBuf> {
        self.text(section, key).map(|text| self.facts.path(&text))
    }
}
