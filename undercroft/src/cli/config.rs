//! `undercroft config`: every key, its value, where that comes from, and when a change of it acts.
//!
//! A key of .wslconfig is called as git would call it: `wsl2.memory`, `distribution.debian.memory`. One of a distribution's own
//! files has the distribution before it, as a file there has: `debian:boot.systemd`.

use std::path::Path;

use undercroft::{
    Store,
    error::chain,
    service::{Paths, Settings},
    store::{Record, StoreError},
};
use undercroft_config::{
    self as config, Acts, Origin, Row, Table, Value,
    keys::{DISTRIBUTION, PACKAGE},
};

use super::{action::Config, perform::say, run, show};

/// What is set by nobody's command: a program that uses the library did.
const RECORD: &str = "the store's record";
const USER: &str = "undercroft set-default-user or oobe.defaultUid";

/// A key, for people.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    key: String,
    row: Row,
    /// When a change acts, made where this value was.
    acts: Acts,
}

/// Shows the keys that are wanted.
pub(super) fn config(wanted: &Config) -> anyhow::Result<()> {
    let paths = Paths::of_user()?;
    let settings = Settings::read(&paths);
    let mut warnings = settings.file.warnings.clone();
    let records = records(&paths);
    let mut lines = of_host(&settings, &records);
    match &wanted.distribution {
        None => lines.extend(records.iter().filter_map(default_user)),
        Some(name) => {
            let record = records.iter().find(|record| record.name.eq_ignore_ascii_case(name));
            let record = record.ok_or_else(|| undercroft::Error::from(StoreError::Unknown(name.clone())))?;
            for table in [&DISTRIBUTION, &PACKAGE] {
                let text = run::file_of(&record.name, table.file)?;
                let file = own_file(table, record, &text);
                lines.extend(of_own_file(&file, record, &settings));
                warnings.extend(file.warnings);
            }
            let others = records.iter().filter(|other| other.name != record.name);
            lines.extend(others.filter_map(default_user));
        }
    }
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    if let Some(wanted) = &wanted.wanted {
        let wanted = wanted.to_ascii_lowercase();
        lines.retain(|line| line.key.to_ascii_lowercase().contains(&wanted));
    }
    let text = match wanted.json {
        true => json(&lines),
        false => {
            table(&lines)
                + &format!(
                    "\nThe file is {}; docs/configuration.md has every key.\n",
                    paths.configuration().display()
                )
        }
    };
    say(&text)
}

/// What the store knows of distributions. Nothing is made only to say that there is none.
fn records(paths: &Paths) -> Vec<Record> {
    if !paths.data.exists() {
        return Vec::new();
    }
    let listed = Store::open(&paths.data).and_then(|store| {
        // Whoever opens it first is who can tell.
        for cleared in store.cleared() {
            eprintln!("warning: {cleared}");
        }
        store.list()
    });
    match listed {
        Ok(listed) => listed.distributions,
        Err(error) => {
            eprintln!("warning: which distributions there are is not known: {}", chain(&error));
            Vec::new()
        }
    }
}

/// The host's file, and what was set for distributions without it.
fn of_host(settings: &Settings, records: &[Record]) -> Vec<Line> {
    let mut names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    let known = |name: &&str| records.iter().any(|record| record.name.eq_ignore_ascii_case(name));
    names.extend(settings.file.distributions().into_iter().filter(|name| !known(name)));
    names.sort_unstable_by_key(|name| name.to_ascii_lowercase());
    let mut rows = settings.file.rows(&settings.facts, &names);
    for row in rows.iter_mut().filter(|row| row.origin == Origin::Default) {
        let of = row.subsection.as_deref();
        let record = records.iter().find(|record| Some(record.name.as_str()) == of);
        if let Some((value, by)) = record.and_then(|record| recorded(row.key.name, record)) {
            (row.value, row.origin) = (Some(value), Origin::Set(by));
        }
    }
    let line = |row: Row| {
        let key = match &row.subsection {
            None => row.key.full_name(),
            Some(of) => format!("{}.{of}.{}", row.key.section, row.key.name),
        };
        Line { key, acts: row.key.acts, row }
    };
    rows.into_iter().map(line).collect()
}

/// What a record says where the host's file says nothing.
fn recorded(key: &str, record: &Record) -> Option<(Value, &'static str)> {
    let set = &record.settings;
    let value = match key {
        "keepAlive" => return set.keep_alive.then_some((Value::Bool(true), "undercroft keep-alive")),
        "user" if !set.own_users => Value::Text("shared".into()),
        "memory" => Value::Size(set.limits.memory?),
        "processors" => Value::Milli(set.limits.cpu_milli?),
        "processes" => Value::Integer(set.limits.pids?.into()),
        "diskBandwidth" => Value::Size(set.limits.io_bytes?),
        _ => return None,
    };
    Some((value, RECORD))
}

/// Who sessions are where the distribution's own file does not say, if that was set.
fn default_user(record: &Record) -> Option<Line> {
    let uid = record.settings.default_uid?;
    let key = DISTRIBUTION.find("user", "default")?;
    let row = Row {
        key,
        subsection: Some(record.name.clone()),
        value: Some(Value::Text(uid.to_string())),
        origin: Origin::Set(USER),
    };
    Some(Line { key: format!("{}:{}", record.name, key.full_name()), row, acts: Acts::AtOnce })
}

