//! Whose work is in an archive, and on what terms: a list, and the texts that have to go along.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use serde::Deserialize;
use undercroft_kernel_config::{self as kernel_config, Kernel, Source};

use crate::workspace_root;

/// The packages whose programs are in an archive, and what those are compiled for.
const SHIPPED: [&str; 4] = ["undercroft", "undercroft-vmm", "undercroft-mini-init", "undercroft-init"];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// How the files begin in which a crate has its terms and whose it is.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "UNLICENSE", "COPYING", "COPYRIGHT", "NOTICE"];

/// Puts all of it into the folder of an installation's documents.
pub(super) fn put(documents: &Path, kernel: &Kernel) -> anyhow::Result<()> {
    for text in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(workspace_root().join(text), documents.join(text)).context(text)?;
    }
    let copyright = format!(
        "undercroft is under Apache-2.0 or MIT, at your choice: LICENSE-APACHE, LICENSE-MIT.\n\n\
         lib/undercroft/kernel is Linux {}, under the GNU General Public License, version 2: licences/linux.\n\
         Its source: {}. Its configuration lies beside it.\n\n\
         The programs hold crates of others, named in licences/crates.md, with their terms in licences/crates.txt, and Rust's\n\
         standard library (Apache-2.0 or MIT). Those in lib/undercroft are linked statically with the GNU C Library, under the\n\
         GNU Lesser General Public License, version 2.1 or later: licences/LGPL-2.1; undercroft's source, with which they can be\n\
         linked anew, is {}.\n",
        kernel.release,
        kernel.origin,
        env!("CARGO_PKG_REPOSITORY"),
    );
    fs::write(documents.join("copyright"), copyright)?;

    let folder = documents.join("licences");
    fs::create_dir_all(folder.join("linux"))?;
    let linux = kernel_config::licences(&Source::Debian)?;
    for text in kernel_config::LICENCES {
        let name = Path::new(text).file_name().context("a text has a name")?;
        // The C library's is only lent by the kernel.
        let to = if name == "LGPL-2.1" { folder.join(name) } else { folder.join("linux").join(name) };
        fs::copy(linux.join(text), &to).with_context(|| to.display().to_string())?;
    }
    let crates = crates()?;
    fs::write(folder.join("crates.md"), list(&crates))?;
    fs::write(folder.join("crates.txt"), texts(&crates)?)?;
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    id: String,
    license: Option<String>,
    license_file: Option<String>,
    repository: Option<String>,
    /// `None` for what is ours.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for one that is linked.
    kind: Option<String>,
}

impl Package {
    /// It runs in the compiler, and is in no program.
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }
}

/// The crates of others in the programs, by name.
fn crates() -> anyhow::Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]);
    let output = command.current_dir(workspace_root()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    linked(serde_json::from_slice(&output.stdout).context("cargo metadata's answer")?)
}

fn linked(metadata: Metadata) -> anyhow::Result<Vec<Package>> {
    let Metadata { packages, resolve } = metadata;
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, &node.deps)).collect();
    let by_id: BTreeMap<_, _> = packages.iter().map(|package| (&package.id, package)).collect();
    let ours = |package: &&Package| package.source.is_none() && SHIPPED.contains(&package.name.as_str());
    let mut to_see: Vec<_> = packages.iter().filter(ours).collect();
    if to_see.len() != SHIPPED.len() {
        bail!("cargo metadata does not name all of {SHIPPED:?}");
    }
    let mut seen = BTreeSet::new();
    while let Some(package) = to_see.pop() {
        if package.is_macro() || !seen.insert(package) {
            continue;
        }
        for dependency in nodes.get(&package.id).into_iter().copied().flatten() {
            if dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                to_see.extend(by_id.get(&dependency.pkg));
            }
        }
    }
    Ok(seen.into_iter().filter(|package| package.source.is_some()).cloned().collect())
}

