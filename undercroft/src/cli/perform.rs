//! Doing what was asked.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use undercroft::{
    Compression, NewFile,
    service::{
        self, Client, Parts, Paths, Settings,
        wire::{Answer, Doing, Event, Export, Format, Listed, Request, Status},
    },
    store::StoreError,
};

use super::{
    action::{self, Action, Style},
    bar::Bar,
    completions, config, doctor, import, man, run, show,
};

/// Carries it out; gives the exit status.
pub(super) fn perform(action: Action) -> anyhow::Result<u8> {
    match action {
        Action::Serve => service::serve(Paths::of_user()?)?,
        Action::Run(run) => return run::run(run),
        Action::List { style, running } => return list(style, running),
        Action::Status { json: true, .. } => say(&show::json(&status()?))?,
        Action::Status { watch: false, .. } => say(&show::status(&status()?, None))?,
        Action::Status { watch: true, .. } => watch()?,
        Action::Ports { json } => {
            let ports = match Client::if_running()? {
                Some(client) => match client.ask(&Request::Ports, None, |_| ())? {
                    Answer::Ports(ports) => ports,
                    _ => bail!("the service answered something else"),
                },
                None => Vec::new(),
            };
            say(&if json { show::json(&ports) } else { show::ports(&ports) })?;
        }
        Action::Vms { json } => {
            let status = running()?;
            let vm = status.as_ref().and_then(|status| status.vm.as_ref());
            let runs = |status: &Status| {
                status.distributions.iter().filter(|one| one.state == Doing::Running).count()
            };
            let text = match json {
                true => show::json(&vm),
                false => show::vms(vm, status.as_ref().map_or(0, runs)),
            };
            say(&text)?;
        }
        Action::Import(what) => return import::import(what),
        Action::Online { list, json } => import::online(list, json)?,
        Action::Defaults => {
            let all = listed()?;
            let default = all.iter().find(|one| one.default);
            let line = default.map(|one| format!("Default Distribution: {}\n", one.name)).unwrap_or_default();
            say(&(line + "Default Version: 2\n"))?;
        }
        Action::Note { of, text } => {
            if let Some(name) = of
                && !listed()?.iter().any(|one| one.name.eq_ignore_ascii_case(&name))
            {
                return Err(undercroft::Error::from(StoreError::Unknown(name)).into());
            }
            say(&text)?;
        }
        Action::Terminate { name, force } => ask(&Request::Terminate { name, force })?,
        Action::Shutdown { force } => {
            // If nothing runs, that is what was wanted.
            if let Some(client) = Client::if_running()? {
                tell(&client, &Request::Shutdown { force })?;
            }
        }
        Action::Unregister(name) => ask(&Request::Unregister(name))?,
        Action::SetDefault(name) => ask(&Request::SetDefault(name))?,
        Action::Export { name, file, format } => export(name, &file, format)?,
        Action::Clone { name, new_name } => ask(&Request::Clone { name, new_name })?,
        Action::Rename { name, new_name } => ask(&Request::Rename { name, new_name })?,
        Action::Move { name, directory } => {
            let directory = directory.map(std::path::absolute).transpose()?;
            ask(&Request::Move { name, directory })?;
        }
        Action::Resize { name, size } => ask(&Request::Resize { name, size })?,
        Action::Adopt { name, image } => {
            let image =
                std::fs::canonicalize(&image).with_context(|| format!("cannot open {}", image.display()))?;
            ask(&Request::Adopt { name, image })?;
        }
        Action::KeepAlive { name, keep } => {
            ask(&Request::Configure { name, default_uid: None, keep_alive: Some(keep) })?;
        }
        Action::SetDefaultUser { name, user } => {
            let uid = run::uid_of(&name, &user)?;
            ask(&Request::Configure { name, default_uid: Some(uid), keep_alive: None })?;
        }
        Action::Version { style } => say(&version(style))?,
        Action::Config(wanted) => config::config(&wanted)?,
        Action::Doctor { json } => return doctor::doctor(json),
        Action::Parts { archive, sha256 } => {
            let (bar, paths) = (Bar::new(), Paths::of_user()?);
            let parts = service::bring(&archive, sha256.as_ref(), &paths, &mut |progress| {
                let what = format!("{} {}", progress.phase, progress.what);
                bar.show(Event::Progress { what, done: progress.done, total: progress.total });
            })?;
            drop(bar);
            say(&format!(
                "kernel {} and its programs are in {}\n",
                parts.kernel.release,
                paths.parts().display()
            ))?;
        }
        Action::Completions(shell) => completions::write(shell, &mut io::stdout())?,
        Action::Man(folder) => man::write(&folder)
            .with_context(|| format!("cannot write manual pages to {}", folder.display()))?,
    }
    Ok(0)
}

