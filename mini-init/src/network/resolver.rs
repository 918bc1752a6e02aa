//! A name server of the VM's own, which knows nothing: every question goes to the host as it is, and so does every answer
//! come back. So names mean here what they mean there, whatever the host's resolver is and wherever it listens.
//!
//! It is a child of mini-init's, one thread with one epoll. Questions come by UDP, and by TCP from who wants a long answer.
//! What is remembered of each is bounded, and so is how long.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use undercroft_guest::{channel::Channel, host};
use undercroft_protocol::{
    Opening, Token,
    command::{Done, Failure},
    network::{Answer, Question, Transport},
};

use super::{LOOPBACK, netlink::Netlink};
use crate::jobs::{Mouth, Word, system};

/// RFC 1035, 4.2: the port, by UDP and by TCP.
const PORT: u16 = 53;
/// Questions that wait for their answers, at most; the oldest makes room when it is older than this, and who asked asks again.
const QUESTIONS_MAX: usize = 256;
const OLD: Duration = Duration::from_secs(5);
/// Connections at a time; the one that was longest silent makes room.
const CLIENTS_MAX: usize = 32;
/// Bytes of a client's answers that it has not read yet, at most.
const WAITING: usize = 128 << 10;
/// Questions of one kind after which others have a turn.
const TURN: usize = 64;

/// Tokens of epoll; from FIRST on, clients.
const CHANNEL: u64 = 0;
const DATAGRAMS: u64 = 1;
const LISTENER: u64 = 2;
const FIRST: u64 = 3;

/// Runs until the host closes its side. That it can be asked is answered by the way.
pub(crate) fn run(token: Token, address: Ipv4Addr, mouth: &mut Mouth) -> Result<Done, Failure> {
    const WHAT: &str = "making a name server of the VM's own";
    let what = format!("giving the loopback device the address {address}");
    Netlink::open()
        .and_then(|mut netlink| netlink.add_address(LOOPBACK, IpAddr::V4(address), 32))
        .map_err(system(&what))?;
    let channel = host::connect_as(&Opening::Stream(token)).and_then(Channel::new);
    let resolver = channel
        .and_then(|channel| Resolver::new(channel, SocketAddr::new(address.into(), PORT)))
        .map_err(system(WHAT))?;
    mouth.say(&Word::Answer(Ok(Done::Nothing)));
    // Nobody listens to this child any more; the host sees its connection end.
    let _ = resolver.serve();
    Ok(Done::Nothing)
}

/// Who waits for an answer.
#[derive(Debug)]
struct Asker {
    since: Instant,
    from: From,
}

#[derive(Debug)]
enum From {
    Datagram(SocketAddr),
    Client(u64),
}

struct Resolver {
    channel: Channel,
    epoll: Epoll,
    datagrams: UdpSocket,
    listener: TcpListener,
    /// In the order in which they came.
    askers: BTreeMap<u64, Asker>,
    clients: HashMap<u64, Client>,
    next: u64,
}

/// A connection.
struct Client {
    stream: TcpStream,
    heard: Instant,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Resolver {
    fn new(channel: Channel, address: SocketAddr) -> io::Result<Self> {
        let datagrams = UdpSocket::bind(address)?;
        // The same for both: in tests it is one that is free.
        let listener = TcpListener::bind(datagrams.local_addr()?)?;
        datagrams.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        epoll.add(&datagrams, EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS))?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let (askers, clients) = (BTreeMap::new(), HashMap::new());
        Ok(Self { channel, epoll, datagrams, listener, askers, clients, next: FIRST })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            // What the host is slow to read is written a little later.
            let timeout =
                if self.channel.is_flushed() { EpollTimeout::NONE } else { EpollTimeout::from(20_u8) };
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                match event.data() {
                    CHANNEL => {
                        let (answers, end) = self.channel.receive::<Answer>();
                        answers.into_iter().for_each(|answer| self.answer(&answer));
                        if end.is_some() {
                            return Ok(());
                        }
                    }
                    DATAGRAMS => self.take_datagrams()?,
                    LISTENER => self.take_clients(),
                    id => self.hear(id)?,
                }
            }
            self.channel.flush()?;
        }
    }

    fn take_datagrams(&mut self) -> io::Result<()> {
        let mut bytes = [0; u16::MAX as usize];
        for _ in 0..TURN {
            match self.datagrams.recv_from(&mut bytes) {
                Ok((length, from)) => self.ask(From::Datagram(from), Transport::Udp, &bytes[..length])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // One that was answered is not there any more.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Passes a question on, if there is room for it.
    fn ask(&mut self, from: From, transport: Transport, message: &[u8]) -> io::Result<()> {
        if self.askers.len() >= QUESTIONS_MAX {
            let Some(oldest) = self.askers.first_entry().filter(|oldest| oldest.get().since.elapsed() >= OLD)
            else {
                return Ok(());
            };
            oldest.remove();
        }
        let id = self.next;
        self.next += 1;
        self.askers.insert(id, Asker { since: Instant::now(), from });
        self.channel.send(&Question { id, transport, message: message.to_vec() })
    }

    fn answer(&mut self, answer: &Answer) {
        let Some(asker) = self.askers.remove(&answer.id) else { return };
        match asker.from {
            // Who has gone meanwhile, or has no room, is as one whose answer was lost on its way.
            From::Datagram(to) => drop(self.datagrams.send_to(&answer.message, to)),
            From::Client(id) => {
                if let Some(client) = self.clients.get_mut(&id)
                    && !client.say(&answer.message)
                {
                    self.clients.remove(&id);
                }
            }
        }
    }

    fn take_clients(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= CLIENTS_MAX {
                let silent = self.clients.iter().min_by_key(|(_, client)| client.heard).map(|(id, _)| *id);
                silent.and_then(|id| self.clients.remove(&id));
            }
            let id = self.next;
            self.next += 1;
            let flags =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            let is_ready = stream.set_nonblocking(true).is_ok()
                && self.epoll.add(&stream, EpollEvent::new(flags, id)).is_ok();
            if is_ready {
                let (incoming, outgoing) = (Vec::new(), Vec::new());
                self.clients.insert(id, Client { stream, heard: Instant::now(), incoming, outgoing });
            }
        }
    }

    fn hear(&mut self, id: u64) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let (questions, is_there) = client.hear();
        if !is_there {
            self.clients.remove(&id);
        }
        for question in questions {
            self.ask(From::Client(id), Transport::Tcp, &question)?;
        }
        Ok(())
    }
}

