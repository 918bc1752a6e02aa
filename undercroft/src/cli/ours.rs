//! The grammar of our own: verbs.

use std::{
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use undercroft::digest::Digest;
use undercroft_config::{Mount, NotAMount, Published};

use super::{
    Meaning,
    action::{Action, Config, Format, Import, Launch, Making, Origin, Program, Run, Style},
};

/// Many Linux distributions on one kernel, in one lightweight virtual machine.
///
/// The words of `wsl` are understood, too: `undercroft -d debian -e uname -r`, `undercroft --list --verbose`.
#[derive(Debug, Parser)]
#[command(name = "undercroft", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Examples:
  undercroft import debian debian.tar       make a distribution from a root file system (`docker export` writes one)
  undercroft run debian                     a shell in it
  tar c . | undercroft run debian tar x     pipes work, and the exit status is the command's
  undercroft list -v                        what runs, why, and when it will stop")]
struct Ours {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command, or a login shell, in a distribution; start it if need be
    Run(Running),
    /// Run a command in a distribution that runs already
    Exec(Executing),
    /// List the distributions
    #[command(visible_alias = "ls")]
    List {
        /// Also what they do, why they still run, and when they will stop
        #[arg(short, long)]
        verbose: bool,
        /// Names alone
        #[arg(short, long, conflicts_with = "verbose")]
        quiet: bool,
        /// Only those that run
        #[arg(long)]
        running: bool,
        /// What can be installed by name, instead
        #[arg(short, long, conflicts_with_all = ["verbose", "quiet", "running"])]
        online: bool,
        /// A list for --online, instead of WSL's: a URL or a file
        #[arg(long, value_name = "LIST", requires = "online")]
        from: Option<String>,
        /// For machines
        #[arg(long, conflicts_with_all = ["verbose", "quiet"])]
        json: bool,
    },
    /// Install a distribution: by a list's name, from a URL or file, or an image of a registry
    #[command(after_help = "Examples:
  undercroft install Debian                          a name of `undercroft list --online`
  undercroft install docker://alpine:3 --name alp    an image of a registry
  undercroft install ./rootfs.tar.zst --name mine --launch
  undercroft install https://example.org/some.wsl --size 128G")]
    Install {
        /// `Debian` (of `list --online`), a URL, a path, `docker://debian:12`, `oci:PATH[:TAG]`
        source: String,
        /// What it is called here
        #[arg(long)]
        name: Option<String>,
        /// A list to look the name up in, instead of WSL's: a URL or a file
        #[arg(long, value_name = "LIST")]
        from: Option<String>,
        /// Start a login shell in it afterwards
        #[arg(long)]
        launch: bool,
        #[command(flatten)]
        making: Making,
    },
    /// Tell what the virtual machine and its distributions take
    Status {
        /// Again every second, until Ctrl-C
        #[arg(short, long)]
        watch: bool,
        /// For machines
        #[arg(long, conflicts_with = "watch")]
        json: bool,
    },
    /// A live view: `status --watch`
    Top,
    /// List what is listened for in distributions, and where it is reached on this host
    Ports {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// List the virtual machines: one, or none
    Vms {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Make a distribution from a root file system's tar archive (any compression), or from standard input
    #[command(after_help = "Examples:
  undercroft import debian debian.tar.xz
  docker export $(docker create debian:12) | undercroft import debian -
  undercroft import second debian.tar.xz             shares what both have: no more room, no time
  undercroft import build debian.tar.xz --flat --location /fast/disk
  undercroft import copy image.ext4 --image          of a disk, and that stays as it is")]
    Import {
        /// The new distribution's name
        name: String,
        /// The archive; `-` is standard input
        archive: PathBuf,
        /// It is no archive but a raw ext4 image, to be copied
        #[arg(long, conflicts_with_all = ["flat", "size"])]
        image: bool,
        #[command(flatten)]
        making: Making,
    },
    /// Stop a distribution
    #[command(visible_alias = "stop")]
    Terminate {
        /// Which
        name: String,
        /// At once, without waiting for its programs
        #[arg(short, long)]
        force: bool,
    },
    /// Stop every distribution and the virtual machine
    Shutdown {
        /// At once, without waiting for anybody
        #[arg(short, long)]
        force: bool,
    },
    /// Remove a distribution and all its files
    #[command(visible_alias = "remove")]
    Unregister {
        /// Which
        name: String,
    },
    /// Choose which distribution is meant when none is named
    SetDefault {
        /// Which
        name: String,
    },
    /// Write a distribution into an archive, or to standard output
    #[command(after_help = "Examples:
  undercroft export debian debian.tar.zst        compressed as the name says
  undercroft export debian - | ssh host undercroft import debian -")]
    Export {
        /// Which
        name: String,
        /// The file; `-` is standard output
        file: PathBuf,
        /// As what, instead of what the file's name says
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Make a second distribution of one; both share what neither has changed
    Clone {
        /// Which
        name: String,
        /// What the second one is called
        new_name: String,
    },
    /// Call a distribution otherwise
    Rename {
        /// Which
        name: String,
        /// How
        new_name: String,
    },
    /// Put a distribution's disk into another directory
    Move {
        /// Which
        name: String,
        /// The directory; without it, back where disks are kept
        directory: Option<PathBuf>,
    },
    /// Make a distribution's disk larger or smaller
    Resize {
        /// Which
        name: String,
        /// The most that it can hold, such as 128G
        #[arg(value_parser = bytes)]
        size: u64,
    },
    /// Make an ext4 image a distribution, where it stands
    ImportInPlace {
        /// The new distribution's name
        name: String,
        /// The image
        image: PathBuf,
    },
    /// Choose whether a distribution stays when nobody uses it
    KeepAlive {
        /// Which
        name: String,
        /// `on` or `off`
        #[arg(value_parser = on_or_off, default_value = "on", action = clap::ArgAction::Set)]
        keep: bool,
    },
    /// Choose who the sessions of a distribution are
    SetDefaultUser {
        /// Which
        name: String,
        /// The user, by name or number
        user: String,
    },
    /// Tell the versions of this program and the kernel
    Version {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Show every configuration key, its value, where that comes from, and when a change of it acts
    Config(Config),
    /// Look at what undercroft needs, and say how to mend what is missing
    Doctor {
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Bring kernel, VMM and inits out of an archive of undercroft, to a program that came without them
    #[command(after_help = "Examples:
  cargo install undercroft && undercroft parts undercroft-0.1.0-x86_64.tar.xz")]
    Parts {
        /// The archive, by its path or address
        archive: String,
        /// What its digest is to be
        #[arg(long, value_name = "HEX")]
        sha256: Option<Digest>,
    },
    /// Print completions for a shell
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder
    #[command(hide = true)]
    Man {
        /// Which
        folder: PathBuf,
    },
    /// Be the service
    #[command(hide = true)]
    Service,
}

#[derive(Debug, Args)]
struct Who {
    /// As this user, by name or number
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// In this directory of the distribution
    #[arg(long, value_name = "DIR")]
    cd: Option<OsString>,
    /// Give the command to the user's shell, instead of executing it
    #[arg(short, long)]
    shell: bool,
    /// While it runs, everybody who reaches this address of the host reaches the same port of the distribution
    #[arg(short, long, value_name = "ADDR:PORT[/udp]")]
    publish: Vec<Published>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft run                       a login shell in the default distribution
  undercroft run debian -- ls -l /     the exit status is the command's; 125 is a failure of ours
  undercroft run -s debian 'echo $HOME; df -h .'
  undercroft run -p 0.0.0.0:8000 debian python3 -m http.server
  undercroft run -m .:/src debian make -C /src")]
struct Running {
    #[command(flatten)]
    who: Who,
    /// Share this folder of the host, as long as the virtual machine runs: at the same path or at DIR, writable or not
    #[arg(short, long, value_name = "FOLDER[:DIR][:ro]", value_parser = folder)]
    mount: Vec<Mount>,
    /// The distribution; without it, the default one
    name: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Executing {
    #[command(flatten)]
    who: Who,
    /// The distribution
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// The command line's description, for completions and manual pages.
pub(super) fn command() -> clap::Command {
    Ours::command()
}

pub(super) fn parse(words: Vec<OsString>) -> Meaning {
    let all = std::iter::once(OsString::from("undercroft")).chain(words);
    match Ours::try_parse_from(all) {
        Ok(ours) => Meaning::Do(action(ours.verb)),
        Err(error) => {
            // Nowhere else to say it.
            let _ = error.print();
            Meaning::Said(if error.use_stderr() { super::FAILED } else { 0 })
        }
    }
}

fn action(verb: Verb) -> Action {
    match verb {
        Verb::Run(run) => {
            Action::Run(Run { folders: run.mount, ..running(run.who, run.name, true, run.command) })
        }
        Verb::Exec(exec) => Action::Run(running(exec.who, Some(exec.name), false, exec.command)),
        Verb::List { online: true, from, json, .. } => Action::Online { list: from, json },
        Verb::Install { source, name, from, launch, making } => {
            let launch = if launch { Launch::Always } else { Launch::Never };
            Action::Import(Import { name, origin: Origin::Text(source), list: from, making, launch })
        }
        Verb::List { verbose, quiet, running, json, .. } => {
            let style = match (json, quiet) {
                (true, _) => Style::Json,
                (_, true) => Style::Quiet,
                _ => Style::Ours { verbose },
            };
            Action::List { style, running }
        }
        Verb::Status { watch, json } => Action::Status { json, watch },
        Verb::Top => Action::Status { json: false, watch: true },
        Verb::Ports { json } => Action::Ports { json },
        Verb::Vms { json } => Action::Vms { json },
        Verb::Import { name, archive, image, making } => {
            let origin = if image { Origin::Image(archive) } else { Origin::File(archive) };
            let launch = Launch::Never;
            Action::Import(Import { name: Some(name), origin, list: None, making, launch })
        }
        Verb::Terminate { name, force } => Action::Terminate { name, force },
        Verb::Shutdown { force } => Action::Shutdown { force },
        Verb::Unregister { name } => Action::Unregister(name),
        Verb::SetDefault { name } => Action::SetDefault(name),
        Verb::Export { name, file, format } => Action::Export { name, file, format },
        Verb::Clone { name, new_name } => Action::Clone { name, new_name },
        Verb::Rename { name, new_name } => Action::Rename { name, new_name },
        Verb::Move { name, directory } => Action::Move { name, directory },
        Verb::Resize { name, size } => Action::Resize { name, size },
        Verb::ImportInPlace { name, image } => Action::Adopt { name, image },
        Verb::KeepAlive { name, keep } => Action::KeepAlive { name, keep },
        Verb::SetDefaultUser { name, user } => Action::SetDefaultUser { name, user },
        Verb::Version { json } => {
            Action::Version { style: if json { Style::Json } else { Style::Ours { verbose: false } } }
        }
        Verb::Config(config) => Action::Config(config),
        Verb::Doctor { json } => Action::Doctor { json },
        Verb::Parts { archive, sha256 } => Action::Parts { archive, sha256 },
        Verb::Completions { shell } => Action::Completions(shell),
        Verb::Man { folder } => Action::Man(folder),
        Verb::Service => Action::Serve,
    }
}

fn running(who: Who, distribution: Option<String>, start: bool, command: Vec<OsString>) -> Run {
    let program = match (command.is_empty(), who.shell) {
        (true, _) => Program::LoginShell,
        (_, true) => Program::Line(line(&command)),
        _ => Program::Argv(command),
    };
    Run {
        distribution,
        start,
        user: who.user,
        directory: who.cd,
        at_home: false,
        publish: who.publish,
        folders: Vec::new(),
        program,
    }
}

/// A folder of the host's and where it is seen; the first may be relative to where this program is, as it is for any other.
fn folder(text: &str) -> Result<Mount, String> {
    let here = std::env::current_dir().map_err(|error| format!("where this is cannot be told: {error}"))?;
    folder_from(&here, text)
}

fn folder_from(here: &Path, text: &str) -> Result<Mount, String> {
    let (path, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
    let absolute: PathBuf = match path {
        "" => return Err(NotAMount.to_string()),
        // `./src` and `src/../lib` are their own places in the distribution, too.
        path => here.join(path).components().filter(|part| *part != Component::CurDir).collect(),
    };
    let absolute = absolute.to_str().ok_or("a path that is no UTF-8 cannot be shared")?;
    format!("{absolute}{rest}").parse::<Mount>().map_err(|error| error.to_string())
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// Words as one line for a shell, which splits them anew: quoting is the person's.
pub(super) fn line(words: &[OsString]) -> OsString {
    words.join(std::ffi::OsStr::new(" "))
}

/// A size in bytes, with a suffix K, M, G or T (powers of 1024) and a B or not.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("expected a size such as 512M or 64G, and got {text}");
    let upper = text.trim().to_ascii_uppercase();
    let plain = upper.strip_suffix('B').unwrap_or(&upper);
    let digits = plain.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &plain[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(line: &str) -> Action {
        match parse(line.split(' ').map(OsString::from).collect()) {
            Meaning::Do(action) => action,
            Meaning::Said(status) => panic!("{line}: said something, status {status}"),
        }
    }

    #[test]
    fn what_is_published_is_an_address_and_a_port() {
        let Action::Run(run) = meant("run -p 0.0.0.0:80 -p [::1]:53/udp deb ls") else { panic!() };
        let published: Vec<String> = run.publish.iter().map(ToString::to_string).collect();
        assert_eq!(published, ["0.0.0.0:80", "[::1]:53/udp"]);
        let nonsense = ["run", "-p", "80", "deb"].map(OsString::from);
        assert!(matches!(parse(nonsense.into()), Meaning::Said(super::super::FAILED)));
    }

    #[test]
    fn folders_are_named_from_where_one_is() {
        let shown = |text: &str| match folder_from(Path::new("/home/ada"), text) {
            Ok(mount) => mount.to_string(),
            Err(error) => format!("! {error}"),
        };
        assert_eq!(shown("."), "/home/ada:/home/ada");
        assert_eq!(shown("./src:/src:ro"), "/home/ada/src:/src:ro");
        assert_eq!(shown("/etc:/mnt/etc"), "/etc:/mnt/etc");
        for text in ["", ":/x", "src:x", "..", "/"] {
            assert!(shown(text).starts_with('!'), "{text}: {}", shown(text));
        }
        let Action::Run(run) = meant("run -m /a --mount /b:/c deb ls") else { panic!() };
        assert_eq!(run.folders.len(), 2);
    }

    #[test]
    fn verbs_are_actions() {
        command().debug_assert();
        let Action::Run(run) = meant("run -u joe deb ls -l --all") else { panic!() };
        assert_eq!(run.distribution.as_deref(), Some("deb"));
        assert_eq!(run.user.as_deref(), Some("joe"));
        assert_eq!(run.program, Program::Argv(["ls", "-l", "--all"].map(OsString::from).into()));
        let Action::Run(run) = meant("run deb -- -x") else { panic!() };
        assert_eq!(run.program, Program::Argv(vec!["-x".into()]));
        let Action::Run(run) = meant("run -s deb echo $HOME") else { panic!() };
        assert_eq!(run.program, Program::Line("echo $HOME".into()));
        assert_eq!(meant("ls -q"), Action::List { style: Style::Quiet, running: false });
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("64G"), Ok(64 << 30));
        assert_eq!(bytes("1tb"), Ok(1 << 40));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "G", "4X", "-1", "99999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
