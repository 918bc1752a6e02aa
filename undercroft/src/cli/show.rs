//! Tables that align, and JSON.

use std::{fmt::Write, time::Duration};

use undercroft::service::wire::{GuestMemory, Listed, Listening, Offer, Status, Vm};

use super::action::Style;

/// The list.
pub(super) fn list(style: Style, all: &[Listed]) -> String {
    match style {
        Style::Quiet => all.iter().fold(String::new(), |text, one| text + &one.name + "\n"),
        Style::Json => json(&all),
        Style::Wsl { verbose: false } => {
            let mut text = "undercroft distributions:\n".to_owned();
            for one in all {
                let _ = writeln!(text, "{}{}", one.name, if one.default { " (Default)" } else { "" });
            }
            text
        }
        Style::Wsl { verbose: true } => {
            let width = widest(all, 4) + 4;
            let mut text = format!("  {:<width$}{:<16}VERSION\n", "NAME", "STATE");
            for one in all {
                let mark = if one.default { '*' } else { ' ' };
                let _ = writeln!(text, "{mark} {:<width$}{:<16}2", one.name, one.state.name());
            }
            text
        }
        Style::Ours { verbose } => {
            let width = widest(all, 4);
            let mut text = match verbose {
                true => format!("  {:<width$}  {:<10}  {:>9}  WHY\n", "NAME", "STATE", "DISK"),
                false => String::new(),
            };
            for one in all {
                let mark = if one.default { '*' } else { ' ' };
                let line = match verbose {
                    true => format!(
                        "{mark} {:<width$}  {:<10}  {:>9}  {}",
                        one.name,
                        one.state.name(),
                        size(one.disk),
                        one.why
                    ),
                    false => format!("{mark} {:<width$}  {}", one.name, one.state.name()),
                };
                let _ = writeln!(text, "{}", line.trim_end());
            }
            text
        }
    }
}

/// What is listened for, a line each.
pub(super) fn ports(all: &[Listening]) -> String {
    if all.is_empty() {
        return "nothing is listened for\n".into();
    }
    let column = |of: fn(&Listening) -> &str, least: usize| {
        all.iter().map(|one| of(one).len()).max().unwrap_or(0).max(least)
    };
    let outside = |one: &Listening| one.outside.clone().unwrap_or_else(|| "-".into());
    let first = all.iter().map(|one| outside(one).len()).max().unwrap_or(0).max(7);
    let second = column(|one| &one.inside, 6);
    let third = column(|one| one.distribution.as_deref().unwrap_or("-"), 12);
    let mut text =
        format!("{:<first$}  {:<second$}  {:<third$}  PROGRAM\n", "ON HOST", "INSIDE", "DISTRIBUTION");
    for one in all {
        let name = one.distribution.as_deref().unwrap_or("-");
        let trouble = one.trouble.as_ref().map(|why| format!("  ({why})")).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:<first$}  {:<second$}  {name:<third$}  {}{trouble}",
            outside(one),
            one.inside,
            one.program
        );
    }
    text
}