impl Client {
    /// What was asked, and whether more may come.
    fn hear(&mut self) -> (Vec<Vec<u8>>, bool) {
        self.heard = Instant::now();
        let mut questions = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return (questions, false),
                Ok(count) => self.incoming.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return (questions, self.flush().is_ok());
                }
                Err(_) => return (questions, false),
            }
            while let Some((&length, rest)) = self.incoming.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(length));
                let Some(question) = rest.get(..length) else { break };
                questions.push(question.to_vec());
                self.incoming.drain(..2 + length);
            }
            if questions.len() >= TURN {
                // More than anybody asks at once.
                return (questions, false);
            }
        }
    }

    /// Answers; false if it is not worth it any more.
    fn say(&mut self, message: &[u8]) -> bool {
        let Ok(length) = u16::try_from(message.len()) else { return false };
        if self.outgoing.len() + message.len() > WAITING {
            return false;
        }
        self.outgoing.extend(length.to_be_bytes());
        self.outgoing.extend(message);
        self.flush().is_ok()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use undercroft_protocol::{read_frame, write_frame};

    use super::*;

    #[test]
    fn questions_go_to_the_host_and_answers_to_who_asked() {
        let (mut host, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(theirs.into()).unwrap();
        let resolver = Resolver::new(channel, "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = resolver.datagrams.local_addr().unwrap();
        let serving = thread::spawn(move || resolver.serve());

        let [one, two] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        one.send_to(b"from one", address).unwrap();
        let first: Question = read_frame(&mut host).unwrap();
        two.send_to(b"from two", address).unwrap();
        let second: Question = read_frame(&mut host).unwrap();
        assert_eq!((first.transport, &first.message[..]), (Transport::Udp, &b"from one"[..]));
        // Answers in another order; one that nobody waits for; one twice.
        for (id, message) in [(second.id, "two"), (77, "none"), (first.id, "one"), (first.id, "again")] {
            write_frame(&mut host, &Answer { id, message: message.into() }).unwrap();
        }
        let mut bytes = [0; 100];
        for (socket, wanted) in [(&one, &b"one"[..]), (&two, b"two")] {
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], wanted);
        }

        // By TCP: two at once, in pieces.
        let mut client = TcpStream::connect(address).unwrap();
        for piece in [&b"\0\x05fi"[..], b"rst\0\x06se", b"cond"] {
            client.write_all(piece).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        for wanted in ["first", "second"] {
            let question: Question = read_frame(&mut host).unwrap();
            assert_eq!((question.transport, &question.message[..]), (Transport::Tcp, wanted.as_bytes()));
            write_frame(&mut host, &Answer { id: question.id, message: vec![7; 300] }).unwrap();
            let mut answer = [0; 302];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer[..2], [1, 44]);
        }
        drop(host);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn what_waits_is_bounded() {
        let (host, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(theirs.into()).unwrap();
        let mut resolver = Resolver::new(channel, "127.0.0.1:0".parse().unwrap()).unwrap();
        let from = || From::Datagram("127.0.0.1:9".parse().unwrap());
        for _ in 0..2 * QUESTIONS_MAX {
            resolver.ask(from(), Transport::Udp, b"?").unwrap();
        }
        assert_eq!(resolver.askers.len(), QUESTIONS_MAX);
        let first = *resolver.askers.keys().next().unwrap();
        resolver.askers.get_mut(&first).unwrap().since -= OLD;
        resolver.ask(from(), Transport::Udp, b"?").unwrap();
        assert_eq!(resolver.askers.len(), QUESTIONS_MAX);
        assert!(!resolver.askers.contains_key(&first));
        drop(host);
    }
}
