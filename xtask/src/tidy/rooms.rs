//! The dependency column of docs/architecture.md.

use anyhow::Context;
use serde_json::Value;

use super::Tree;

/// Who may use what of ours. `docs/architecture.md` says why.
const ROOMS: &[(&str, &[&str])] = &[
    ("undercroft-protocol", &[]),
    ("undercroft-config", &[]),
    ("undercroft-vmm", &[]),
    ("undercroft-kernel-config", &[]),
    ("undercroft-guest", &["undercroft-protocol"]),
    ("undercroft-mini-init", &["undercroft-protocol", "undercroft-guest"]),
    ("undercroft-init", &["undercroft-protocol", "undercroft-guest", "undercroft-config"]),
    (
        "undercroft",
        &["undercroft-protocol", "undercroft-vmm", "undercroft-kernel-config", "undercroft-config"],
    ),
    (
        "undercroft-harness",
        &[
            "undercroft-protocol",
            "undercroft-config",
            "undercroft-vmm",
            "undercroft-kernel-config",
            "undercroft-mini-init",
            "undercroft-init",
            "undercroft",
            "undercroft-lab",
        ],
    ),
    (
        "undercroft-benches",
        &[
            "undercroft-protocol",
            "undercroft-vmm",
            "undercroft-kernel-config",
            "undercroft",
            "undercroft-harness",
            "undercroft-ruler-runner",
            "undercroft-ruler-scenario",
        ],
    ),
    ("undercroft-lab", &[]),
    ("undercroft-ruler", &[]),
    ("undercroft-ruler-runner", &[]),
    ("undercroft-ruler-scenario", &["undercroft", "undercroft-vmm", "undercroft-ruler-runner"]),
    (
        "xtask",
        &[
            "undercroft-kernel-config",
            "undercroft-vmm",
            "undercroft",
            "undercroft-harness",
            "undercroft-benches",
        ],
    ),
];

/// Names that say nothing of what a crate is for; a crate by such a name gathers what belongs elsewhere.
const VAGUE: &[&str] = &["util", "utils", "common", "base", "helpers", "misc", "core"];

pub(super) fn check(tree: &Tree) -> anyhow::Result<Vec<String>> {
    let json = duct::cmd!("cargo", "metadata", "--no-deps", "--format-version", "1", "--offline")
        .dir(&tree.root)
        .read()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_str(&json).context("cargo metadata's answer")?;
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        if name.split('-').any(|part| VAGUE.contains(&part)) {
            found.push(format!("{name}: a crate's name says what it is for"));
        }
        let Some((_, may)) = ROOMS.iter().find(|(room, _)| *room == name) else {
            found.push(format!(
                "{name} is no room: add it to docs/architecture.md and xtask/src/tidy/rooms.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let ours = ROOMS.iter().any(|(room, _)| *room == used);
            if ours && !may.contains(&used) {
                found.push(format!("{name} uses {used}, and may use {may:?} of ours"));
            }
        }
    }
    Ok(found)
}