/// Prints; a reader that has gone (`| head`) has seen enough.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn ask(request: &Request) -> anyhow::Result<()> {
    tell(&Client::new()?, request)
}

fn tell(client: &Client, request: &Request) -> anyhow::Result<()> {
    let bar = Bar::new();
    if let Answer::Text(lines) = client.ask(request, None, |event| bar.show(event))? {
        drop(bar);
        for line in lines {
            eprintln!("{line}");
        }
    }
    Ok(())
}

/// Every distribution, the default one first.
pub(super) fn listed() -> anyhow::Result<Vec<Listed>> {
    match Client::new()?.ask(&Request::List, None, |_| ())? {
        Answer::List(all) => Ok(all),
        _ => bail!("the service answered something else"),
    }
}

fn list(style: Style, running: bool) -> anyhow::Result<u8> {
    let mut all = listed()?;
    if running {
        all.retain(|one: &Listed| one.state == Doing::Running);
    }
    match (all.is_empty(), style) {
        (false, _) | (_, Style::Json | Style::Quiet) => say(&show::list(style, &all))?,
        (true, _) if running => {
            eprintln!("no distribution runs");
            return Ok(1);
        }
        (true, _) => {
            eprintln!(
                "there is no distribution yet: `undercroft list --online` shows what can be installed by name, and `undercroft import \
                 NAME FILE` makes one from a root file system's tar archive"
            );
            return Ok(u8::from(matches!(style, Style::Wsl { .. })));
        }
    }
    Ok(0)
}

fn status() -> anyhow::Result<Status> {
    status_of(&Client::new()?)
}

/// The status of a service that runs already.
fn running() -> anyhow::Result<Option<Status>> {
    Client::if_running()?.map(|client| status_of(&client)).transpose()
}

fn status_of(client: &Client) -> anyhow::Result<Status> {
    match client.ask(&Request::Status, None, |_| ())? {
        Answer::Status(status) => Ok(*status),
        _ => bail!("the service answered something else"),
    }
}

/// Shows the status every second, until Ctrl-C. It does not keep anything from stopping.
fn watch() -> anyhow::Result<()> {
    let mut before: Option<(Status, Instant)> = None;
    loop {
        let now = running()?.map(|status| (status, Instant::now()));
        let text = match &now {
            Some((status, at)) => {
                let earlier = before.as_ref().map(|(then, when)| (then, at.duration_since(*when)));
                show::status(status, earlier)
            }
            None => "nothing runs\n".into(),
        };
        before = now;
        if io::stdout().is_terminal() {
            // Home, and clear what was there (ECMA-48, CUP and ED).
            say("\x1b[H\x1b[2J")?;
        }
        say(&text)?;
        io::stdout().flush()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn export(name: String, path: &Path, format: Option<action::Format>) -> anyhow::Result<()> {
    let named = match Compression::of_name(path) {
        Compression::Gzip => Format::Gzip,
        Compression::Xz => Format::Xz,
        Compression::Zstd => Format::Zstd,
        Compression::None if path.extension().is_some_and(|end| end == "img" || end == "ext4") => {
            Format::Image
        }
        Compression::None => Format::Tar,
    };
    let format = format.map_or(named, |format| match format {
        action::Format::Tar => Format::Tar,
        action::Format::TarGz => Format::Gzip,
        action::Format::TarXz => Format::Xz,
        action::Format::TarZst => Format::Zstd,
        action::Format::Image => Format::Image,
    });
    let request = Request::Export(Export { name, to: path.into(), format });
    let client = Client::new()?;
    let bar = Bar::new();
    if path == Path::new("-") {
        let output = io::stdout();
        if output.is_terminal() {
            bail!("-: an archive is nothing for a terminal: expected a pipe or a file on standard output");
        }
        client.ask(&request, Some(&output), |event| bar.show(event))?;
        return Ok(());
    }
    // It has its name when it is whole.
    let new = NewFile::create(path)?;
    client.ask(&request, Some(new.file()), |event| bar.show(event))?;
    Ok(new.keep()?)
}

fn version(style: Style) -> String {
    let own = env!("CARGO_PKG_VERSION");
    let own_kernel = Paths::of_user().ok().and_then(|paths| Settings::read(&paths).host.kernel);
    let kernel = Parts::find(own_kernel.as_deref()).map(|parts| parts.kernel.release);
    match style {
        Style::Json => show::json(&serde_json::json!({ "undercroft": own, "kernel": kernel.ok() })),
        _ => {
            let kernel = kernel.unwrap_or_else(|error| format!("none ({error})"));
            format!("undercroft version: {own}\nKernel version: {kernel}\n")
        }
    }
}
