//! The manual pages: those of the verbs, undercroft(1) with what is true of all of them, and wsl(1).

use std::{fs, io, path::Path};

use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{ours, wsl};

/// A section: its entries, each a name and what there is to say of it.
type Entries = [(&'static str, &'static str)];

const FILES: &Entries = &[
    (
        "$XDG_CONFIG_HOME/undercroft/.wslconfig",
        "The configuration: the virtual machine's, and under [distribution \"NAME\"] what holds for one distribution. If it is \
         not there, ~/.wslconfig counts. `undercroft config` shows every key with its value.",
    ),
    ("/etc/wsl.conf", "In each distribution: what that says of itself."),
    ("/etc/wsl-distribution.conf", "In each distribution: what its makers say of how it is set up."),
    ("$XDG_DATA_HOME/undercroft", "The distributions and their disks."),
    ("$XDG_STATE_HOME/undercroft/service.log", "What the service says."),
    ("$XDG_STATE_HOME/undercroft/console.log", "What the virtual machine's console says, of its last start."),
    ("$XDG_CACHE_HOME/undercroft", "What can be made or downloaded again."),
    ("$XDG_RUNTIME_DIR/undercroft/service.sock", "Where the service listens, to this user alone."),
];

const ENVIRONMENT: &Entries = &[
    (
        "XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_STATE_HOME, XDG_CACHE_HOME, XDG_RUNTIME_DIR",
        "Where files are; without them ~/.config, ~/.local/share, ~/.local/state, ~/.cache and /tmp/undercroft-UID.",
    ),
    (
        "WSLENV",
        "The variables, with colons between their names, that a session gets from here; what follows a name behind a slash \
         means nothing here.",
    ),
    ("TERM, COLORTERM", "A session at a terminal gets them."),
    ("ALL_PROXY, HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "By whom downloads are asked for, and which are not."),
    (
        "UNDERCROFT_PARTS",
        "The folder with kernel, VMM and inits, instead of the one that came with this program.",
    ),
    (
        "UNDERCROFT_PATIENCE",
        "How many times longer than on hardware things may take, in a machine made in software.",
    ),
];

const STATUS: &Entries = &[
    ("0", "It is done; of a command in a distribution, it said so."),
    ("1", "Of `list --running`: none runs. Of `doctor`: undercroft cannot work here."),
    ("125", "undercroft could not do it; called as wsl it says 255."),
    ("126, 127", "The command could not be executed, or is not there."),
    ("128 + N", "The command was ended by signal N."),
    ("any other", "The command's own."),
];

/// Writes all of them into a folder.
pub(super) fn write(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(ours::command(), folder)?;
    fs::write(folder.join("undercroft.1"), undercroft()?)?;
    fs::write(folder.join("wsl.1"), wsl().to_roff())
}

fn undercroft() -> io::Result<Vec<u8>> {
    let mut command = ours::command().disable_help_subcommand(true);
    command.build();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    let mut rest = Roff::new();
    for (name, entries) in [("EXIT STATUS", STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)] {
        section(&mut rest, name, entries);
    }
    rest.control("SH", ["SEE ALSO"]).text([bold("wsl"), roman("(1)")]);
    rest.to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

fn section(page: &mut Roff, name: &str, entries: &Entries) {
    page.control("SH", [name]);
    for (what, text) in entries {
        page.control("TP", []).text([bold(*what)]).text([roman(*text)]);
    }
}

/// The grammar's own help text, as it is.
fn wsl() -> Roff {
    let mut page = Roff::new();
    page.control("TH", ["wsl", "1", "", concat!("undercroft ", env!("CARGO_PKG_VERSION"))])
        .control("SH", ["NAME"])
        .text([roman("wsl - undercroft, by the words of the Windows Subsystem for Linux")])
        .control("SH", ["DESCRIPTION"])
        .text([
            roman("A link of this name to "),
            bold("undercroft"),
            roman("(1) understands these words and no others. The program itself understands them, too: "),
            bold("undercroft --list --verbose"),
            roman("."),
        ])
        .control("PP", [])
        .control("nf", []);
    for line in wsl::HELP.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", [])
        .control("SH", ["EXIT STATUS"])
        .text([roman(
            "The command's own; 128 + N if it was ended by signal N; 255 if undercroft could not do what was asked.",
        )])
        .control("SH", ["SEE ALSO"])
        .text([bold("undercroft"), roman("(1)")]);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_what_manuals_have() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let heads = |page: &str| {
            let heads = page.lines().filter_map(|line| line.strip_prefix(".SH "));
            heads.map(|head| head.trim_matches('"').to_owned()).collect::<Vec<_>>().join(", ")
        };
        insta::assert_snapshot!(heads(&page("undercroft.1")), @"NAME, SYNOPSIS, DESCRIPTION, SUBCOMMANDS, OPTIONS, EXTRA, EXIT STATUS, ENVIRONMENT, FILES, SEE ALSO, VERSION");
        insta::assert_snapshot!(heads(&page("wsl.1")), @"NAME, DESCRIPTION, EXIT STATUS, SEE ALSO");
        assert!(page("wsl.1").contains("\\-\\-import\\-in\\-place NAME FILE"), "{}", page("wsl.1"));
        assert!(page("undercroft-install.1").contains("docker://alpine:3"));
    }
}
