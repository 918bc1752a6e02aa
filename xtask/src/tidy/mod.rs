//! `cargo xtask tidy`: what the compiler does not check and reviewers forget.

mod documents;
mod rooms;
mod source;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

/// Check what the compiler does not: who may depend on whom, long files, where `unsafe` is, documents behind the code.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// The findings.
type Check = fn(&Tree) -> anyhow::Result<Vec<String>>;

/// Each check gives one line a finding, with the place and what to do.
const CHECKS: &[(&str, Check)] = &[
    ("rooms: who may depend on whom", rooms::check),
    ("files: length", source::length),
    ("unsafe: only in its modules", source::unsafe_modules),
    ("hosts: no registry is named", source::hosts),
    ("docs/protocol.md is of this protocol", documents::protocol),
    ("docs/layout.md mirrors layout.rs", documents::layout),
];

pub(crate) fn run(_arguments: Arguments) -> anyhow::Result<ExitCode> {
    let tree = Tree::read()?;
    let mut findings = 0;
    for (name, check) in CHECKS {
        let found = check(&tree).with_context(|| format!("the check \"{name}\""))?;
        println!("{} {name}", if found.is_empty() { "ok  " } else { "FAIL" });
        for line in &found {
            println!("     {line}");
        }
        findings += found.len();
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The files that git tracks or would, in the working tree.
pub(super) struct Tree {
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl Tree {
    fn read() -> anyhow::Result<Self> {
        let root = crate::workspace_root();
        let list = duct::cmd!("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
            .dir(&root)
            .read()
            .context("git ls-files")?;
        let mut files: Vec<_> = list
            .split('\0')
            .filter(|f| !f.is_empty())
            .map(PathBuf::from)
            .filter(|f| root.join(f).is_file())
            .collect();
        files.sort();
        if files.is_empty() {
            bail!("git lists no files in {}", root.display());
        }
        Ok(Self { root, files })
    }

    /// Rust sources, with their text.
    fn rust(&self) -> impl Iterator<Item = anyhow::Result<(&Path, String)>> {
        self.files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == "rs"))
            .map(|f| Ok((f.as_path(), self.text(f)?)))
    }

    fn text(&self, file: impl AsRef<Path>) -> anyhow::Result<String> {
        let path = self.root.join(file);
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
