//! WSL's grammar: options that are verbs, and everything else a command for the default distribution.

use std::{ffi::OsString, os::unix::ffi::OsStrExt, path::PathBuf};

use super::{
    Meaning,
    action::{Action, Format, Import, Making, Origin, Program, Run, Style},
    ours::{bytes, line},
};

const HELP: &str = "\
Usage: wsl [options] [--] [command]        in the default user's shell; without a command, a login shell
       wsl [options] --exec command        without a shell

Options:
    -d, --distribution NAME     in this distribution, instead of the default one
    -u, --user USER             as this user
    --cd DIR                    in this directory; ~ is the user's home
    --shell-type standard|login|none

Management:
    --install [NAME] [--from-file FILE] [--name NAME] [--location DIR] [--vhd-size SIZE]
    --import NAME DIR FILE|-    make a distribution from a tar archive, with its disk in DIR
    --import-in-place NAME FILE make an ext4 image a distribution, where it stands
    --export NAME FILE|- [--format tar|tar.gz|tar.xz|vhd]
    --manage NAME --move DIR | --resize SIZE | --set-default-user USER
    --list, -l [--verbose, -v] [--quiet, -q] [--running] [--all] [--online, -o]
    --set-default, -s NAME
    --terminate, -t NAME
    --unregister NAME
    --shutdown [--force]
    --status
    --version, -v
    --help

undercroft's own verbs: undercroft --help
";

/// Options that are verbs here.
const VERBS: [&str; 29] = [
    "--version",
    "--list",
    "-l",
    "--set-default",
    "-s",
    "--terminate",
    "-t",
    "--unregister",
    "--shutdown",
    "--status",
    "--import",
    "--install",
    "--export",
    "--import-in-place",
    "--manage",
    "--mount",
    "--unmount",
    "--update",
    "--debug-shell",
    "--system",
    "-d",
    "--distribution",
    "-e",
    "--exec",
    "-u",
    "--user",
    "--cd",
    "--shell-type",
    "--",
];

/// Whether words are of this grammar, when the program has its own name: `undercroft --list`, `undercroft -d debian`.
pub(super) fn looks_like(words: &[OsString]) -> bool {
    words.first().is_some_and(|first| VERBS.iter().any(|verb| first == verb))
}

pub(super) fn parse(words: Vec<OsString>, only: bool) -> Meaning {
    match action(words) {
        Ok(Some(action)) => Meaning::Do(action),
        Ok(None) => {
            print!("{HELP}");
            Meaning::Said(0)
        }
        Err(mistake) => {
            eprintln!("error: {mistake}\nTry `{} --help`.", if only { "wsl" } else { "undercroft" });
            Meaning::Said(if only { super::FAILED_AS_WSL } else { super::FAILED })
        }
    }
}

/// Words that were not looked at yet.
struct Rest(std::vec::IntoIter<OsString>);

impl Rest {
    fn next(&mut self) -> Option<OsString> {
        self.0.next()
    }

    fn value(&mut self, of: &str) -> Result<OsString, String> {
        self.next().ok_or_else(|| format!("{of}: expected a value after it"))
    }

    fn text(&mut self, of: &str) -> Result<String, String> {
        let value = self.value(of)?;
        value.into_string().map_err(|value| format!("{of} {}: it is not UTF-8", value.display()))
    }

    /// Nothing may follow.
    fn end(&mut self, of: &str) -> Result<(), String> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(format!("{}: not known after {of}", word.display())),
        }
    }

    fn all(self) -> Vec<OsString> {
        self.0.collect()
    }
}

/// `None` is the help text.
fn action(words: Vec<OsString>) -> Result<Option<Action>, String> {
    let mut rest = Rest(words.into_iter());
    let mut run = Run {
        distribution: None,
        start: true,
        user: None,
        directory: None,
        at_home: false,
        publish: Vec::new(),
        folders: Vec::new(),
        program: Program::LoginShell,
    };
    let mut shell = "standard".to_owned();
    loop {
        let Some(word) = rest.next() else { return Ok(Some(Action::Run(run))) };
        let option = if word.as_bytes().starts_with(b"-") { word.to_str() } else { None };
        match option {
            Some("-d" | "--distribution") => run.distribution = Some(rest.text("--distribution")?),
            Some("-u" | "--user") => run.user = Some(rest.text("--user")?),
            Some("--cd") => {
                run.directory = Some(rest.value("--cd")?).filter(|directory| directory != "~");
                run.at_home = run.directory.is_none();
            }
            Some("--shell-type") => {
                shell = rest.text("--shell-type")?;
                if !matches!(shell.as_str(), "standard" | "login" | "none") {
                    return Err(format!("--shell-type {shell}: expected standard, login or none"));
                }
            }
            Some("-e" | "--exec") => {
                let first = rest.value("--exec")?;
                run.program = Program::Argv(std::iter::once(first).chain(rest.all()).collect());
                return Ok(Some(Action::Run(run)));
            }
            Some("--") => return Ok(Some(Action::Run(with(run, &shell, rest.all())))),
            Some(verb) => return management(verb, rest),
            None => {
                let command = std::iter::once(word).chain(rest.all()).collect();
                return Ok(Some(Action::Run(with(run, &shell, command))));
            }
        }
    }
}

