//! The 16550 at port 0x3f8, and what it prints to.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
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

/// Looks for the line on which a kernel says that it has panicked. Clones look at one guest's consoles together.
#[derive(Debug, Clone, Default)]
pub struct PanicWatch(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    line: Vec<u8>,
    panic: Option<String>,
}

impl PanicWatch {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what the guest prints.
    pub fn look(&self, bytes: &[u8]) {
        let mut watched = self.lock();
        let Watched { line, panic } = &mut *watched;
        for &byte in bytes {
            if byte == b'\n' || line.len() >= LINE_MAX {
                if let Some(at) = line.windows(PANIC.len()).position(|part| part == PANIC.as_bytes()) {
                    panic.get_or_insert_with(|| String::from_utf8_lossy(&line[at..]).trim_end().into());
                }
                line.clear();
            }
            if byte != b'\n' {
                line.push(byte);
            }
        }
    }

    /// The first panic's line, from "Kernel panic" on, if there was one.
    pub fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }
}

/// The descriptor that an output goes to; nothing if it goes nowhere.
///
/// # Errors
/// The file cannot be opened for appending, or there are no more file descriptors.
pub fn output(output: &Output) -> io::Result<Option<OwnedFd>> {
    Ok(match output {
        Output::Null => None,
        Output::Stdout | Output::Terminal => Some(io::stdout().as_fd().try_clone_to_owned()?),
        Output::File(path) => Some(OpenOptions::new().append(true).create(true).open(path)?.into()),
    })
}

/// Where the serial port's output goes.
///
/// The guest writes it byte by byte. To a terminal each byte is written on; elsewhere they are collected to lines, which saves a
/// system call a byte.
#[derive(Debug)]
pub struct Console {
    out: Option<File>,
    by_line: bool,
    line: Vec<u8>,
    watch: PanicWatch,
}

impl Console {
    /// Opens the output.
    ///
    /// # Errors
    /// [`output`]'s.
    pub fn open(to: &Output, watch: PanicWatch) -> io::Result<Self> {
        let out = output(to)?.map(File::from);
        let by_line = out.as_ref().is_some_and(|out| !out.is_terminal());
        Ok(Self { out, by_line, line: Vec::new(), watch })
    }

    fn write_line(&mut self) {
        if let Some(out) = &mut self.out {
            // That nobody reads any more, or that a disk is full, is not the guest's affair.
            let _ = out.write_all(&self.line);
        }
        self.line.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.watch.look(bytes);
        if self.out.is_some() {
            self.line.extend_from_slice(bytes);
            if !self.by_line || self.line.len() >= LINE_MAX || bytes.contains(&b'\n') {
                self.write_line();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.write_line();
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
        let watch = PanicWatch::default();
        watch.look(b"[    1.0] hello\r\n[    1.2] Kernel panic - not syn");
        assert_eq!(watch.panic(), None);
        watch.look(b"cing: no init\r\nKernel panic - not syncing: again\n");
        assert_eq!(watch.panic().as_deref(), Some("Kernel panic - not syncing: no init"));
    }

    #[test]
    fn output_goes_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = Console::open(&Output::File(path.clone()), PanicWatch::default()).unwrap();
        let serial = Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), console);
        for byte in b"ok\n" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, b"two bytes at once are not a byte");
        assert_eq!(std::fs::read(path).unwrap(), b"ok\n");
    }
}
