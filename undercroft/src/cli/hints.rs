//! Texts that people act by: every command that an error, a key's description or a page of docs/ tells them to type is one that is
//! understood, and the first page of help is looked at when it changes.

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

#[test]
fn the_first_page_of_help() {
    insta::assert_snapshot!(ours::command().term_width(100).render_long_help(), @r"
    Many Linux distributions on one kernel, in one lightweight virtual machine.

    The words of `wsl` are understood, too: `undercroft -d debian -e uname -r`, `undercroft --list
    --verbose`.

    Usage: undercroft <COMMAND>

    Commands:
      run               Run a command, or a login shell, in a distribution; start it if need be
      exec              Run a command in a distribution that runs already
      list              List the distributions [alias: ls]
      install           Install a distribution: by a list's name, from a URL or file, or an image of a
                        registry
      status            Tell what the virtual machine and its distributions take
      top               A live view: `status --watch`
      ports             List what is listened for in distributions, and where it is reached on this host
      vms               List the virtual machines: one, or none
      import            Make a distribution from a root file system's tar archive (any compression), or
                        from standard input
      terminate         Stop a distribution [alias: stop]
      shutdown          Stop every distribution and the virtual machine
      unregister        Remove a distribution and all its files [alias: remove]
      set-default       Choose which distribution is meant when none is named
      export            Write a distribution into an archive, or to standard output
      clone             Make a second distribution of one; both share what neither has changed
      rename            Call a distribution otherwise
      move              Put a distribution's disk into another directory
      resize            Make a distribution's disk larger or smaller
      import-in-place   Make an ext4 image a distribution, where it stands
      keep-alive        Choose whether a distribution stays when nobody uses it
      set-default-user  Choose who the sessions of a distribution are
      version           Tell the versions of this program and the kernel
      config            Show every configuration key, its value, where that comes from, and when a
                        change of it acts
      doctor            Look at what undercroft needs, and say how to mend what is missing
      parts             Bring kernel, VMM and inits out of an archive of undercroft, to a program that
                        came without them
      completions       Print completions for a shell
      help              Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Examples:
      undercroft import debian debian.tar       make a distribution from a root file system (`docker
      export` writes one)
      undercroft run debian                     a shell in it
      tar c . | undercroft run debian tar x     pipes work, and the exit status is the command's
      undercroft list -v                        what runs, why, and when it will stop
    ");
}