/// A distribution's own file, which anybody in it may have written.
fn own_file(table: &'static Table, record: &Record, text: &[u8]) -> config::Settings {
    let path = format!("{}:{}", record.name, table.file);
    config::Settings::parse(table, Path::new(&path), text)
}

fn of_own_file(file: &config::Settings, record: &Record, settings: &Settings) -> Vec<Line> {
    let user = default_user(record);
    let line = |row: Row| {
        let key = format!("{}:{}", record.name, row.key.full_name());
        let user = user.clone().filter(|user| user.key == key && row.origin == Origin::Default);
        user.unwrap_or(Line { key, acts: row.key.acts, row })
    };
    file.rows(&settings.facts, &[]).into_iter().map(line).collect()
}

fn json(lines: &[Line]) -> String {
    let one = |Line { key, row, acts }: &Line| {
        serde_json::json!({
            "key": key,
            "value": row.value.as_ref().map(ToString::to_string),
            "origin": row.origin.to_string(),
            "acts": acts.name(),
        })
    };
    show::json(&lines.iter().map(one).collect::<Vec<_>>())
}

fn table(lines: &[Line]) -> String {
    let words = |acts: Acts| match acts {
        Acts::AtOnce => "at once",
        Acts::NextInstall => "next install",
        Acts::DistributionStart => "its next start",
        Acts::MachineStart => "machine's next start",
    };
    let columns = |Line { key, row, acts }: &Line| {
        [key.clone(), row.shown(), words(*acts).into(), row.origin.to_string()]
    };
    let cells: Vec<[String; 4]> = lines.iter().map(columns).collect();
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let (first, second, third) = (width(0).max(3), width(1).clamp(5, 40), width(2).max(12));
    let mut text = format!("{:<first$}  {:<second$}  {:<third$}  ORIGIN\n", "KEY", "VALUE", "A CHANGE ACTS");
    for [key, value, acts, origin] in &cells {
        text.push_str(&format!("{key:<first$}  {value:<second$}  {acts:<third$}  {origin}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use undercroft_config::{HostConfig, HostFacts, keys::HOST};

    use super::*;

    fn settings(text: &str) -> Settings {
        let file = config::Settings::parse(&HOST, Path::new("/c"), text.as_bytes());
        let facts = HostFacts { memory: 16 << 30, processors: 8, home: None };
        Settings { host: HostConfig::new(&file, &facts), file, facts, patience: 1 }
    }

    fn record(name: &str) -> Record {
        let json = serde_json::json!({
            "version": 2, "name": name, "content": "flat", "created": 0,
            "settings": { "keep_alive": true, "default_uid": 1000,
                          "limits": { "memory": 1 << 30, "cpu_milli": null, "pids": null, "io_bytes": null } },
        });
        serde_json::from_value(json).unwrap()
    }

    fn only(lines: Vec<Line>, wanted: &[&str]) -> Vec<Line> {
        lines.into_iter().filter(|line| wanted.contains(&line.key.as_str())).collect()
    }

    #[test]
    fn values_stand_beside_their_origin() {
        let settings = settings("[wsl2]\nmemory = 4GB\n[distribution \"DEB\"]\nmemory = 2GB\n");
        let records = [record("alp"), record("deb")];
        let wanted = [
            "wsl2.memory",
            "wsl2.processors",
            "distribution.alp.keepAlive",
            "distribution.alp.memory",
            "distribution.deb.memory",
            "distribution.deb.processes",
        ];
        let mut lines = only(of_host(&settings, &records), &wanted);
        lines.extend(default_user(&records[0]));
        insta::assert_snapshot!(table(&lines), @r"
        KEY                         VALUE                         A CHANGE ACTS         ORIGIN
        wsl2.memory                 4GB                           machine's next start  /c:2
        wsl2.processors             8                             machine's next start  default
        distribution.alp.keepAlive  true                          at once               undercroft keep-alive
        distribution.alp.memory     1GB                           its next start        the store's record
        distribution.deb.memory     2GB                           its next start        /c:4
        distribution.deb.processes  (no limit but the machine's)  its next start        default
        alp:user.default            1000                          at once               undercroft set-default-user or oobe.defaultUid
        ");
        assert!(json(&lines).contains(r#""acts": "at the virtual machine's next start""#));
    }

    #[test]
    fn a_distributions_own_files_are_named_with_it() {
        let record = record("deb");
        let file =
            own_file(&DISTRIBUTION, &record, b"[boot]\nsystemd = true\n[user]\ndefault = ada\n[x]\ny = 1\n");
        let wanted = ["deb:boot.systemd", "deb:boot.command", "deb:user.default"];
        let lines = only(of_own_file(&file, &record, &settings("")), &wanted);
        insta::assert_snapshot!(table(&lines), @r"
        KEY               VALUE   A CHANGE ACTS   ORIGIN
        deb:boot.systemd  true    its next start  deb:/etc/wsl.conf:2
        deb:boot.command  (none)  its next start  default
        deb:user.default  ada     its next start  deb:/etc/wsl.conf:4
        ");
        // It is silent on who sessions are: what was set counts.
        let silent = of_own_file(&own_file(&DISTRIBUTION, &record, b""), &record, &settings(""));
        assert_eq!(only(silent, &["deb:user.default"]), [default_user(&record).unwrap()]);
        assert_eq!(file.warnings[0].to_string(), "deb:/etc/wsl.conf:6: `x.y` is not known, and is not used");
    }
}
