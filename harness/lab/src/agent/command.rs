//! One command: its process, its streams, and the credit on them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use undercroft_lab::pump::{Pump, set_nonblocking};
use undercroft_lab::wire::{CHUNK, Ended, Frame, Message, Start, Stream, WINDOW};

use super::child;

/// A running command, or one that has ended and whose output has not all gone out yet.
pub(crate) struct Command {
    pid: i32,
    /// Its control group, by which all that it started can be killed, whatever they made of their sessions.
    group: Option<PathBuf>,
    stdin: Option<OwnedFd>,
    /// What arrived for stdin and was not taken yet: at most [`WINDOW`] bytes, if the client is ours.
    waiting: VecDeque<u8>,
    /// No more will arrive.
    stdin_ends: bool,
    outputs: [Option<Output>; 2],
    ended: Option<Ended>,
    terminal: bool,
}

struct Output {
    fd: OwnedFd,
    credit: u32,
}

impl Command {
    pub(crate) fn start(number: u32, start: &Start) -> Result<Self, String> {
        let child = child::spawn(number, start)?;
        let blocking = [&child.stdin, &child.stdout, &child.stderr];
        for fd in blocking.into_iter().flatten() {
            set_nonblocking(fd).map_err(|e| format!("making a pipe not block: {e}"))?;
        }
        let output = |fd| Output { fd, credit: WINDOW };
        Ok(Command {
            pid: child.pid,
            group: child.group,
            stdin: child.stdin,
            waiting: VecDeque::new(),
            stdin_ends: false,
            outputs: [child.stdout.map(output), child.stderr.map(output)],
            ended: None,
            terminal: start.terminal.is_some(),
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn obey(&mut self, number: u32, message: &Message, port: &mut Pump) {
        match *message {
            Message::End(Stream::Stdin) => {
                self.stdin_ends = true;
                self.feed(number, port);
            }
            // The client's own reader is gone: the command shall meet the closed pipe that it would have met there.
            Message::End(Stream::Stdout) => self.outputs[0] = None,
            Message::End(Stream::Stderr) => self.outputs[1] = None,
            Message::Credit(stream, bytes) => {
                let which = if stream == Stream::Stderr { 1 } else { 0 };
                if let Some(output) = &mut self.outputs[which] {
                    output.credit = output.credit.saturating_add(bytes);
                }
            }
            Message::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number) {
                    // Fails only when the group is gone already, and then its end is under way to the client.
                    let _ = killpg(Pid::from_raw(self.pid), signal);
                }
            }
            Message::Resize(size) => {
                if let Some(terminal) = self.stdin.as_ref().filter(|_| self.terminal) {
                    child::resize(terminal.as_fd(), size);
                }
            }
            Message::Abandon => self.abandon(),
            _ => {}
        }
    }

    /// The client is gone: nobody reads the output, and nothing that the command started shall outlive it.
    fn abandon(&mut self) {
        self.outputs = [None, None];
        self.stdin = None;
        let by_group =
            self.group.as_ref().is_some_and(|g| std::fs::write(g.join("cgroup.kill"), "1").is_ok());
        if !by_group {
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Bytes for stdin.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() {
            self.waiting.extend(bytes);
        }
    }

    pub(crate) fn wants_to_feed(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    /// Writes to stdin what it takes, and gives credit for it.
    pub(crate) fn feed(&mut self, number: u32, port: &mut Pump) {
        let mut fed = 0;
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.waiting.is_empty()) {
            match nix::unistd::write(stdin, self.waiting.as_slices().0) {
                Ok(n) => {
                    self.waiting.drain(..n);
                    fed += n as u32;
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // Nobody reads it any more. A terminal's other direction lives on a descriptor of its own.
                    self.waiting.clear();
                    self.stdin = None;
                    port.say(number, Message::End(Stream::Stdin));
                }
            }
        }
        if fed > 0 {
            port.say(number, Message::Credit(Stream::Stdin, fed));
        }
        // A terminal has no end of input but the character for it, and is needed for its size.
        if self.stdin_ends && self.waiting.is_empty() && !self.terminal {
            self.stdin = None;
        }
    }

    pub(crate) fn wants_to_drain(&self, which: usize) -> Option<BorrowedFd<'_>> {
        self.outputs[which].as_ref().filter(|o| o.credit > 0).map(|o| o.fd.as_fd())
    }

    /// Reads from an output what is there and what there is credit for. What a process wrote before it ended is in the
    /// pipe when its end is known; so once it has ended, an empty pipe is the end, even if something that it left
    /// behind still holds the other side open.
    pub(crate) fn drain(&mut self, number: u32, which: usize, port: &mut Pump) {
        let stream = [Stream::Stdout, Stream::Stderr][which];
        let Some(output) = &mut self.outputs[which] else { return };
        let mut bytes = vec![0; CHUNK.min(output.credit as usize)];
        if bytes.is_empty() {
            return;
        }
        match nix::unistd::read(&output.fd, &mut bytes) {
            Ok(n) if n > 0 => {
                output.credit -= n as u32;
                bytes.truncate(n);
                port.queue(&Frame::data(number, stream, bytes));
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if self.ended.is_none() => {}
            // The end; a terminal whose last process has closed it says EIO.
            _ => {
                self.outputs[which] = None;
                port.say(number, Message::End(stream));
            }
        }
    }

    pub(crate) fn died(&mut self, ended: Ended) {
        self.ended = Some(ended);
    }

    /// Whether nothing more is to come but the report.
    pub(crate) fn is_over(&mut self, number: u32, port: &mut Pump) -> bool {
        if self.ended.is_none() {
            return false;
        }
        for which in 0..2 {
            while self.wants_to_drain(which).is_some() {
                self.drain(number, which, port);
            }
        }
        self.outputs.iter().all(Option::is_none)
    }

    /// Forgets the command, and gives how it ended.
    pub(crate) fn bury(self) -> Option<Ended> {
        if let Some(group) = &self.group {
            // Refused while something that the command left behind still runs in it: that may stay.
            let _ = std::fs::remove_dir(group);
        }
        self.ended
    }
}
