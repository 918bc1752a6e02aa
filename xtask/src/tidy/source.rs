//! Checks on source text.

use super::Tree;

/// Lines a file may have. Past it, it holds more than one idea.
const LONGEST: usize = 600;

pub(super) fn length(tree: &Tree) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for file in tree.rust() {
        let (path, text) = file?;
        let lines = text.lines().count();
        if lines > LONGEST {
            found.push(format!("{}: {lines} lines, {LONGEST} is the most: split it by idea", path.display()));
        }
    }
    Ok(found)
}

/// The workspace denies `unsafe`; a module that needs it says so at its head, and stands in docs/unsafe.md with the
/// reason. A module listed there that needs it no longer is a finding too.
pub(super) fn unsafe_modules(tree: &Tree) -> anyhow::Result<Vec<String>> {
    const LIST: &str = "docs/unsafe.md";
    // In two parts, or this file would be one of them.
    let opening = concat!("allow(", "unsafe_code)");
    let list = tree.text(LIST)?;
    let mut found = Vec::new();
    let mut opened = Vec::new();
    for file in tree.rust() {
        let (path, text) = file?;
        if text.contains(opening) {
            let name = path.display().to_string();
            if !text.contains(&format!("#![{opening}]")) {
                found.push(format!(
                    "{name}: open unsafe for a small module of its own, by #![{opening}] at its head"
                ));
            }
            if !list.contains(&format!("`{name}`")) {
                found.push(format!("{name} opens unsafe and is not in {LIST}: add it with its reason"));
            }
            opened.push(name);
        }
    }
    for named in list.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()) {
        if !opened.iter().any(|o| o == named) {
            found.push(format!("{LIST} lists {named}, which does not open unsafe"));
        }
    }
    Ok(found)
}

/// Tools' own defaults and the machine's configuration know where registries are.
pub(super) fn hosts(tree: &Tree) -> anyhow::Result<Vec<String>> {
    let hosts = [
        concat!("deb.", "debian.org"),
        concat!("static.", "crates.io"),
        concat!("index.", "crates.io"),
        concat!("py", "pi.org"),
        concat!("registry.", "npmjs.org"),
    ];
    let mut found = Vec::new();
    for file in tree.files.iter().filter(|f| !f.ends_with("Cargo.lock")) {
        let text = tree.text(file)?;
        for (number, line) in text.lines().enumerate() {
            if let Some(host) = hosts.iter().find(|h| line.contains(**h)) {
                found.push(format!("{}:{}: names the host {host}", file.display(), number + 1));
            }
        }
    }
    Ok(found)
}
