//! Distributions that are made: of an archive, an image, or a list's name; and what lists have.

use std::{
    fs,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::Path,
};

use anyhow::{Context, bail};
use undercroft::service::{
    Client,
    wire::{Answer, Import, Offer, Origin, Request},
};

use super::{
    action::{self, Launch, Making, Program, Run},
    bar::Bar,
    perform::say,
    run, show,
};

/// Makes one, and starts a shell in it if that was asked for, whose status this gives.
pub(super) fn import(what: action::Import) -> anyhow::Result<u8> {
    let action::Import { name, origin, list, making: Making { flat, size, location }, launch } = what;
    let location = location.map(std::path::absolute).transpose()?;
    let stdin = matches!(&origin, action::Origin::File(path) if path == Path::new("-"));
    if stdin && io::stdin().is_terminal() {
        bail!("-: expected a tar archive on standard input, which is a terminal");
    }
    let whole =
        |path: &Path| fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()));
    let here = || std::env::current_dir().context("the working directory is unknown");
    let origin = match origin {
        _ if stdin => Origin::Stream,
        action::Origin::File(path) => Origin::Path(whole(&path)?),
        action::Origin::Image(path) => Origin::Image(whole(&path)?),
        action::Origin::Text(text) => Origin::Text(text, here()?),
        action::Origin::Default => Origin::Text(default(catalogue(list.clone())?)?, here()?),
    };
    let bar = Bar::new();
    let input = io::stdin();
    let stream: Option<&dyn AsFd> = stdin.then_some(&input as _);
    let request = Request::Import(Import { name, origin, list, flat, size, location });
    let answer = Client::new()?.ask(&request, stream, |event| bar.show(event))?;
    drop(bar);
    let Answer::Imported { name, line } = answer else { bail!("the service answered something else") };
    eprintln!("{line}");
    let launches = match launch {
        Launch::Never => false,
        Launch::AtTerminal => io::stdin().is_terminal(),
        Launch::Always => true,
    };
    if !launches {
        return Ok(0);
    }
    run::run(Run {
        distribution: Some(name),
        start: true,
        user: None,
        directory: None,
        at_home: true,
        publish: Vec::new(),
        folders: Vec::new(),
        program: Program::LoginShell,
    })
}

/// Shows what a list has.
pub(super) fn online(list: Option<String>, json: bool) -> anyhow::Result<()> {
    let offers = catalogue(list)?;
    say(&if json { show::json(&offers) } else { show::offers(&offers) })
}

fn catalogue(list: Option<String>) -> anyhow::Result<Vec<Offer>> {
    // A path is this process's own matter.
    let list = list.map(|list| match fs::canonicalize(&list) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(_) => list,
    });
    let bar = Bar::new();
    match Client::new()?.ask(&Request::Catalogue(list), None, |event| bar.show(event))? {
        Answer::Catalogue(offers) => Ok(offers),
        _ => bail!("the service answered something else"),
    }
}

fn default(offers: Vec<Offer>) -> anyhow::Result<String> {
    let default = offers.into_iter().find(|offer| offer.default);
    let default = default.map(|offer| offer.name);
    default.context("the list has no default: expected a name of `undercroft list --online`, or a file")
}
