//! What /etc/fstab lists, mounted by the distribution's own mount(8), which knows its helpers and options.
//!
//! In a user namespace of its own a distribution can mount what its root may: tmpfs, binds, overlays, FUSE. The rest is a
//! warning in mount's words.

use std::{fs, process::Command, time::Duration};

use crate::{
    log::Warnings,
    output::{self, Which},
};

const FSTAB: &str = "/etc/fstab";
/// How long all mounts together may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The most lines of mount's that become warnings.
const LINES: usize = 10;

/// Mounts what is listed, if anything is: an image's empty or commented file costs no process.
pub(crate) fn mount_all(warnings: &mut Warnings) {
    let table = fs::read(FSTAB).unwrap_or_default();
    if !has_entries(&String::from_utf8_lossy(&table)) {
        return;
    }
    let what = format!("mounting what {FSTAB} lists");
    let mut command = Command::new("mount");
    let said = warnings.take(&what, output::of(command.arg("-a"), Which::Error, LIMIT));
    for line in said.unwrap_or_default().lines().filter(|line| !line.trim().is_empty()).take(LINES) {
        warnings.add(format!("{what}: {}", line.trim()));
    }
}

/// Whether there is a line that mount(8) would mount for `-a` (fstab(5)): not the root, which is there; no swap, which is the
/// VM's; not what has `noauto`.
fn has_entries(table: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let (Some(source), Some(target), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        let noauto = fields.next().unwrap_or_default().split(',').any(|option| option == "noauto");
        !source.starts_with('#') && target.starts_with('/') && target != "/" && kind != "swap" && !noauto
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_mounted_counts() {
        for (table, expected) in [
            ("", false),
            ("# UNCONFIGURED FSTAB FOR BASE SYSTEM\n#tmpfs /x tmpfs defaults 0 0\n", false),
            ("LABEL=cloudimg-rootfs\t/\text4\tdefaults\t0 1\n/dev/sda2 none swap sw 0 0\n", false),
            ("tmpfs /data tmpfs defaults,noauto 0 0\n", false),
            ("tmpfs /data\n", false),
            ("tmpfs /data tmpfs size=1m 0 0\n", true),
        ] {
            assert_eq!(has_entries(table), expected, "{table:?}");
        }
    }
}
