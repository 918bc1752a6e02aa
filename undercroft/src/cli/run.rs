//! A process in a distribution, connected with this terminal or these pipes.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStringExt,
};

use anyhow::bail;
use undercroft::{
    Input, Relayed, Signals,
    service::{
        Client,
        wire::{self, Event, endpoint},
    },
    terminal,
};
use undercroft_config::LONGEST;
use undercroft_protocol::session::{ExitStatus, Program as What};

use super::{
    action::{Program, Run},
    console::Console,
};

/// Runs it; gives its status as a shell would.
pub(super) fn run(run: Run) -> anyhow::Result<u8> {
    let interactive = terminal::is_interactive();
    let program = match run.program {
        Program::LoginShell => What::LoginShell,
        Program::Line(line) => What::ShellCommand(line.into_vec()),
        Program::LoginLine(line) => What::LoginCommand(line.into_vec()),
        Program::Argv(words) => What::Argv(words.into_iter().map(OsStringExt::into_vec).collect()),
    };
    let here = if run.at_home { None } else { std::env::current_dir().ok() };
    let request = wire::Run {
        distribution: run.distribution,
        start: run.start,
        user: run.user,
        directory: run.directory.map(OsStringExt::into_vec),
        here: here.map(|here| here.into_os_string().into_vec()),
        program,
        environment: environment(interactive),
        terminal: interactive.then(terminal::size),
        publish: run.publish.iter().map(endpoint).collect(),
        folders: run.folders.into_iter().map(Into::into).collect(),
    };
    let client = Client::new()?;
    loop {
        let mut set_up = None;
        let console = Console::if_wanted();
        // Until the process runs a Ctrl-C ends this client, and with it what was asked.
        let session = client.run(request.clone(), |event| match event {
            Event::Warning(line) => eprintln!("warning: {line}"),
            Event::SetUp { name, command } => {
                eprintln!("{name} is set up before its first shell, by `{command}`:");
                set_up = Some((name, command));
            }
            _ => {}
        })?;
        drop(console);
        let signals = Signals::watch()?;
        let status = if interactive {
            terminal::relay(session, &signals)?
        } else {
            terminal::relay_pipes(session, &signals)?
        };
        match (set_up, status) {
            (None, status) => return Ok(u8::try_from(status.shell()).unwrap_or(u8::MAX)),
            (Some(_), ExitStatus::Code(0)) => {}
            (Some((name, command)), status) => bail!(
                "{name} is not set up: `{command}` ended with status {}, and there is no shell until it succeeds. \
                 `undercroft run {name}` begins it anew; a command, as in `undercroft run {name} sh`, runs without",
                status.shell()
            ),
        }
    }
}

/// A user's number, as the distribution knows it.
pub(super) fn uid_of(distribution: &str, user: &str) -> anyhow::Result<u32> {
    let client = Client::new()?;
    // As that user: there is an `id` that takes names only, and who it is is for the init to say.
    let request = wire::Run { user: Some(user.into()), ..wire::Run::words(distribution, &["id", "-u"]) };
    let session = client.run(request, |_| ())?;
    let mut output = Vec::new();
    let status = session.relay(Input::Null, &mut output, io::sink())?;
    let number = String::from_utf8_lossy(&output).trim().parse();
    match (status.shell(), number) {
        (0, Ok(uid)) => Ok(uid),
        _ => bail!("{user}: no such user in {distribution}"),
    }
}

/// A file of a distribution's, as root reads it: the first [`LONGEST`] bytes, and none if it cannot be read.
pub(super) fn file_of(distribution: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let request = wire::Run { user: Some("root".into()), ..wire::Run::words(distribution, &["cat", path]) };
    let mut start = Start(Vec::new());
    Client::new()?.run(request, |_| ())?.relay(Input::Null, &mut start, io::sink())?;
    Ok(start.0)
}

/// Keeps so much of what is written that its end is seen to be missing.
struct Start(Vec<u8>);

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(LONGEST).unwrap_or(usize::MAX).saturating_add(1) - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What goes along: what the terminal is, and what WSLENV names (`NAME:NAME/flags:…`; the flags are about Windows' paths and
/// mean nothing here).
fn environment(interactive: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let wanted = std::env::var("WSLENV").unwrap_or_default();
    let named = wanted.split(':').filter_map(|word| word.split('/').next()).filter(|name| !name.is_empty());
    let own = ["TERM", "COLORTERM"].into_iter().filter(|_| interactive);
    let mut pairs = Vec::new();
    for name in own.chain(named) {
        if let Some(value) = std::env::var_os(name) {
            pairs.push((name.as_bytes().to_vec(), value.into_vec()));
        }
    }
    pairs
}
