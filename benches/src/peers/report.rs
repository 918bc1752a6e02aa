//! `docs/performance.md`: the tables, in the words of `performance.md.in` beside this file.

use std::fmt::Write as _;

use super::{Row, network};
use crate::{counts::Counts, scenario};

const TEMPLATE: &str = include_str!("performance.md.in");

/// All that the document tells.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// On which day, at which commit, with what.
    pub measured: String,
    /// Tools that start a program in a root file system.
    pub containers: &'a [Row],
    /// Monitors of virtual machines.
    pub monitors: &'a [Row],
    /// A Debian with systemd, from the launch to its last job.
    pub systemd: &'a [Row],
    /// Who carries traffic from the host's loopback to a guest.
    pub traffic: &'a [network::Row],
    /// Our own parts.
    pub scenario: &'a scenario::Result,
    /// Our own parts with that Debian.
    pub debian: &'a scenario::Result,
    /// How our distribution's root was made, and who its users are.
    pub root: String,
}

impl Report<'_> {
    /// The document.
    pub fn text(&self) -> String {
        let mut containers = self.ours();
        containers.extend_from_slice(self.containers);
        TEMPLATE
            .replace("{{measured}}", &self.measured)
            .replace("{{root}}", &self.root)
            .replace("{{containers}}", &table(&containers))
            .replace("{{monitors}}", &table(self.monitors))
            .replace("{{systemd}}", &table(self.systemd))
            .replace("{{traffic}}", &traffic(self.traffic))
            .replace("{{parts}}", &self.parts())
            .replace("{{steps}}", &self.steps())
            .replace("{{values}}", &self.values())
    }

    /// Our rows of the containers' table.
    fn ours(&self) -> Vec<Row> {
        let row = |name: &str, what: &str, counts: Option<Counts>| Row {
            name: name.into(),
            what: what.into(),
            counts: counts.ok_or_else(|| "was not measured".into()),
        };
        let program = |name: &str| self.scenario.part(name).and_then(|part| part.program);
        vec![
            row("undercroft, a program in a running distribution", "nothing new", program("exec")),
            row(
                "undercroft, launch → ready",
                "PIDs, mounts, UTS, IPC, cgroups; proc, dev, sys; a root on a disk of its own",
                self.scenario.part("launch").map(|part| part.whole),
            ),
            row("undercroft, launch and a program in it", "the same", program("run")),
        ]
    }

    fn parts(&self) -> String {
        let mut text = HEAD.replace("{what}", "part");
        let with_systemd = self.debian.parts.iter().filter(|part| part.name.starts_with("systemd"));
        for part in self.scenario.parts.iter().chain(with_systemd) {
            line(&mut text, &part.name, "", &part.whole);
        }
        text
    }

    fn steps(&self) -> String {
        let mut text = String::from("| step of a launch | M |\n| --- | ---: |\n");
        for (name, nanoseconds) in self.scenario.part("launch").map_or(&[][..], |part| &part.steps) {
            let _ = writeln!(text, "| {name} | {} |", millions(*nanoseconds));
        }
        text
    }

    fn values(&self) -> String {
        let mut text = String::from("| memory of the host's | |\n| --- | ---: |\n");
        let with_systemd = self.debian.values.iter().filter(|(name, ..)| name.ends_with("systemd"));
        for (name, value, unit) in self.scenario.values.iter().chain(with_systemd) {
            let name = match name.as_str() {
                "vmm_resident" => "the VMM's, beyond its guest's",
                "idle_last" => "the last idle distribution of several",
                "idle_systemd" => "a second idle Debian with systemd, from the same base",
                "idle_mean" => "each further idle distribution, on average",
                name => name,
            };
            let _ = writeln!(text, "| {name} | {value} {unit} |");
        }
        text
    }
}

const HEAD: &str = "| {what} | M in all | host's kernel | host's programs | guest's kernel | guest's programs | VM entries |\n\
                    | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";