/// What can be installed by name.
pub(super) fn offers(all: &[Offer]) -> String {
    let width = all.iter().map(|one| one.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("  {:<width$}  FRIENDLY NAME\n", "NAME");
    for one in all {
        let mark = if one.default { '*' } else { ' ' };
        let _ = writeln!(text, "{mark} {:<width$}  {}", one.name, one.friendly_name);
    }
    text
}

fn widest(all: &[Listed], least: usize) -> usize {
    all.iter().map(|one| one.name.len()).max().unwrap_or(0).max(least)
}

/// What runs, and what it takes. With an earlier look, and how long ago that was, CPU time is how much of a CPU it was since then.
pub(super) fn status(status: &Status, before: Option<(&Status, Duration)>) -> String {
    let mut text = String::new();
    match &status.vm {
        None => text.push_str("virtual machine: off\n"),
        Some(vm) => {
            let _ = writeln!(
                text,
                "virtual machine: kernel {}, {} CPUs, up {} (process {})\n  memory on the host: {} of {} at most\n{}  CPU{}: {}\n  network: {}\n{}  {}",
                vm.kernel,
                vm.cpus,
                time(vm.up),
                vm.pid,
                size(vm.resident),
                size(vm.memory),
                vm.guest.map(inside).unwrap_or_default(),
                if before.is_some() { "" } else { " time" },
                cpu(vm.cpu_us, before.map(|(before, since)| (before.vm.as_ref().map(|vm| vm.cpu_us), since))),
                vm.network,
                vm.folders.iter().map(|folder| format!("  folder: {folder}\n")).collect::<String>(),
                vm.why
            );
        }
    }
    if !status.distributions.is_empty() {
        text.push('\n');
        text.push_str(&users(&status.distributions, before));
    }
    if !status.notes.is_empty() {
        text.push_str("\nSince the service runs:\n");
        for note in &status.notes {
            let _ = writeln!(text, "  {note}");
        }
    }
    text
}

/// The machine's memory, as its kernel has it.
fn inside(memory: GuestMemory) -> String {
    let GuestMemory { total, available, swap, swap_used } = memory;
    let used = size(total.saturating_sub(available));
    let swap = match swap {
        0 => String::new(),
        swap => format!(", swap {} of {}", size(swap_used), size(swap)),
    };
    format!("  memory in the guest: {used} of {}{swap}\n", size(total))
}

/// CPU time, or how much of a CPU it was since an earlier look.
fn cpu(now_us: u64, before: Option<(Option<u64>, Duration)>) -> String {
    match before {
        // One that has been started since then has used all of it since then.
        Some((then, since)) => {
            let used = now_us.checked_sub(then.unwrap_or(0)).unwrap_or(now_us);
            format!("{:.0} %", used as f64 * 100.0 / (since.as_micros().max(1) as f64))
        }
        None => match now_us {
            0..100_000_000 => format!("{:.1} s", now_us as f64 / 1e6),
            _ => time(now_us / 1_000_000),
        },
    }
}

/// The distributions, and what each uses.
fn users(all: &[Listed], before: Option<(&Status, Duration)>) -> String {
    let width = widest(all, 4);
    let mut text =
        format!("  {:<width$}  {:<10}  {:>9}  {:>7}  {:>9}  WHY\n", "NAME", "STATE", "MEMORY", "CPU", "DISK");
    for one in all {
        let mark = if one.default { '*' } else { ' ' };
        let then = before.map(|(before, since)| {
            let then = before.distributions.iter().find(|then| then.name == one.name);
            (then.and_then(|then| Some(then.used?.cpu_us)), since)
        });
        let (memory, cpu) = match one.used {
            Some(used) => (size(used.memory), cpu(used.cpu_us, then)),
            None => Default::default(),
        };
        let line = format!(
            "{mark} {:<width$}  {:<10}  {memory:>9}  {cpu:>7}  {:>9}  {}",
            one.name,
            one.state.name(),
            size(one.disk),
            one.why
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The virtual machines: one line, however many distributions run.
pub(super) fn vms(vm: Option<&Vm>, running: usize) -> String {
    let Some(vm) = vm else { return "no virtual machine runs\n".into() };
    format!(
        "{:<12}{:<10}{:<10}{:<16}DISTRIBUTIONS\n{:<12}{:<10}{:<10}{:<16}{running}\n",
        "VM",
        "PROCESS",
        "UP",
        "MEMORY",
        "undercroft",
        vm.pid,
        time(vm.up),
        size(vm.resident),
    )
}

pub(super) fn json(what: &impl serde::Serialize) -> String {
    // Plain data: it has a JSON.
    serde_json::to_string_pretty(what).unwrap_or_default() + "\n"
}

/// Bytes in the largest unit that leaves a number of at most four digits.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use undercroft::service::wire::{Doing, Used};

    use super::*;

    fn some() -> Vec<Listed> {
        let one = |name: &str, default, state, why: &str, disk| Listed {
            name: name.into(),
            default,
            state,
            sessions: 0,
            why: why.into(),
            stops_in: None,
            used: None,
            disk,
            created: 0,
        };
        vec![
            one("Ubuntu-24.04", true, Doing::Running, "1 session", 3 << 30),
            one("deb", false, Doing::Running, "idle, stops in 12 s", 528 << 10),
            one("AlmaLinux-9", false, Doing::Stopped, "", 40 << 20),
        ]
    }

    #[test]
    fn lists_are_those_of_the_reference_system() {
        insta::assert_snapshot!(list(Style::Wsl { verbose: true }, &some()), @r"
          NAME            STATE           VERSION
        * Ubuntu-24.04    Running         2
          deb             Running         2
          AlmaLinux-9     Stopped         2
        ");
        insta::assert_snapshot!(list(Style::Wsl { verbose: false }, &some()), @r"
        undercroft distributions:
        Ubuntu-24.04 (Default)
        deb
        AlmaLinux-9
        ");
    }

    #[test]
    fn our_own_lists_say_why() {
        insta::assert_snapshot!(list(Style::Ours { verbose: true }, &some()), @r"
          NAME          STATE            DISK  WHY
        * Ubuntu-24.04  Running       3.0 GiB  1 session
          deb           Running       528 KiB  idle, stops in 12 s
          AlmaLinux-9   Stopped      40.0 MiB
        ");
        insta::assert_snapshot!(list(Style::Quiet, &some()), @r"
        Ubuntu-24.04
        deb
        AlmaLinux-9
        ");
    }

    #[test]
    fn a_status_is_one_page() {
        let vm = Vm {
            pid: 4711,
            kernel: "6.12.117".into(),
            cpus: 4,
            memory: 8 << 30,
            guest: Some(GuestMemory { total: 1 << 30, available: 700 << 20, swap: 2 << 30, swap_used: 0 }),
            cpu_us: 12_340_000,
            resident: 312 << 20,
            up: 130,
            network: "nat".into(),
            folders: vec!["/src in deb is /home/ada/src, read-only".into()],
            why: "3 distributions".into(),
            timeline: String::new(),
        };
        let mut all = Status {
            version: "0.1.0".into(),
            pid: 1,
            vm: Some(vm),
            notes: vec!["the virtual machine ended, and every distribution in it: killed".into()],
            distributions: some(),
        };
        all.distributions[0].used = Some(Used { memory: 150 << 20, cache: 1 << 20, cpu_us: 8_100_000 });
        all.distributions[1].used = Some(Used { memory: 3 << 20, cache: 0, cpu_us: 150_000 });
        let mut later = all.clone();
        later.distributions[0].used = Some(Used { memory: 151 << 20, cache: 1 << 20, cpu_us: 9_300_000 });
        later.vm.as_mut().unwrap().cpu_us += 1_400_000;
        later.notes.clear();
        insta::assert_snapshot!(status(&later, Some((&all, Duration::from_secs(1)))), @r"
        virtual machine: kernel 6.12.117, 4 CPUs, up 2 min (process 4711)
          memory on the host: 312 MiB of 8.0 GiB at most
          memory in the guest: 324 MiB of 1.0 GiB, swap 0 B of 2.0 GiB
          CPU: 140 %
          network: nat
          folder: /src in deb is /home/ada/src, read-only
          3 distributions

          NAME          STATE          MEMORY      CPU       DISK  WHY
        * Ubuntu-24.04  Running       151 MiB    120 %    3.0 GiB  1 session
          deb           Running       3.0 MiB      0 %    528 KiB  idle, stops in 12 s
          AlmaLinux-9   Stopped                          40.0 MiB
        ");
        insta::assert_snapshot!(status(&all, None), @r"
        virtual machine: kernel 6.12.117, 4 CPUs, up 2 min (process 4711)
          memory on the host: 312 MiB of 8.0 GiB at most
          memory in the guest: 324 MiB of 1.0 GiB, swap 0 B of 2.0 GiB
          CPU time: 12.3 s
          network: nat
          folder: /src in deb is /home/ada/src, read-only
          3 distributions

          NAME          STATE          MEMORY      CPU       DISK  WHY
        * Ubuntu-24.04  Running       150 MiB    8.1 s    3.0 GiB  1 session
          deb           Running       3.0 MiB    0.1 s    528 KiB  idle, stops in 12 s
          AlmaLinux-9   Stopped                          40.0 MiB

        Since the service runs:
          the virtual machine ended, and every distribution in it: killed
        ");
        insta::assert_snapshot!(vms(all.vm.as_ref(), 2), @r"
        VM          PROCESS   UP        MEMORY          DISTRIBUTIONS
        undercroft  4711      2 min     312 MiB         2
        ");
    }
}
