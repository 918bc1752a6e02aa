//! A virtiofsd that serves one folder until the machine ends, or it does.
//!
//! It has a sandbox of its own making: namespaces in which there is nothing but the folder, no network, no capabilities of
//! consequence, a seccomp filter. It gets no new privileges, and ends when its socket is closed (the VMM's, or a carrier's), or
//! with this process.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use crate::{board::Board, console::last_lines, guest::spawn, watched::Watched};

/// With the machine's end it ends, too, which is known a moment later.
const EXPLANATION: Duration = Duration::from_secs(2);

/// What a server's end is told by.
#[derive(Debug)]
pub(super) struct About {
    /// Which folder it serves.
    pub(super) what: String,
    /// Until when it is gone without one.
    pub(super) until: String,
}

/// A virtiofsd, killed when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    until: String,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    process: Watched,
    /// How it ended.
    end: OnceLock<String>,
}

impl Server {
    /// Starts it; it accepts one connection from `listener`. What it says goes to a file at `messages`. `about` is for
    /// the warning that it has ended.
    ///
    /// # Errors
    /// It cannot be executed.
    pub(super) fn start(
        program: &Path,
        arguments: Vec<OsString>,
        listener: UnixListener,
        messages: PathBuf,
        about: About,
        board: Arc<Board>,
    ) -> Result<Self, String> {
        let mut log = OpenOptions::new();
        log.write(true).create(true).truncate(true).mode(0o600);
        let log =
            log.open(&messages).map_err(|error| format!("no file for its server's messages: {error}"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(format!("--fd={}", listener.as_raw_fd()))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        crate::spawn::prepare_unprivileged(&mut command, vec![listener.as_raw_fd()]);
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        let (started, start) = mpsc::channel();
        let (path, until) = (program.to_owned(), about.until.clone());
        let thread = spawn("virtiofsd", move || {
            let child = command.spawn();
            // Its end of the socket is its own alone: when it ends, that is closed.
            drop((listener, command));
            match child {
                Ok(child) => {
                    watched.process.runs(&child);
                    let waits = started.send(Ok(()));
                    debug_assert!(waits.is_ok(), "the starting thread waits for this");
                    watch(child, &watched, &messages, &about, &board);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        let thread = thread.map_err(|error| error.to_string())?;
        match start.recv() {
            Ok(Ok(())) => Ok(Self { shared, until, thread: Some(thread) }),
            Ok(Err(error)) => Err(format!("{} cannot be executed: {error}", path.display())),
            Err(_) => Err("its server's thread has ended".into()),
        }
    }

    /// Ends it, which is told with this reason.
    pub(super) fn end(&self, why: String) {
        // Whoever ended first has said why.
        let _ = self.shared.end.set(why);
        self.shared.process.kill();
    }

    /// Its process id, as long as it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.shared.process.pid()
    }

    /// That it has ended, and what that means.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.end.get().map(|end| format!("{end}; it is gone {}", self.until))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.process.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

/// Waits for its end, and says so if nobody wanted it.
fn watch(child: Child, shared: &Shared, messages: &Path, about: &About, board: &Board) {
    let status = shared.process.wait(child);
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let words = last_lines(messages, 3).join("; ");
    let colon = if words.is_empty() { "" } else { ": " };
    let end = format!("virtiofsd ended ({status}){colon}{words}");
    let end = shared.end.get_or_init(|| end);
    if shared.process.stops_within(EXPLANATION) || board.lock().ended.is_some() {
        return;
    }
    let About { what, until } = about;
    board.warn(format!("{what} is gone {until}: {end}"));
}