fn with(run: Run, shell: &str, command: Vec<OsString>) -> Run {
    let program = match (command.is_empty(), shell) {
        (true, _) => Program::LoginShell,
        (_, "none") => Program::Argv(command),
        _ => Program::Line(line(&command)),
    };
    Run { program, ..run }
}

fn management(verb: &str, mut rest: Rest) -> Result<Option<Action>, String> {
    let action = match verb {
        "--help" => return Ok(None),
        "--list" | "-l" => return list(rest).map(Some),
        "--status" => Action::Status { json: false, watch: false },
        "--version" | "-v" => Action::Version { style: Style::Wsl { verbose: false } },
        "--terminate" | "-t" => Action::Terminate { name: rest.text(verb)?, force: false },
        "--unregister" => Action::Unregister(rest.text(verb)?),
        "--set-default" | "-s" => Action::SetDefault(rest.text(verb)?),
        "--shutdown" => match rest.next() {
            None => Action::Shutdown { force: false },
            Some(word) if word == "--force" => Action::Shutdown { force: true },
            Some(word) => return Err(format!("{}: not known after --shutdown", word.display())),
        },
        "--import" => {
            let (name, location, archive) = (rest.text(verb)?, rest.value(verb)?, rest.value(verb)?);
            let mut making = Making { location: Some(location.into()), ..Making::default() };
            while let Some(word) = rest.next() {
                match word.to_str() {
                    // There is one version of this system.
                    Some("--version") => drop(rest.value("--version")?),
                    Some("--flat") => making.flat = true,
                    Some("--vhd-size") => making.size = Some(bytes(&rest.text("--vhd-size")?)?),
                    _ => return Err(format!("{}: not known after --import", word.display())),
                }
            }
            Action::Import(Import {
                name: Some(name),
                origin: Origin::File(archive.into()),
                list: None,
                making,
            })
        }
        "--import-in-place" => Action::Adopt { name: rest.text(verb)?, image: rest.value(verb)?.into() },
        "--export" => export(&mut rest)?,
        "--manage" => manage(&mut rest)?,
        "--debug-shell" | "--system" => {
            return Err(format!(
                "{verb}: the virtual machine has no shell of its own; `debugConsole` in .wslconfig shows its console, and a \
                 distribution with `user = shared` has its rights"
            ));
        }
        "--mount" | "--unmount" | "--update" => {
            return Err(format!("{verb}: undercroft has nothing of the kind"));
        }
        "--install" => install(&mut rest)?,
        other => return Err(format!("{other}: not known")),
    };
    rest.end(verb)?;
    Ok(Some(action))
}

fn export(rest: &mut Rest) -> Result<Action, String> {
    let (name, file) = (rest.text("--export")?, rest.value("--export")?);
    let mut format = None;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--format") => {
                let text = rest.text("--format")?;
                format = Some(match text.as_str() {
                    "tar" => Format::Tar,
                    "tar.gz" => Format::TarGz,
                    "tar.xz" => Format::TarXz,
                    "tar.zst" => Format::TarZst,
                    "vhd" | "image" => Format::Image,
                    _ => {
                        return Err(format!("--format {text}: expected tar, tar.gz, tar.xz, tar.zst or vhd"));
                    }
                });
            }
            Some("--vhd") => format = Some(Format::Image),
            _ => return Err(format!("{}: not known after --export", word.display())),
        }
    }
    Ok(Action::Export { name, file: file.into(), format })
}

