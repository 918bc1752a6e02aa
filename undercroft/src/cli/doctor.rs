//! What undercroft needs of this host, looked at one by one.

use std::path::{Path, PathBuf};

use undercroft::{
    service::{Parts, Paths, Settings},
    terminal,
};
use undercroft_vmm::probe::{Verdict, probe};

use super::{perform::say, show};

/// Less than this is little for a distribution, in bytes.
const LITTLE: u64 = 4 << 30;

/// How something is.
enum Finding {
    Good(String),
    /// It works without, and something does not.
    Lacks(String),
    Bad(String),
}

impl Finding {
    fn mark(&self) -> &'static str {
        match self {
            Self::Good(_) => "ok     ",
            Self::Lacks(_) => "without",
            Self::Bad(_) => "BAD    ",
        }
    }

    fn said(&self) -> &str {
        match self {
            Self::Good(said) | Self::Lacks(said) | Self::Bad(said) => said,
        }
    }

    /// For machines: the mark in small letters.
    fn json((what, finding): &(&str, Self)) -> serde_json::Value {
        let state = finding.mark().trim_end().to_ascii_lowercase();
        serde_json::json!({ "what": what, "state": state, "said": finding.said() })
    }
}

/// Looks at everything; the status is 1 if undercroft cannot work here.
pub(super) fn doctor(json: bool) -> anyhow::Result<u8> {
    let paths = Paths::of_user()?;
    let findings = [
        ("KVM", kvm()),
        ("parts", parts(&paths)),
        ("disks", program("mke2fs", "e2fsprogs", "disks are made by it", true)),
        ("space", space(&paths.data)),
        (
            "network",
            program("passt", "passt", "without it distributions have no network but their own", false),
        ),
        ("host folders", virtiofsd()),
    ];
    let text = match json {
        true => show::json(&findings.iter().map(Finding::json).collect::<Vec<_>>()),
        false => {
            let width = terminal::width();
            findings.iter().map(|(what, finding)| line(finding.mark(), what, finding.said(), width)).collect()
        }
    };
    say(&text)?;
    Ok(u8::from(findings.iter().any(|(_, finding)| matches!(finding, Finding::Bad(_)))))
}

/// A finding, in as many lines as a terminal of this width takes.
fn line(mark: &str, what: &str, said: &str, width: Option<usize>) -> String {
    let mut text = format!("{mark}  {what:<13}");
    let margin = text.chars().count();
    let mut column = margin;
    for word in said.split(' ') {
        let length = 1 + word.chars().count();
        if width.is_some_and(|width| column + length > width) && column > margin {
            text.push_str(&format!("\n{:margin$}", ""));
            column = margin;
        }
        text.push(' ');
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}

fn kvm() -> Finding {
    match probe() {
        Verdict::Hardware => Finding::Good(Verdict::Hardware.to_string()),
        verdict @ Verdict::Interpreted { .. } => Finding::Bad(format!(
            "{verdict}; it takes a machine with a processor's own virtualisation, or a virtual one whose host has nested \
             virtualisation switched on for it"
        )),
        verdict => Finding::Bad(verdict.to_string()),
    }
}

fn parts(paths: &Paths) -> Finding {
    match Parts::find(Settings::read(paths).host.kernel.as_deref()) {
        Ok(parts) => Finding::Good(format!("kernel {}, VMM {}", parts.kernel.release, parts.vmm.display())),
        Err(error) => Finding::Bad(undercroft::error::chain(&error)),
    }
}

/// Where a program is, in PATH or where only root has it.
fn which(name: &str, besides: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(besides.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn program(name: &str, package: &str, why: &str, needed: bool) -> Finding {
    match which(name, &["/usr/sbin", "/sbin"]) {
        Some(path) => Finding::Good(path.display().to_string()),
        None => {
            let said = format!("{name} is not installed: {why} (Debian package {package})");
            if needed { Finding::Bad(said) } else { Finding::Lacks(said) }
        }
    }
}

fn virtiofsd() -> Finding {
    match undercroft::folders::find() {
        Ok(program) => match program.lack() {
            None => Finding::Good(program.path.display().to_string()),
            Some(lack) => Finding::Lacks(format!("folders of the host cannot be shared: {lack}")),
        },
        Err(error) => Finding::Lacks(format!("folders of the host cannot be shared: {error}")),
    }
}

fn space(folder: &Path) -> Finding {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(about) => {
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            let said = format!("{} free in {}", show::size(free), folder.display());
            if free < LITTLE { Finding::Lacks(said + ": make room there") } else { Finding::Good(said) }
        }
        Err(error) => Finding::Bad(format!("{}: {error}", there.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_read_the_same() {
        let finding = ("disks", Finding::Bad("mke2fs is not installed".into()));
        let expected =
            serde_json::json!({ "what": "disks", "state": "bad", "said": "mke2fs is not installed" });
        assert_eq!(Finding::json(&finding), expected);
    }

    #[test]
    fn findings_are_as_wide_as_the_terminal() {
        let said = "a path/without/any/blank/that/is/long and a few words";
        assert_eq!(line("ok     ", "disks", said, None).lines().count(), 1);
        let wrapped = line("ok     ", "disks", said, Some(40));
        let lines: Vec<_> = wrapped.lines().map(str::trim_start).collect();
        assert_eq!(
            lines,
            ["ok       disks         a", "path/without/any/blank/that/is/long", "and a few words"]
        );
        assert_eq!(line("ok     ", "disks", said, Some(1)).split_whitespace().count(), 8);
    }
}
