//! The 16550 at port 0x3f8, and what it prints to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Device;
use crate::config::Output;

/// What a kernel prints first when it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
/// A line longer than this is looked at in pieces.
const LINE_MAX: usize = 512;

/// Where a console's output goes. It remembers the line on which the kernel said that it panicked.
#[derive(Debug)]
pub struct Console {
    out: Target,
    line: Vec<u8>,
    panic: Arc<Mutex<Option<String>>>,
}

#[derive(Debug)]
enum Target {
    Null,
    Stdout,
    File(File),
}

impl Console {
    /// Opens the output.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(output: &Output) -> io::Result<Self> {
        let out = match output {
            Output::Null => Target::Null,
            Output::Stdout | Output::Terminal => Target::Stdout,
            Output::File(path) => Target::File(OpenOptions::new().append(true).create(true).open(path)?),
        };
        Ok(Self { out, line: Vec::new(), panic: Arc::default() })
    }

    /// Where the line of a panic will stand.
    pub fn panic_line(&self) -> Arc<Mutex<Option<String>>> {
        self.panic.clone()
    }

    fn watch(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() >= LINE_MAX {
                let line = String::from_utf8_lossy(&self.line);
                if let Some(at) = line.find(PANIC) {
                    let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                    panic.get_or_insert_with(|| line[at..].trim_end().into());
                }
                self.line.clear();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.watch(bytes);
        // That nobody reads any more, or that a disk is full, is not the guest's affair.
        let _ = match &mut self.out {
            Target::Null => Ok(()),
            // Not std's Stdout: it would hold an unfinished line back.
            Target::Stdout => nix::unistd::write(io::stdout(), bytes).map(drop).map_err(io::Error::from),
            Target::File(file) => file.write_all(bytes),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An interrupt line of the guest, as the eventfd that KVM listens on.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The 16550.
#[derive(Debug)]
pub struct Serial {
    uart: Mutex<Uart<Line, NoEvents, Console>>,
}

impl Serial {
    /// A port whose interrupt is `interrupt` and whose output goes to `console`.
    pub fn new(interrupt: EventFd, console: Console) -> Self {
        Self { uart: Mutex::new(Uart::new(Line(interrupt), console)) }
    }

    fn lock(&self) -> MutexGuard<'_, Uart<Line, NoEvents, Console>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of input the guest can take now.
    pub fn input_room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Gives the guest input; what exceeds [`input_room`](Self::input_room) is lost.
    pub fn input(&self, bytes: &[u8]) {
        // In loop-back mode the guest has taken its input away; the rest cannot fail but by the eventfd, which counts.
        let _ = self.lock().enqueue_raw_bytes(bytes);
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.lock().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            // It fails if the interrupt's eventfd is full: then one is pending already.
            let _ = self.lock().write(offset as u8, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_panic_is_remembered() {
        let mut console = Console::open(&Output::Null).unwrap();
        console.write_all(b"[    1.0] hello\r\n[    1.2] Kernel panic - not syn").unwrap();
        assert_eq!(*console.panic_line().lock().unwrap(), None);
        console.write_all(b"cing: no init\r\nKernel panic - not syncing: again\n").unwrap();
        assert_eq!(
            console.panic_line().lock().unwrap().as_deref(),
            Some("Kernel panic - not syncing: no init")
        );
    }

    #[test]
    fn output_goes_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = Console::open(&Output::File(path.clone())).unwrap();
        let serial = Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), console);
        for byte in b"ok\n" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, b"two bytes at once are not a byte");
        assert_eq!(std::fs::read(path).unwrap(), b"ok\n");
    }
}