fn manage(rest: &mut Rest) -> Result<Action, String> {
    let name = rest.text("--manage")?;
    let word = rest.text("--manage NAME")?;
    match word.as_str() {
        "--move" => Ok(Action::Move { name, directory: Some(rest.value("--move")?.into()) }),
        "--resize" => Ok(Action::Resize { name, size: bytes(&rest.text("--resize")?)? }),
        "--set-default-user" => Ok(Action::SetDefaultUser { name, user: rest.text(&word)? }),
        // Disks are sparse in any case.
        "--set-sparse" => Err("--set-sparse: every disk is sparse here, and stays so".into()),
        other => {
            Err(format!("{other}: expected --move, --resize or --set-default-user after --manage {name}"))
        }
    }
}

fn install(rest: &mut Rest) -> Result<Action, String> {
    let (mut origin, mut name, mut making, mut online) = (None, None, Making::default(), false);
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--from-file" | "-f") => {
                origin = Some(Origin::File(PathBuf::from(rest.value("--from-file")?)));
            }
            Some("--online" | "-o") => online = true,
            Some(word) if !word.starts_with('-') => origin = Some(Origin::Text(word.into())),
            Some("--web-download") => {}
            Some("--name") => name = Some(rest.text("--name")?),
            Some("--vhd-size") => making.size = Some(bytes(&rest.text("--vhd-size")?)?),
            Some("--no-launch" | "-n") => {}
            Some("--location" | "-l") => making.location = Some(rest.value("--location")?.into()),
            _ => {
                return Err(format!("{}: not known after --install", word.display()));
            }
        }
    }
    match origin {
        _ if online => Ok(Action::Online { list: None, json: false }),
        Some(origin) => Ok(Action::Import(Import { name, origin, list: None, making })),
        None => Err("--install: expected a name (of --list --online) or --from-file FILE".into()),
    }
}

fn list(mut rest: Rest) -> Result<Action, String> {
    let (mut verbose, mut quiet, mut running) = (false, false, false);
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--verbose" | "-v") => verbose = true,
            Some("--quiet" | "-q") => quiet = true,
            Some("--running") => running = true,
            Some("--all") => {}
            Some("--online" | "-o") => return Ok(Action::Online { list: None, json: false }),
            _ => return Err(format!("{}: not known after --list", word.display())),
        }
    }
    let style = if quiet { Style::Quiet } else { Style::Wsl { verbose } };
    Ok(Action::List { style, running })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(line: &str) -> Result<Option<Action>, String> {
        action(line.split_whitespace().map(OsString::from).collect())
    }

    fn run(line: &str) -> Run {
        match meant(line) {
            Ok(Some(Action::Run(run))) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_fingers_know() {
        let argv = |words: &[&str]| Program::Argv(words.iter().map(OsString::from).collect());
        assert_eq!(run("").program, Program::LoginShell);
        assert_eq!(run("ls -l").program, Program::Line("ls -l".into()));
        assert_eq!(run("-- -x").program, Program::Line("-x".into()));
        assert_eq!(run("--shell-type none ls -l").program, argv(&["ls", "-l"]));
        let one = run("-d Debian -u root --cd /tmp -e bash -c id");
        assert_eq!(one.distribution.as_deref(), Some("Debian"));
        assert_eq!(one.user.as_deref(), Some("root"));
        assert_eq!((one.directory, one.at_home), (Some("/tmp".into()), false));
        let home = run("--cd ~ ls");
        assert_eq!((home.directory, home.at_home), (None, true));
        assert_eq!(one.program, argv(&["bash", "-c", "id"]));
        let verbose = Style::Wsl { verbose: true };
        assert_eq!(meant("-l -v"), Ok(Some(Action::List { style: verbose, running: false })));
        assert_eq!(meant("--shutdown --force"), Ok(Some(Action::Shutdown { force: true })));
        let import = Action::Import(Import {
            name: Some("x".into()),
            origin: Origin::File("-".into()),
            list: None,
            making: Making { location: Some("/d".into()), ..Making::default() },
        });
        assert_eq!(meant("--import x /d - --version 2"), Ok(Some(import)));
        assert_eq!(meant("--help"), Ok(None));
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        let all = ["-d", "--lost", "--list --quick", "--shell-type fish ls", "--shutdown now", "--install"];
        let said: Vec<_> = all.iter().map(|line| format!("{line} → {}", meant(line).unwrap_err())).collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        -d → --distribution: expected a value after it
        --lost → --lost: not known
        --list --quick → --quick: not known after --list
        --shell-type fish ls → --shell-type fish: expected standard, login or none
        --shutdown now → now: not known after --shutdown
        --install → --install: expected a name (of --list --online) or --from-file FILE
        ");
    }
}
