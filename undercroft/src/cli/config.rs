//! `undercroft config`: every key, its value, and where that comes from.

use undercroft::service::{Paths, Settings};
use undercroft_config::Row;

use super::{perform::say, show};

/// Shows the rows whose key contains a word.
pub(super) fn config(wanted: Option<&str>, json: bool) -> anyhow::Result<()> {
    let paths = Paths::of_user()?;
    let settings = Settings::read(&paths);
    for warning in &settings.file.warnings {
        eprintln!("warning: {warning}");
    }
    let names = settings.file.distributions();
    let mut rows = settings.file.rows(&settings.facts, &names);
    if let Some(wanted) = wanted {
        let wanted = wanted.to_ascii_lowercase();
        rows.retain(|row| name(row).to_ascii_lowercase().contains(&wanted));
    }
    let text = match json {
        true => show::json(
            &rows
                .iter()
                .map(|row| {
                    serde_json::json!({
                        "key": name(row),
                        "value": row.value.as_ref().map(ToString::to_string),
                        "origin": row.origin.to_string(),
                        "acts": row.key.acts.name(),
                    })
                })
                .collect::<Vec<_>>(),
        ),
        false => {
            table(&rows)
                + &format!(
                    "\nThe file is {}; docs/configuration.md has every key.\n",
                    paths.configuration.display()
                )
        }
    };
    say(&text)
}

/// As git would name it: `wsl2.memory`, `distribution.debian.memory`.
fn name(row: &Row) -> String {
    match &row.subsection {
        None => row.key.full_name(),
        Some(of) => {
            let full = row.key.full_name();
            let key = full.rsplit('.').next().unwrap_or_default();
            format!("distribution.{of}.{key}")
        }
    }
}

fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; 3]> =
        rows.iter().map(|row| [name(row), row.shown(), row.origin.to_string()]).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1).clamp(5, 40));
    let mut text = format!("{:<first$}  {:<second$}  ORIGIN\n", "KEY", "VALUE");
    for [name, value, origin] in &lines {
        text.push_str(&format!("{name:<first$}  {value:<second$}  {origin}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use undercroft_config::{HostFacts, Settings, keys::HOST};

    use super::*;

    #[test]
    fn values_stand_beside_their_origin() {
        let text = "[wsl2]\nmemory = 4GB\n[distribution \"deb\"]\nkeepAlive = true\n";
        let file = Settings::parse(&HOST, Path::new("/c"), text.as_bytes());
        let facts = HostFacts { memory: 16 << 30, processors: 8, home: None };
        let rows = file.rows(&facts, &["deb"]);
        let shown = |wanted: &str| rows.iter().filter(|row| name(row) == wanted).cloned().collect::<Vec<_>>();
        let all =
            [shown("wsl2.memory"), shown("wsl2.processors"), shown("distribution.deb.keepAlive")].concat();
        insta::assert_snapshot!(table(&all), @r"
        KEY                         VALUE  ORIGIN
        wsl2.memory                 4GB    /c:2
        wsl2.processors             8      default
        distribution.deb.keepAlive  true   /c:4
        ");
    }
}
