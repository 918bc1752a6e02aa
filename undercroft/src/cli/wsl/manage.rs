//! Options that are verbs.

use std::path::{Path, PathBuf};

use super::{
    super::{
        action::{Action, Format, Import, Launch, Making, Origin, Style},
        ours::bytes,
    },
    Rest, refused,
};

const ONE_VERSION: &str = "there is one version of this system, WSL's second: every distribution is on it";

const UPDATE: &str = "\
undercroft does not update itself: a newer one comes as this one did, by the package manager, by its archive unpacked over it,
or by `cargo install undercroft` and `undercroft parts ARCHIVE`. What runs is the old one until `undercroft shutdown`.";

/// `None` is the help text.
pub(super) fn action(verb: &str, mut rest: Rest) -> Result<Option<Action>, String> {
    if let Some(reason) = refused::reason(verb) {
        return Err(format!("{verb}: {reason}"));
    }
    let action = match verb {
        "--help" | "-h" => return Ok(None),
        "--list" | "-l" => return list(rest).map(Some),
        "--status" => Action::Defaults,
        "--version" | "-v" => Action::Version { style: Style::Wsl { verbose: false } },
        "--terminate" | "-t" => Action::Terminate { name: rest.text(verb)?, force: false },
        "--unregister" => Action::Unregister(rest.text(verb)?),
        "--set-default" | "-s" => Action::SetDefault(rest.text(verb)?),
        "--shutdown" => match rest.next() {
            None => Action::Shutdown { force: false },
            Some(word) if word == "--force" => Action::Shutdown { force: true },
            Some(word) => return Err(format!("{}: not known after --shutdown", word.display())),
        },
        "--import" => import(&mut rest)?,
        "--import-in-place" => Action::Adopt { name: rest.text(verb)?, image: rest.value(verb)?.into() },
        "--export" => export(&mut rest)?,
        "--manage" => manage(&mut rest)?,
        "--install" => install(&mut rest)?,
        "--update" => {
            while let Some(word) = rest.next() {
                if !matches!(word.to_str(), Some("--web-download" | "--pre-release")) {
                    return Err(format!("{}: not known after --update", word.display()));
                }
            }
            note(None, UPDATE)
        }
        "--set-version" => {
            let name = rest.text(verb)?;
            version(&format!("{verb} {name}"), &rest.text(verb)?)?;
            note(Some(name), ONE_VERSION)
        }
        "--set-default-version" => {
            version(verb, &rest.text(verb)?)?;
            note(None, ONE_VERSION)
        }
        other => return Err(format!("{other}: not known")),
    };
    rest.end(verb)?;
    Ok(Some(action))
}

fn note(of: Option<String>, text: &str) -> Action {
    Action::Note { of, text: format!("{text}\n") }
}

fn version(what: &str, version: &str) -> Result<(), String> {
    match version {
        "2" => Ok(()),
        "1" => Err(format!(
            "{what} 1: WSL's first version has no kernel of its own, and there is nothing of the kind here: every distribution is \
             on version 2"
        )),
        other => Err(format!("{what} {other}: expected 2, and there is no other version")),
    }
}

fn import(rest: &mut Rest) -> Result<Action, String> {
    const VERB: &str = "--import";
    let (name, location, file) = (rest.text(VERB)?, rest.value(VERB)?, PathBuf::from(rest.value(VERB)?));
    let mut making = Making { location: Some(location.into()), ..Making::default() };
    let mut image = false;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--version") => version("--import --version", &rest.text("--version")?)?,
            Some("--flat") => making.flat = true,
            Some("--vhd") => image = true,
            Some("--vhd-size") => making.size = Some(bytes(&rest.text("--vhd-size")?)?),
            _ => return Err(format!("{}: not known after --import", word.display())),
        }
    }
    let origin = match image {
        true if file == Path::new("-") => {
            return Err("--vhd: expected a file before it, and no stream".into());
        }
        true if making.size.is_some() => {
            return Err(format!(
                "--vhd-size: a copy of an image is as large as that, and `undercroft resize {name} SIZE` changes it"
            ));
        }
        true => Origin::Image(file),
        false => Origin::File(file),
    };
    Ok(Action::Import(Import { name: Some(name), origin, list: None, making, launch: Launch::Never }))
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
    const WHAT: &str = "--move DIR, --resize SIZE, --set-default-user USER or --set-sparse true";
    let name = rest.text("--manage")?;
    let word = rest.next().ok_or_else(|| format!("--manage {name}: expected {WHAT} after it"))?;
    match word.to_str() {
        Some("--move") => Ok(Action::Move { name, directory: Some(rest.value("--move")?.into()) }),
        Some("--resize") => Ok(Action::Resize { name, size: bytes(&rest.text("--resize")?)? }),
        Some(word @ "--set-default-user") => Ok(Action::SetDefaultUser { name, user: rest.text(word)? }),
        Some(word @ ("--set-sparse" | "-s")) => {
            let value = rest.text("--set-sparse")?.to_ascii_lowercase();
            // It tells WSL that a defect of its sparse disks is known; these have none.
            let rest = rest.next().filter(|word| word != "--allow-unsafe");
            match (value.as_str(), rest) {
                (_, Some(more)) => Err(format!("{}: not known after {word} {value}", more.display())),
                ("true" | "1", None) => {
                    Ok(note(Some(name), "every disk is sparse, and takes what is written on it and no more"))
                }
                ("false" | "0", None) => Err(format!(
                    "{word} {value}: every disk is sparse, and there is no other kind; `undercroft resize {name} SIZE` is the most \
                     that it may take"
                )),
                (other, None) => Err(format!("{word} {other}: expected true or false")),
            }
        }
        _ => Err(format!("{}: expected {WHAT} after --manage {name}", word.display())),
    }
}

fn install(rest: &mut Rest) -> Result<Action, String> {
    let (mut origin, mut name, mut making, mut online) = (None, None, Making::default(), false);
    let mut launch = Launch::AtTerminal;
    while let Some(word) = rest.next() {
        match word.to_str() {
            Some("--from-file" | "-f") => {
                origin = Some(Origin::File(PathBuf::from(rest.value("--from-file")?)));
            }
            Some("--online" | "-o") => online = true,
            Some("--distribution" | "-d") => origin = Some(Origin::Text(rest.text("--distribution")?)),
            Some(word) if !word.starts_with('-') => origin = Some(Origin::Text(word.into())),
            Some("--web-download") => {}
            Some("--version") => version("--install --version", &rest.text("--version")?)?,
            Some("--no-distribution") => {
                return Ok(note(None, "undercroft is installed; `undercroft doctor` looks at what it needs"));
            }
            Some("--name") => name = Some(rest.text("--name")?),
            Some("--vhd-size") => making.size = Some(bytes(&rest.text("--vhd-size")?)?),
            Some("--no-launch" | "-n") => launch = Launch::Never,
            Some("--location" | "-l") => making.location = Some(rest.value("--location")?.into()),
            _ => {
                return Err(format!("{}: not known after --install", word.display()));
            }
        }
    }
    Ok(match online {
        true => Action::Online { list: None, json: false },
        false => {
            let origin = origin.unwrap_or(Origin::Default);
            Action::Import(Import { name, origin, list: None, making, launch })
        }
    })
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
