//! The documents of an archive: README and docs, whose links lead somewhere there too.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;

use crate::workspace_root;

/// Puts them into this folder. A link to what is not there goes to the repository instead.
pub(super) fn put(documents: &Path) -> anyhow::Result<()> {
    let root = workspace_root();
    let mut shipped = vec![PathBuf::from("README.md")];
    for entry in fs::read_dir(root.join("docs"))?.flatten() {
        let name = Path::new("docs").join(entry.file_name());
        if name.extension().is_some_and(|extension| extension == "md") {
            shipped.push(name);
        }
    }
    fs::create_dir_all(documents.join("docs"))?;
    for name in &shipped {
        let text = fs::read_to_string(root.join(name)).with_context(|| name.display().to_string())?;
        fs::write(documents.join(name), relink(&text, name, &shipped))?;
    }
    Ok(())
}

/// The document of this name with the links that lead to neither one of these nor another host made absolute.
fn relink(text: &str, name: &Path, shipped: &[PathBuf]) -> String {
    const LINK: &str = "](";
    let mut pieces = text.split(LINK);
    let mut linked = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        linked.push_str(LINK);
        let (target, rest) = piece.split_at(piece.find(')').unwrap_or(0));
        let (path, _) = target.split_once('#').unwrap_or((target, ""));
        if !path.is_empty() && !target.contains(':') {
            let place = resolve(name, path);
            if !shipped.contains(&place) {
                linked.push_str(concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/HEAD/"));
                linked.push_str(&place.to_string_lossy());
                linked.push_str(&target[path.len()..]);
                linked.push_str(rest);
                continue;
            }
        }
        linked.push_str(piece);
    }
    linked
}

/// Where a link of this document leads, from the repository's root.
fn resolve(name: &Path, link: &str) -> PathBuf {
    let mut place = name.parent().unwrap_or(Path::new("")).to_owned();
    for component in Path::new(link).components() {
        match component {
            Component::ParentDir => {
                place.pop();
            }
            Component::Normal(part) => place.push(part),
            _ => {}
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_what_is_there_or_to_the_repository() {
        let shipped = ["README.md", "docs/unsafe.md", "docs/layout.md"].map(PathBuf::from);
        let home = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/HEAD");
        for (name, link, wanted) in [
            ("README.md", "docs/layout.md", "docs/layout.md".to_owned()),
            ("README.md", "vmm/", format!("{home}/vmm")),
            ("docs/unsafe.md", "layout.md#x", "layout.md#x".into()),
            ("docs/unsafe.md", "#here", "#here".into()),
            ("docs/unsafe.md", "https://x/y", "https://x/y".into()),
            ("docs/unsafe.md", "../README.md", "../README.md".into()),
            ("docs/unsafe.md", "../vmm/src/main.rs#L1", format!("{home}/vmm/src/main.rs#L1")),
        ] {
            let said = relink(&format!("a [b]({link}), [c]({link})."), Path::new(name), &shipped);
            assert_eq!(said, format!("a [b]({wanted}), [c]({wanted})."));
        }
        assert_eq!(relink("a[0](", Path::new("README.md"), &shipped), "a[0](");
    }
}