fn list(crates: &[Package]) -> String {
    let mut text = String::from(
        "# Crates in undercroft's programs\n\n| crate | version | licence | repository |\n| --- | --- | --- | --- |\n",
    );
    for Package { name, version, license, license_file, repository, .. } in crates {
        let licence = license.as_ref().or(license_file.as_ref()).map_or("?", String::as_str);
        let repository = repository.as_deref().unwrap_or_default();
        // A string takes everything.
        let _ = writeln!(text, "| {name} | {version} | {licence} | {repository} |");
    }
    text
}

/// Each text once, below the names of those who have it.
fn texts(crates: &[Package]) -> anyhow::Result<String> {
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for package in crates {
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        let mut files: Vec<_> = fs::read_dir(folder)
            .with_context(|| folder.display().to_string())?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && is_text(path))
            .collect();
        files.sort();
        if files.is_empty() {
            bail!("{} {} comes without the text of its licence", package.name, package.version);
        }
        for path in files {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            // Lines are broken here and there.
            let same = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let who = format!("{} {} ({name})", package.name, package.version);
            texts.entry(same).or_insert_with(|| (text, Vec::new())).1.push(who);
        }
    }
    let mut all: Vec<_> = texts.into_values().collect();
    all.sort_by(|(_, a), (_, b)| a.cmp(b));
    let each = all.into_iter().map(|(text, who)| format!("== {}\n\n{}\n", who.join(", "), text.trim_end()));
    Ok(each.collect::<Vec<_>>().join("\n"))
}

fn is_text(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    TEXTS.iter().any(|text| name.starts_with(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, source: Option<&str>, kind: &str, folder: &Path) -> Package {
        Package {
            name: name.into(),
            version: "1.0.0".into(),
            id: name.into(),
            license: Some("MIT".into()),
            license_file: None,
            repository: None,
            source: source.map(Into::into),
            manifest_path: folder.join(name).join("Cargo.toml"),
            targets: vec![Target { kind: vec![kind.into()] }],
        }
    }

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_is_not() {
        let nowhere = Path::new("/");
        let mut packages: Vec<_> = SHIPPED.iter().map(|name| package(name, None, "lib", nowhere)).collect();
        for (name, kind) in
            [("deep", "lib"), ("near", "lib"), ("derive", "proc-macro"), ("quotes", "lib"), ("builds", "lib")]
        {
            packages.push(package(name, Some("registry"), kind, nowhere));
        }
        let node = |id: &str, deps: &[(&str, Option<&str>)]| Node {
            id: id.into(),
            deps: deps
                .iter()
                .map(|&(pkg, kind)| Dependency {
                    pkg: pkg.into(),
                    dep_kinds: vec![DependencyKind { kind: kind.map(Into::into) }],
                })
                .collect(),
        };
        let nodes = vec![
            node("undercroft", &[("near", None), ("builds", Some("build")), ("undercroft-vmm", None)]),
            node("near", &[("deep", None), ("derive", None)]),
            node("derive", &[("quotes", None)]),
        ];
        let found = linked(Metadata { packages, resolve: Resolve { nodes } }).unwrap();
        let names: Vec<_> = found.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["deep", "near"]);
        assert!(list(&found).ends_with("| deep | 1.0.0 | MIT |  |\n| near | 1.0.0 | MIT |  |\n"));
    }

    #[test]
    fn a_text_stands_once_and_a_crate_without_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let crates = ["a", "b", "c"].map(|name| package(name, Some("registry"), "lib", folder.path()));
        for (file, text) in
            [("a/LICENSE", "do as\nyou like"), ("b/license-mit", "do as you like\n"), ("c/x", "")]
        {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let both = texts(&crates[..2]).unwrap();
        assert_eq!(both, "== a 1.0.0 (LICENSE), b 1.0.0 (license-mit)\n\ndo as\nyou like\n");
        assert!(texts(&crates).unwrap_err().to_string().contains("c 1.0.0"));
    }
}
