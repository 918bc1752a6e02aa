//! The numbers that must not grow, and the verdict over what was measured.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The budget file, beside this crate's manifest.
pub const FILE: &str = "benches/budget.toml";

/// What a measurement may exceed its budget by where the file does not say otherwise, in percent: a compiler's or a
/// dependency's next release is no alarm.
const TOLERANCE_PERCENT: f64 = 2.0;

/// The budget file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// When and at which commit the values were measured.
    pub measured: String,
    /// One for each number that has one.
    pub budget: Vec<Budget>,
}

/// What a number may be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The measurement's name.
    pub name: String,
    /// What it was, or what was promised.
    pub value: u64,
    /// In what.
    pub unit: String,
    /// Why it has a budget.
    pub reason: String,
    /// Percent by which it may be exceeded.
    #[serde(default = "tolerance")]
    pub tolerance_percent: f64,
    /// What it was made of when it was measured: whoever exceeds it is shown which of them grew.
    #[serde(default)]
    pub phases: BTreeMap<String, u64>,
}

fn tolerance() -> f64 {
    TOLERANCE_PERCENT
}

/// A number that was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// Its name.
    pub name: String,
    /// How many.
    pub value: u64,
    /// Of what.
    pub unit: &'static str,
    /// What it is made of, in order; may be empty. Phases need not be apart from each other, nor sum up.
    pub phases: Vec<(String, u64)>,
}

impl Measurement {
    /// A measurement.
    pub fn new(name: impl Into<String>, value: u64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, phases: Vec::new() }
    }

    /// The same, made of these phases.
    pub fn of(mut self, phases: impl IntoIterator<Item = (impl Into<String>, u64)>) -> Self {
        self.phases = phases.into_iter().map(|(name, value)| (name.into(), value)).collect();
        self
    }
}

/// A measurement beside its budget.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The measurement's name.
    pub name: String,
    /// What was measured.
    pub value: u64,
    /// What may be; nothing for what is measured for information only.
    pub budget: Option<u64>,
    /// In what.
    pub unit: String,
    /// Whether the budget is exceeded by more than its tolerance.
    pub exceeded: bool,
    /// What it is made of.
    pub phases: Vec<Phase>,
}

/// A phase beside what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub value: u64,
    /// What the budget file knows of it.
    pub before: Option<u64>,
}

impl Phase {
    /// By how much it grew; 0 for one that is not known.
    pub fn growth(&self) -> i64 {
        let value = i64::try_from(self.value).unwrap_or(i64::MAX);
        self.before.and_then(|before| i64::try_from(before).ok()).map_or(0, |before| value - before)
    }
}

impl Verdict {
    /// The phase that grew most, if any did.
    pub fn culprit(&self) -> Option<&Phase> {
        self.phases.iter().filter(|phase| phase.growth() > 0).max_by_key(|phase| phase.growth())
    }

    /// Phases as a table: now, before, growth; empty without any.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for phase in &self.phases {
            let before = phase.before.map_or_else(|| "-".into(), |before| before.to_string());
            let (name, value, growth) = (&phase.name, phase.value, phase.growth());
            text.push_str(&format!("  {value:>12} {before:>12} {growth:>+12}  {name}\n"));
        }
        if !text.is_empty() {
            text.insert_str(0, &format!("  {:>12} {:>12} {:>12}  phase\n", "now", "before", "growth"));
        }
        text
    }

    /// The phases in the budget file's words, for who raises or lowers the budget.
    pub fn recorded(&self) -> String {
        let phases: Vec<String> =
            self.phases.iter().map(|phase| format!("{:?} = {}", phase.name, phase.value)).collect();
        format!("phases = {{ {} }}", phases.join(", "))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = self.budget.map_or_else(|| "-".into(), |budget| budget.to_string());
        write!(f, "{} {} {budget} {}", self.name, self.value, self.unit)
    }
}

impl Budgets {
    /// Reads the file below the repository's root.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let path = root.join(FILE);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        toml::from_str(&text).map_err(|source| Error::Budget { path, source: Box::new(source) })
    }

    /// Holds measurements against their budgets.
    pub fn judge(&self, measurements: &[Measurement]) -> Vec<Verdict> {
        measurements.iter().map(|measurement| self.verdict(measurement)).collect()
    }

    /// The budgets that nothing was measured for: a misspelt name must not pass for a number that holds.
    pub fn unmeasured<'a>(&'a self, measurements: &'a [Measurement]) -> impl Iterator<Item = &'a str> {
        let names = self.budget.iter().map(|budget| &*budget.name);
        names.filter(|name| !measurements.iter().any(|measurement| measurement.name == *name))
    }

    fn verdict(&self, measurement: &Measurement) -> Verdict {
        let budget = self.budget.iter().find(|budget| budget.name == measurement.name);
        Verdict {
            name: measurement.name.clone(),
            value: measurement.value,
            budget: budget.map(|budget| budget.value),
            unit: measurement.unit.into(),
            exceeded: budget.is_some_and(|budget| {
                measurement.value as f64 > budget.value as f64 * (1.0 + budget.tolerance_percent / 100.0)
            }),
            phases: measurement
                .phases
                .iter()
                .map(|(name, value)| Phase {
                    name: name.clone(),
                    value: *value,
                    before: budget.and_then(|budget| budget.phases.get(name).copied()),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets() -> Budgets {
        toml::from_str(
            "measured = \"now\"\n[[budget]]\nname = \"a\"\nvalue = 100\nunit = \"x\"\nreason = \"r\"\n\
             [[budget]]\nname = \"b\"\nvalue = 100\nunit = \"x\"\nreason = \"r\"\ntolerance_percent = 0.0\n",
        )
        .unwrap()
    }

    #[test]
    fn two_percent_are_forgiven_unless_the_file_says_otherwise() {
        let exceeded = |name: &str, value| budgets().judge(&[Measurement::new(name, value, "x")])[0].exceeded;
        assert!(!exceeded("a", 102));
        assert!(exceeded("a", 103));
        assert!(exceeded("b", 101));
        assert!(!exceeded("without a budget", u64::MAX));
    }

    #[test]
    fn the_phase_that_grew_is_named() {
        let mut budgets = budgets();
        budgets.budget[0].phases = [("host".into(), 60), ("guest".into(), 40)].into();
        let measurement = Measurement::new("a", 110, "x").of([("host", 55), ("guest", 52), ("new", 3)]);
        let verdict = budgets.judge(&[measurement]).remove(0);
        assert_eq!(verdict.culprit().unwrap().name, "guest");
        let table = verdict.table();
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows[1..],
            [["55", "60", "-5", "host"], ["52", "40", "+12", "guest"], ["3", "-", "+0", "new"]]
        );
        assert_eq!(verdict.recorded(), "phases = { \"host\" = 55, \"guest\" = 52, \"new\" = 3 }");
    }

    #[test]
    fn a_line_is_name_value_budget_unit() {
        let lines: Vec<String> = budgets()
            .judge(&[Measurement::new("a", 1, "x"), Measurement::new("c", 2, "y")])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(lines, ["a 1 100 x", "c 2 - y"]);
    }

    #[test]
    fn a_budget_without_a_measurement_is_named() {
        let measurements = [Measurement::new("a", 1, "x")];
        assert_eq!(budgets().unmeasured(&measurements).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn the_file_is_understood() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let budgets = Budgets::read(root).unwrap();
        assert!(budgets.budget.iter().all(|budget| !budget.reason.is_empty()));
    }
}
