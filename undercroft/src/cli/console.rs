//! The machine's console on this terminal, while the machine boots for somebody (`debugConsole`).

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use undercroft::service::{Paths, Settings};

/// How often the log is looked at.
const OFTEN: Duration = Duration::from_millis(50);

/// Shows what the console's log gets, until this is dropped.
pub(super) struct Console {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    /// If it is configured.
    pub(super) fn if_wanted() -> Option<Self> {
        let paths = Paths::of_user().ok()?;
        let host = Settings::read(&paths).host;
        let path = host.debug_console_log_file.unwrap_or_else(|| paths.console());
        host.debug_console.then(|| Self::follow(path))
    }

    fn follow(path: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        // What is there already is an older machine's, or that of one which runs.
        let mut at = place(&path);
        let thread = thread::spawn(move || {
            loop {
                let last = seen.load(Ordering::Acquire);
                // A log that cannot be read is not shown.
                let _ = show(&path, &mut at);
                if last {
                    return;
                }
                thread::sleep(OFTEN);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // It only writes, and ends by itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Which file it is, and how far it goes.
fn place(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|about| (about.ino(), about.len()))
}

/// Shows what has been written since; each machine begins a log of its own.
fn show(path: &Path, at: &mut Option<(u64, u64)>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let file_number = file.metadata()?.ino();
    let from = match *at {
        Some((number, from)) if number == file_number => from,
        _ => 0,
    };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    *at = Some((file_number, from + bytes.len() as u64));
    eprint!("{}", printable(&bytes));
    Ok(())
}

/// The guest may write what it likes; this terminal is not its own.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_what_a_new_machine_writes_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, "old").unwrap();
        let mut at = place(&path);
        show(&path, &mut at).unwrap();
        assert_eq!(at.unwrap().1, 3);
        std::fs::rename(&path, folder.path().join("console.log.1")).unwrap();
        File::create(&path).unwrap().write_all(b"new\n").unwrap();
        show(&path, &mut at).unwrap();
        assert_eq!(at, place(&path));
        assert_eq!(printable(b"a\x1b[2Jb\r\n"), "a?[2Jb\n");
    }
}
