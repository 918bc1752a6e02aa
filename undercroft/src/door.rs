//! The door: where the guest's connections come in and prove themselves.
//!
//! Any process in any distribution can connect, so a connection is worth nothing until its first frame is whole and
//! right. One thread holds all of those that are not: reads never block, no more than [`UNPROVEN`] wait at a time (the
//! oldest goes when another comes: an honest peer speaks at once, so it is never the oldest for long), each has
//! [`PATIENCE`] to speak, and after mini-init has said hello no first frame is longer than [`SHORT`].

use std::{
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use undercroft_protocol::{
    FrameError, Opening, Token,
    frame::{FrameBuffer, MAX_FRAME},
};

use crate::{
    board::{Board, State},
    error::{Error, Result},
};

/// Connections that have not proven themselves, at most. Two hundred sessions that start at once make three each, and in a slow
/// machine all of them before the first has spoken.
const UNPROVEN: usize = 1024;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// A frame's header, see `undercroft_protocol::frame`.
const HEADER: usize = 8;
/// The longest opening but mini-init's hello, in bytes.
const SHORT: usize = 64;

/// The listening thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    _wake: UnixStream,
}

impl Door {
    /// Listens on a unix socket.
    pub(crate) fn open(path: &Path, board: Arc<Board>) -> Result<Self> {
        let failed = |source| Error::File { what: "listen on", path: path.into(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        thread::Builder::new()
            .name("door".into())
            .spawn(move || serve(&listener, &woken, &board))
            .map_err(failed)?;
        Ok(Self { _wake: wake })
    }
}

fn serve(listener: &UnixListener, woken: &UnixStream, board: &Board) {
    let mut unproven: Vec<Visitor> = Vec::new();
    loop {
        let mut fds = vec![
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(unproven.iter().map(|v| PollFd::new(v.stream.as_fd(), PollFlags::POLLIN)));
        let timeout = if unproven.is_empty() { PollTimeout::NONE } else { PollTimeout::from(1_000u16) };
        if poll(&mut fds, timeout).is_err_and(|e| e != nix::errno::Errno::EINTR) {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[0] {
            return;
        }
        let mut index = 0;
        unproven = std::mem::take(&mut unproven)
            .into_iter()
            .filter_map(|visitor| {
                index += 1;
                if ready[index + 1] { visitor.hear(board) } else { visitor.still_welcome() }
            })
            .collect();
        if ready[1] {
            match listener.accept() {
                Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                    if unproven.len() >= UNPROVEN {
                        unproven.remove(0);
                    }
                    unproven.push(Visitor::new(stream));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // Out of file descriptors or memory: those who wait go, and it is tried again a little later.
                Err(_) => {
                    unproven.clear();
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// A connection that has not proven itself.
struct Visitor {
    stream: UnixStream,
    since: Instant,
    bytes: Vec<u8>,
}

impl Visitor {
    fn new(stream: UnixStream) -> Self {
        Self { stream, since: Instant::now(), bytes: Vec::new() }
    }

    fn still_welcome(self) -> Option<Self> {
        (self.since.elapsed() < PATIENCE).then_some(self)
    }

    /// Reads what has come, and not one byte more than the first frame: what follows belongs to who takes the stream.
    fn hear(mut self, board: &Board) -> Option<Self> {
        loop {
            let want = match self.announced() {
                None => HEADER,
                Some(length) => HEADER + length,
            };
            if want > HEADER {
                let most = if board.lock().hello.is_some() { SHORT } else { MAX_FRAME };
                if want - HEADER > most {
                    refuse(board, FrameError::TooLong { length: (want - HEADER) as u64 });
                    return None;
                }
            }
            if self.bytes.len() == want && want >= HEADER && self.announced().is_some() {
                self.prove(board);
                return None;
            }
            // Memory grows with what has come, not with what was announced.
            let mut chunk = [0; 4096];
            let most = chunk.len().min(want - self.bytes.len());
            match self.stream.read(&mut chunk[..most]) {
                Ok(0) => {
                    if !self.bytes.is_empty() {
                        refuse(board, io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    return None;
                }
                Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.still_welcome(),
                Err(_) => return None,
            }
            // Something else speaks here, or another version: that is known from the header on.
            if self.bytes.len() == HEADER
                && let Err(error) = self.frame()
            {
                refuse(board, error);
                return None;
            }
        }
    }

    /// The length of the message, once the header is whole.
    fn announced(&self) -> Option<usize> {
        let header: &[u8; HEADER] = self.bytes.first_chunk()?;
        let [_, _, _, _, a, b, c, d] = *header;
        Some(u32::from_le_bytes([a, b, c, d]) as usize)
    }

    fn frame(&self) -> std::result::Result<Option<Opening>, FrameError> {
        let mut buffer = FrameBuffer::default();
        buffer.extend(&self.bytes);
        buffer.message()
    }

    fn prove(self, board: &Board) {
        let opening = match self.frame() {
            Ok(Some(opening)) => opening,
            Ok(None) => return,
            Err(error) => return refuse(board, error),
        };
        if self.stream.set_nonblocking(false).is_err() {
            return;
        }
        let stream = self.stream;
        board.update(|state| match opening {
            Opening::Command(hello) if state.hello.is_none() => {
                state.hello = Some(hello);
                state.command = Some(stream);
            }
            Opening::Notify if !state.notify_seen => {
                state.notify_seen = true;
                state.notify = Some(stream);
            }
            Opening::Distribution(token) | Opening::Stream(token) => {
                if let Some(place @ None) = state.tokens.get_mut(&token) {
                    *place = Some(stream);
                }
            }
            Opening::Command(_) | Opening::Notify => {}
        });
    }
}

/// What was not understood matters as long as mini-init itself has not spoken; later it is some process's mischief.
fn refuse(board: &Board, error: FrameError) {
    board.update(|state| {
        if state.hello.is_none() && state.not_understood.is_none() {
            state.not_understood = Some(error);
        }
    });
}

/// A place for one connection that somebody was told to make; nobody is let in with its token once this is dropped.
#[derive(Debug)]
pub(crate) struct Expected {
    token: Token,
    board: Arc<Board>,
}

impl Expected {
    /// Makes up a token.
    pub(crate) fn new(board: &Arc<Board>) -> Result<Self> {
        let token = new_token()?;
        board.update(|state| state.tokens.insert(token, None));
        Ok(Self { token, board: board.clone() })
    }

    /// To be told to the one who shall come with it.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Takes the connection, if it has come.
    pub(crate) fn take(&self, state: &mut State) -> Option<UnixStream> {
        state.tokens.get_mut(&self.token)?.take()
    }

    /// Waits for it.
    pub(crate) fn wait(self, what: &'static str, limit: Duration) -> Result<UnixStream> {
        self.board.wait(what, Some(limit), |state| self.take(state).map(Ok))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.board.lock().tokens.remove(&self.token);
    }
}

fn new_token() -> Result<Token> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let got = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|e| Error::System { what: "get random bytes", source: e.into() })?;
    }
    Ok(Token(bytes))
}
