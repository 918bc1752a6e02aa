//! Every command that an error, a key's description or a page of docs/ tells a person to type is one that is understood.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{ours, wsl};

fn files(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, end, found);
        } else if path.extension().is_some_and(|extension| extension == end) {
            found.push(path);
        }
    }
}

/// What stands behind a mark and `undercroft `, up to the line's end or the next backtick.
fn commands<'a>(text: &'a str, mark: &str) -> impl Iterator<Item = &'a str> {
    let mark = format!("{mark}undercroft ");
    let ends: Vec<usize> = text.match_indices(&mark).map(|(at, _)| at + mark.len()).collect();
    ends.into_iter().map(|at| text[at..].split(['`', '\n']).next().unwrap_or_default())
}

/// A string that goes on in the next line of a source file is one line.
fn joined(source: &str) -> String {
    let mut pieces = source.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.trim_start())
}

fn is_known(own: &clap::Command, command: &str) -> bool {
    let Some(word) = command.split_whitespace().next() else { return false };
    let word = word.trim_end_matches(['.', ',', ';', ':']);
    // A word to be put in there, as in `undercroft VERB`.
    let stands_for_one = word.chars().all(|c| c.is_ascii_uppercase()) || word.starts_with(['{', '…']);
    stands_for_one
        || own.find_subcommand(word).is_some()
        || ["--help", "--version", "help"].contains(&word)
        || wsl::looks_like(&[OsString::from(word)])
}

#[test]
fn hints_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    files(&root.join("config/src"), "rs", &mut sources);
    files(&root.join("undercroft/src"), "rs", &mut sources);
    // This one has what is not to be.
    sources.retain(|path| !path.ends_with(file!().rsplit('/').next().unwrap_or_default()));
    let mut pages = vec![root.join("README.md")];
    files(&root.join("docs"), "md", &mut pages);
    let own = ours::command();
    let (mut seen, mut unknown) = (0, Vec::new());
    for path in sources.iter().chain(&pages) {
        let text = joined(&fs::read_to_string(path).unwrap());
        // In prose, and in what a page shows to be typed.
        for command in commands(&text, "`").chain(commands(&text, "$ ")) {
            seen += 1;
            if !is_known(&own, command) {
                unknown.push(format!("{}: undercroft {command}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    // The scan has not gone blind.
    assert!(seen > 60, "{seen}");
}

#[test]
fn a_hint_that_leads_nowhere_is_seen() {
    let text =
        joined("say `undercroft \\\n    manage NAME`, or `undercroft resize NAME`\n$ undercroft run deb\n");
    let all: Vec<_> = commands(&text, "`").chain(commands(&text, "$ ")).collect();
    assert_eq!(all, ["manage NAME", "resize NAME", "run deb"]);
    assert_eq!(
        all.iter().map(|command| is_known(&ours::command(), command)).collect::<Vec<_>>(),
        [false, true, true]
    );
}