/// Rows with their numbers, the cheapest first; then those without, by name.
fn table(rows: &[Row]) -> String {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| row.counts.as_ref().map_or(u64::MAX, Counts::total));
    let mut text = HEAD.replace("{what}", "tool, and what it separates or has");
    for row in &rows {
        if let Ok(counts) = &row.counts {
            line(&mut text, &row.name, &row.what, counts);
        }
    }
    let absent: Vec<String> =
        rows.iter().filter_map(|row| Some(format!("{}: {}", row.name, row.counts.as_ref().err()?))).collect();
    if !absent.is_empty() {
        let _ = writeln!(text, "\nNot measured: {}.", absent.join("; "));
    }
    text
}

fn line(text: &mut String, name: &str, what: &str, counts: &Counts) {
    let what = if what.is_empty() { String::new() } else { format!(": {what}") };
    let _ = writeln!(
        text,
        "| **{name}**{what} | {} | {} | {} | {} | {} | {} |",
        millions(counts.total()),
        millions(counts.l1_kernel),
        millions(counts.l1_user),
        millions(counts.l2_kernel),
        millions(counts.l2_user),
        counts.vmruns
    );
}

/// A table for each kind of traffic, in thousands for one MiB or connection; the cheapest first.
pub fn traffic(rows: &[network::Row]) -> String {
    let mut text = String::new();
    for (at, kind) in ["a MiB to the guest", "a MiB from the guest", "a connection"].into_iter().enumerate() {
        let measured = rows.iter().filter_map(|row| Some((row, row.counts.as_ref().ok()?[at])));
        let mut measured: Vec<_> = measured.collect();
        let number = |row: &network::Row| [network::MEBIBYTES, network::MEBIBYTES, row.connections][at];
        measured.sort_by_key(|(row, counts)| counts.total() / u64::from(number(row).max(1)));
        text.push_str(&HEAD.replace("{what}", kind).replace("M in all", "thousands in all"));
        for (row, counts) in measured {
            let number = number(row);
            let each = |count: u64| thousands(count, number);
            let shares: Vec<String> = counts.shares().iter().map(|(_, count)| each(*count)).collect();
            let entries = counts.vmruns as f64 / f64::from(number);
            let _ = writeln!(
                text,
                "| **{}**: {} | {} | {} | {entries:.2} |",
                row.name,
                row.what,
                each(counts.total()),
                shares.join(" | ")
            );
        }
        text.push('\n');
    }
    for row in rows {
        if let Err(reason) = &row.counts {
            let _ =
                writeln!(text, "Not measured: {}: {}.", row.name, reason.lines().next().unwrap_or_default());
        }
    }
    text
}

fn thousands(count: u64, parts: u32) -> String {
    let each = count as f64 / f64::from(parts) / 1e3;
    if each < 10.0 { format!("{each:.2}") } else { format!("{each:.0}") }
}

/// Three significant digits or so.
fn millions(count: u64) -> String {
    let millions = count as f64 / 1e6;
    match count {
        0 => "0".into(),
        1..10_000_000 => format!("{millions:.2}"),
        10_000_000..100_000_000 => format!("{millions:.1}"),
        _ => format!("{millions:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_comes_first_and_who_is_absent_is_named() {
        let row = |name: &str, counts| Row { name: name.into(), what: "x".into(), counts };
        let of = |count| Ok(Counts { l1_kernel: count, vmruns: 3, ..Counts::default() });
        let rows = [row("dear", of(12_340_000)), row("cheap", of(110_000)), row("gone", Err("no".into()))];
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| **cheap**: x | 0.11 | 0.11 | 0 | 0 | 0 | 3 |",
                "| **dear**: x | 12.3 | 12.3 | 0 | 0 | 0 | 3 |",
                "",
                "Not measured: gone: no.",
            ]
        );
    }

    #[test]
    fn the_document_has_nothing_left_to_fill_in() {
        let report = Report {
            measured: "today".into(),
            containers: &[],
            monitors: &[],
            systemd: &[],
            traffic: &[],
            scenario: &scenario::Result::default(),
            debian: &scenario::Result::default(),
            root: "flat".into(),
        };
        assert!(!report.text().contains("{{"));
    }
}
