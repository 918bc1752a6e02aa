//! A person at a terminal: a program with a pseudoterminal for its three streams.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::pty::openpty;

use crate::outcome::{Failure, patience};

/// Somebody who reads and types. Dropped, the program's terminal is hung up.
pub struct Typist {
    child: Child,
    keys: File,
    screen: Arc<Mutex<String>>,
}

impl Typist {
    /// Starts the program on a terminal of its own.
    pub fn start(mut command: Command) -> Result<Self, Failure> {
        let pty = openpty(None, None).map_err(std::io::Error::from)?;
        let child =
            command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave).spawn()?;
        // Its copies of the terminal's end go with it.
        drop(command);
        let (keys, mut shown) = (File::from(pty.master.try_clone()?), File::from(pty.master));
        let screen = Arc::new(Mutex::new(String::new()));
        let written = screen.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: nobody holds the other end any more (pty(7)).
            while let Ok(n @ 1..) = shown.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]);
                written.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Self { child, keys, screen })
    }

    /// All that was shown until now.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Presses keys; `\n` is the enter key.
    pub fn press(&mut self, keys: &str) -> Result<(), Failure> {
        Ok(self.keys.write_all(keys.replace('\n', "\r").as_bytes())?)
    }

    /// Waits until a text is shown.
    pub fn sees(&self, text: &str) -> Result<(), Failure> {
        let start = Instant::now();
        while !self.screen().contains(text) {
            self.still(start, &format!("{text:?}"))?;
        }
        Ok(())
    }

    /// Waits for the program's end; gives its status and all that was shown.
    pub fn end(mut self) -> Result<(ExitStatus, String), Failure> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                // What it wrote last is on its way.
                thread::sleep(Duration::from_millis(200));
                return Ok((status, self.screen()));
            }
            self.still(start, "the program's end")?;
        }
    }

    fn still(&self, start: Instant, what: &str) -> Result<(), Failure> {
        if start.elapsed() > patience() {
            return Err(Failure::late(&format!("{what} did not come; shown was {:?}", self.screen())));
        }
        thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
