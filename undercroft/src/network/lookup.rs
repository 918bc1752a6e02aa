//! Names are looked up here, by the host's own name servers: what distributions ask comes over vsock as it was asked
//! ([`Question`]), and each question is a thread for as long as it takes.
//!
//! The host's resolv.conf is read for each question, so that a server that it names from now on is asked from now on; what it
//! names on the host's loopback (systemd-resolved) is asked there.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use undercroft_protocol::{
    command::Command,
    network::{Answer, Host, Question, Transport},
    read_frame, write_frame,
};

use super::{helper::Helper, known, resolver::Resolver};
use crate::{
    error::Result,
    guest::{Guest, spawn},
};

/// Where distributions ask: an address that only the VM's loopback device has.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 53);
/// RFC 1035, 4.2.
const PORT: u16 = 53;
/// Questions at a time; who asked another asks again, later.
const QUESTIONS_MAX: usize = 128;
/// A question's thread has no more than this.
const STACK: usize = 160 << 10;
/// How long a server may take, and how often all of them are asked: as glibc does it (resolv.conf(5), timeout and attempts),
/// but less patient with each, because who asks here has a patience of its own.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 2;
/// A message's header (RFC 1035, 4.1.1); where in it its flags are, and the answer "the server failed".
const HEADER: usize = 12;
const FLAGS: usize = 2;
const RESPONSE: u8 = 0x80;
const FAILED: u8 = 2;

/// The lookups of a machine. Nothing is looked up any more once this is dropped.
pub(super) struct Lookup {
    helper: Arc<Helper>,
    thread: Option<JoinHandle<()>>,
}

impl Lookup {
    /// Has the guest make a name server of its own, and answers what it is asked by `hosts`, and by whom `resolv_conf` names.
    pub(super) fn start(
        guest: &Arc<Guest>,
        resolv_conf: &Path,
        hosts: Arc<Mutex<Vec<Host>>>,
    ) -> Result<Self> {
        let command = |token| Command::Resolver { token, address: ADDRESS };
        let (helper, mut questions) = Helper::start(guest, "the VM's name server", command)?;
        let servers = Arc::new(Servers { hosts, resolv_conf: resolv_conf.into(), port: PORT });
        let asked = helper.clone();
        let thread = spawn("names asked", move || {
            loop {
                serve(questions, &asked, &servers);
                match asked.again() {
                    Some(another) => questions = another,
                    None => return,
                }
            }
        })?;
        Ok(Self { helper, thread: Some(thread) })
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.helper.end();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

fn serve(mut questions: UnixStream, helper: &Arc<Helper>, servers: &Arc<Servers>) {
    let count = Arc::new(AtomicUsize::new(0));
    while let Ok(question) = read_frame::<Question>(&mut questions) {
        if question.message.len() < HEADER || count.load(Ordering::Acquire) >= QUESTIONS_MAX {
            continue;
        }
        count.fetch_add(1, Ordering::AcqRel);
        let (answers, servers, counted) = (helper.clone(), servers.clone(), count.clone());
        let started = thread::Builder::new().name("name".into()).stack_size(STACK).spawn(move || {
            let answer = Answer { id: question.id, message: servers.look_up(&question) };
            // One that is gone waits for no answer; another one does not know the question.
            let _ = answers.with(|wire| write_frame(wire, &answer));
            counted.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Whom to ask.
#[derive(Debug)]
struct Servers {
    /// What is known without them.
    hosts: Arc<Mutex<Vec<Host>>>,
    resolv_conf: PathBuf,
    port: u16,
}

impl Servers {
    /// The answer of the first server that gives one; that there is none, otherwise.
    fn look_up(&self, question: &Question) -> Vec<u8> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(answer) = known::answer(&question.message, &hosts) {
            return answer;
        }
        for _ in 0..ATTEMPTS {
            let mut servers = Resolver::read(&self.resolv_conf).nameservers;
            if servers.is_empty() {
                // resolv.conf(5): without any, the one on this machine.
                servers.push(Ipv4Addr::LOCALHOST.into());
            }
            for server in servers {
                let address = SocketAddr::new(server, self.port);
                let answer = match question.transport {
                    Transport::Udp => ask(address, &question.message),
                    Transport::Tcp => ask_by_stream(address, &question.message),
                };
                // One that is not there, or does not answer, or says that it cannot: the next may.
                match answer {
                    Ok(answer) if answer[FLAGS + 1] & 0xf != FAILED => return answer,
                    Ok(_) | Err(_) => {}
                }
            }
        }
        failed(&question.message)
    }
}

fn is_answer(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEADER && answer[..FLAGS] == question[..FLAGS] && answer[FLAGS] & RESPONSE != 0
}

fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    // A port that nobody guesses, for this question only; and from the server only.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(question)?;
    let end = Instant::now() + TIMEOUT;
    let mut answer = vec![0; u16::MAX.into()];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut answer)?;
        if is_answer(&answer[..length], question) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

fn ask_by_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    if is_answer(&answer, question) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The answer that there is none: the question itself, marked so.
fn failed(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[FLAGS] |= RESPONSE;
    // Recursion is available; the code.
    answer[FLAGS + 1] = 0x80 | FAILED;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Where a server listens: by UDP and TCP.
    type Sockets = (UdpSocket, TcpListener);

    /// Sockets at both addresses and one port, which all four of them have found free.
    fn sockets() -> (Sockets, Sockets, u16) {
        let attempt = || -> io::Result<_> {
            let datagrams = UdpSocket::bind("127.0.0.1:0")?;
            let port = datagrams.local_addr()?.port();
            let two = (UdpSocket::bind(("127.0.0.2", port))?, TcpListener::bind(("127.0.0.2", port))?);
            Ok(((datagrams, TcpListener::bind(("127.0.0.1", port))?), two, port))
        };
        (0..10).find_map(|_| attempt().ok()).expect("one port of ten that nobody else has")
    }

    /// A server of one word, until the test's process ends.
    fn serve_word((datagrams, listener): Sockets, word: &'static [u8]) {
        let answer = move |question: &[u8]| {
            let mut answer = question[..HEADER].to_vec();
            answer[FLAGS] |= RESPONSE;
            answer.extend(word);
            answer
        };
        thread::spawn(move || {
            let mut bytes = [0; 600];
            while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
                // Another's answer first, which is none.
                datagrams.send_to(&[9; 40], from).unwrap();
                datagrams.send_to(&answer(&bytes[..length]), from).unwrap();
            }
        });
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut bytes = [0; 14];
                stream.read_exact(&mut bytes).unwrap();
                let answer = answer(&bytes[2..]);
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
    }

    #[test]
    fn the_host_is_asked_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        let (one, two, port) = sockets();
        serve_word(one, b"one");
        serve_word(two, b"two");
        let servers = Servers { hosts: Arc::default(), resolv_conf: resolv_conf.clone(), port };
        let ask = |transport| {
            let message = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            servers.look_up(&Question { id: 0, transport, message })
        };
        // No file: this machine's own.
        assert_eq!(ask(Transport::Udp)[HEADER..], *b"one");
        // One that is not there, and one that is.
        std::fs::write(&resolv_conf, "nameserver 127.0.0.3\nnameserver 127.0.0.2\n").unwrap();
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(ask(transport)[HEADER..], *b"two");
        }
        std::fs::write(&resolv_conf, "nameserver 127.0.0.3\n").unwrap();
        let answer = ask(Transport::Udp);
        assert_eq!((answer[..FLAGS].to_vec(), answer[3] & 0xf), (vec![1, 2], FAILED));
    }
}
