//! Documents that must not fall behind the code that they describe.

use sha2::{Digest, Sha256};

use super::Tree;

/// docs/protocol.md carries the digest of the protocol's golden bytes: when those change, somebody reads it again.
pub(super) fn protocol(tree: &Tree) -> anyhow::Result<Vec<String>> {
    const DOCUMENT: &str = "docs/protocol.md";
    let golden = tree.text("protocol/tests/snapshots/golden__the_bytes_of_each_message.snap")?;
    let digest: String =
        Sha256::digest(golden.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
    let document = tree.text(DOCUMENT)?;
    let mut found = Vec::new();
    if !document.contains(&format!("Golden bytes: {digest}")) {
        found.push(format!(
            "{DOCUMENT}: describe what changed in the messages, then write \"Golden bytes: {digest}\""
        ));
    }
    for file in ["command", "opening", "session"] {
        let source = tree.text(format!("protocol/src/{file}.rs"))?;
        for name in source.lines().filter_map(public_type) {
            if !document.contains(&format!("`{name}")) {
                found.push(format!("{DOCUMENT} does not name `{name}` of protocol/src/{file}.rs"));
            }
        }
    }
    Ok(found)
}

fn public_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub enum ").or_else(|| line.strip_prefix("pub struct "))?;
    rest.split(|c: char| !c.is_alphanumeric()).next()
}

/// Every address of layout.rs stands in docs/layout.md, with its value.
pub(super) fn layout(tree: &Tree) -> anyhow::Result<Vec<String>> {
    const DOCUMENT: &str = "docs/layout.md";
    const SOURCE: &str = "vmm/src/arch/x86_64/layout.rs";
    let document = tree.text(DOCUMENT)?;
    let mut found = Vec::new();
    for line in tree.text(SOURCE)?.lines() {
        let Some((name, value)) = constant(line) else { continue };
        let row = document.lines().find(|l| l.contains(&format!("`{name}`")));
        match row {
            None => found.push(format!("{DOCUMENT} has no row for `{name}` ({value}) of {SOURCE}")),
            Some(row) if !row.contains(&format!("`{value}`")) => {
                found.push(format!("{DOCUMENT}: `{name}` is `{value}` in {SOURCE}"));
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

/// `pub const NAME: T = VALUE;` as name and value.
fn constant(line: &str) -> Option<(&str, &str)> {
    let rest = line
        .trim_start()
        .strip_prefix("pub const ")
        .or_else(|| line.trim_start().strip_prefix("pub(crate) const "))?;
    let (name, rest) = rest.split_once(':')?;
    let value = rest.split_once('=')?.1.trim().strip_suffix(';')?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_types_are_found() {
        assert_eq!(constant("pub const A: u64 = 0x10_0000;"), Some(("A", "0x10_0000")));
        assert_eq!(constant("const A: u64 = 1;"), None);
        assert_eq!(public_type("pub struct Token(pub [u8; 16]);"), Some("Token"));
    }
}
