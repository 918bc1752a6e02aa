//! The relay: what is listened for in the VM is told to the host, which listens for it on its own loopback; and a connection that
//! comes in there is carried to this one's door, and goes on from here.
//!
//! It is a child of mini-init's, so that PID 1 never waits for it. One thread, one epoll, edge-triggered: each connection is
//! two sockets and what is on its way between them ([`Connection`]), a bounded part of memory.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{Resource, getrlimit, setrlimit},
    },
};
use undercroft_guest::{channel::Channel, door::Door, host};
use undercroft_protocol::{
    Opening, Token,
    command::{Done, Failure},
    network::{Listener, RelayEvent},
    port,
};

use super::{
    bpf::Bell,
    connection::{Connection, Fate, Place},
    listeners::Listeners,
    splice::Scratch,
};
use crate::{
    early::DISTRIBUTIONS,
    jobs::{Mouth, Word, system},
};

/// Connections at a time. The VMM carries as many; more are refused.
const CONNECTIONS_MAX: usize = 2048;
/// A socket that ends is still in /proc when the bell rings for it; and a program is not yet known by its name.
const SETTLED: Duration = Duration::from_millis(20);
/// How often that time is doubled to look for whose a listener is: 2.5 s in all.
const DOUBLINGS: u32 = 6;
/// How often is looked where there is no bell, while a distribution runs; and while none does.
const PERIOD: Duration = Duration::from_millis(50);
const PERIOD_IDLE: Duration = Duration::from_secs(1);

/// Tokens of epoll: the host's channel, the bell, the door, and from there on two for each connection.
const CHANNEL: u64 = 0;
const BELL: u64 = 1;
const DOOR: u64 = 2;
const FIRST: u64 = 4;

/// Runs until the host closes its side. That it has connected is answered by the way.
pub(crate) fn run(token: Token, mouth: &mut Mouth) -> Result<Done, Failure> {
    const WHAT: &str = "starting the relay for the host's loopback";
    // Each connection has two descriptors.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let door = Door::at(port::RELAY).map_err(system(WHAT))?;
    let host = host::connect_as(&Opening::Stream(token)).map_err(system(WHAT))?;
    let relay = Relay::new(host, door).map_err(system(WHAT))?;
    mouth.say(&Word::Answer(Ok(Done::Nothing)));
    // Nobody listens to this child any more; the host sees its connection end.
    let _ = relay.serve();
    Ok(Done::Nothing)
}

struct Relay {
    door: Door,
    is_accept_due: bool,
    epoll: Epoll,
    channel: Channel,
    bell: Option<Bell>,
    listeners: Listeners,
    told: Vec<Listener>,
    look_at: Option<Instant>,
    /// The bell has rung since the last look.
    rung: bool,
    /// How often the time between looks was doubled since then.
    doublings: u32,
    connections: HashMap<u64, Connection>,
    next: u64,
    /// Those that had more than their turn.
    again: VecDeque<u64>,
    scratch: Scratch,
}

impl Relay {
    fn new(socket: OwnedFd, door: Door) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut channel = Channel::new(socket)?;
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        epoll.add(&door, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, DOOR))?;
        let bell = match Bell::at(DISTRIBUTIONS) {
            Ok(bell) => {
                epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
                Some(bell)
            }
            Err(error) => {
                let text = format!(
                    "the kernel does not say when a program begins to listen ({error}): it is looked at every {} ms",
                    PERIOD.as_millis()
                );
                channel.send(&RelayEvent::Warning(text))?;
                None
            }
        };
        Ok(Self {
            door,
            is_accept_due: false,
            epoll,
            channel,
            bell,
            listeners: Listeners::default(),
            told: Vec::new(),
            look_at: Some(Instant::now()),
            rung: false,
            doublings: 0,
            connections: HashMap::new(),
            next: FIRST,
            again: VecDeque::new(),
            scratch: Scratch::default(),
        })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                match event.data() {
                    // The host has nothing to say but that it is gone.
                    CHANNEL => return Ok(()),
                    BELL => self.ring(),
                    DOOR => self.accept(),
                    token => {
                        let id = (token - FIRST) / 2;
                        if event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
                            && let Some(connection) = self.connections.get_mut(&id)
                        {
                            connection.lose((token - FIRST) % 2 == 1);
                        }
                        self.advance(id);
                    }
                }
            }
            for _ in 0..self.again.len() {
                if let Some(id) = self.again.pop_front() {
                    self.advance(id);
                }
            }
            if self.is_accept_due {
                self.accept();
            }
            if self.look_at.is_some_and(|at| at <= Instant::now()) {
                self.look()?;
            }
            self.channel.flush()?;
        }
    }

    fn timeout(&self) -> EpollTimeout {
        if !self.again.is_empty() {
            return EpollTimeout::ZERO;
        }
        let mut until = self.look_at.map(|at| at.saturating_duration_since(Instant::now()));
        if !self.channel.is_flushed() {
            // The host is slow to read; it is told what there is to tell a little later.
            until = Some(until.unwrap_or(PERIOD).min(PERIOD));
        }
        let Some(until) = until else { return EpollTimeout::NONE };
        // One more than the remaining milliseconds, so that it is due then.
        EpollTimeout::try_from(until.as_millis() + 1).unwrap_or(EpollTimeout::MAX)
    }

    fn ring(&mut self) {
        if let Some(bell) = &self.bell {
            bell.heard();
        }
        self.rung = true;
        // At once; but one that rings and rings is looked at no oftener than this.
        let now = Instant::now();
        match self.look_at {
            Some(at) if at > now => {}
            _ => self.look_at = Some(now),
        }
    }

    /// Tells the host what is listened for, if that has changed.
    fn look(&mut self) -> io::Result<()> {
        let now = self.listeners.read();
        let has_changed = now != self.told;
        if has_changed {
            self.channel.send(&RelayEvent::Listening(now.clone()))?;
            self.told = now;
        }
        self.look_at = match &self.bell {
            // What rang may not have been seen yet.
            Some(_) if std::mem::take(&mut self.rung) || has_changed => {
                self.doublings = 0;
                Some(Instant::now() + SETTLED)
            }
            // Its program went into the background while it was looked for.
            Some(_)
                if self.doublings < DOUBLINGS && self.told.iter().any(|one| one.distribution.is_none()) =>
            {
                self.doublings += 1;
                Some(Instant::now() + SETTLED * (1 << self.doublings))
            }
            Some(_) => None,
            None => Some(Instant::now() + if is_anything_running() { PERIOD } else { PERIOD_IDLE }),
        };
        Ok(())
    }

    /// Takes the connections that have come.
    fn accept(&mut self) {
        loop {
            let host = self.door.accept();
            // There may be no descriptors for another, until one ends.
            self.is_accept_due = host.is_err();
            let Ok(Some(host)) = host else { return };
            if self.connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let id = self.next;
            self.next += 1;
            if let Ok(connection) = Connection::new(host, &place(&self.epoll, id)) {
                self.connections.insert(id, connection);
            }
        }
    }

    /// Goes on with a connection; one that has ended meanwhile is no more.
    fn advance(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.advance(&place(&self.epoll, id), &mut self.scratch) {
            Ok(Fate::Waits) => {}
            Ok(Fate::Again) => self.again.push_back(id),
            // What one side has broken off, the other sees end.
            Ok(Fate::Over) | Err(_) => drop(self.connections.remove(&id)),
        }
    }
}

fn place(epoll: &Epoll, id: u64) -> Place<'_> {
    Place { epoll, token: FIRST + 2 * id }
}

/// Whether a distribution runs.
fn is_anything_running() -> bool {
    let entries = fs::read_dir(DISTRIBUTIONS).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, SocketAddr, TcpListener, UdpSocket},
        os::unix::net::{UnixListener, UnixStream},
        sync::mpsc::channel,
        thread::{self, JoinHandle},
    };

    use tempfile::TempDir;
    use undercroft_protocol::{
        datagrams::Datagrams,
        network::{Destination, Endpoint},
        read_frame,
    };

    use super::*;

    /// A relay, and its host: the channel, and the way to the door.
    struct Host {
        channel: UnixStream,
        folder: TempDir,
        relay: JoinHandle<io::Result<()>>,
    }

    impl Host {
        fn new() -> Self {
            let (channel, theirs) = UnixStream::pair().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(folder.path().join("door")).unwrap();
            listener.set_nonblocking(true).unwrap();
            let relay = thread::spawn(move || Relay::new(theirs.into(), Door::of(listener))?.serve());
            Self { channel, folder, relay }
        }

        fn event(&mut self) -> RelayEvent {
            loop {
                match read_frame(&mut self.channel).unwrap() {
                    // There is no such cgroup here.
                    RelayEvent::Warning(_) => {}
                    event => return event,
                }
            }
        }

        /// Waits until `address` is listened for, or not any more.
        fn until(&mut self, address: SocketAddr, is_there: bool) {
            loop {
                if let RelayEvent::Listening(all) = self.event()
                    && all.iter().any(|listener| listener.at == Endpoint::tcp(address)) == is_there
                {
                    return;
                }
            }
        }

        fn connect(&self, to: Endpoint) -> UnixStream {
            let mut stream = UnixStream::connect(self.folder.path().join("door")).unwrap();
            stream.write_all(&Destination { network: None, to }.encode()).unwrap();
            stream
        }
    }

    #[test]
    fn a_listener_is_told_and_connected_with() {
        let mut host = Host::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        host.until(address, true);
        let mut stream = host.connect(Endpoint::tcp(address));
        let (mut local, _) = listener.accept().unwrap();
        let question: Vec<u8> = (0..200_000_u32).map(|n| (n / 7) as u8).collect();
        let sent = question.clone();
        let mut writer = stream.try_clone().unwrap();
        let (done, written) = channel();
        thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
            done.send(()).unwrap();
        });
        let mut read = Vec::new();
        local.read_to_end(&mut read).unwrap();
        assert!(read == question);
        written.recv().unwrap();
        local.write_all(b"answer").unwrap();
        drop(local);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        drop(listener);
        host.until(address, false);
        // Nobody is there, and what is said is no destination.
        assert_eq!(host.connect(Endpoint::tcp(address)).read(&mut [0]).unwrap(), 0);
        let mut stream = UnixStream::connect(host.folder.path().join("door")).unwrap();
        stream.write_all(&[7; Destination::LENGTH]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        // A client that goes away without a word.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = host.connect(Endpoint::tcp(listener.local_addr().unwrap()));
        let (mut local, _) = listener.accept().unwrap();
        drop(stream);
        assert_eq!(local.read(&mut [0]).unwrap(), 0);
        drop(host.channel);
        host.relay.join().unwrap().unwrap();
    }

    #[test]
    fn datagrams_go_both_ways_until_the_host_ends_the_flow() {
        let host = Host::new();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::udp(server.local_addr().unwrap());
        let stream = host.connect(to);
        let mut datagrams = Datagrams::default();
        for question in [&b"one"[..], b"", &[7; 9000]] {
            assert!(datagrams.send(&stream, question).unwrap());
            let mut bytes = [0; 10_000];
            let (length, from) = server.recv_from(&mut bytes).unwrap();
            assert!(bytes[..length] == *question);
            server.send_to(&bytes[..length], from).unwrap();
            let mut answers = Vec::new();
            stream.set_nonblocking(true).unwrap();
            while answers.is_empty() {
                datagrams.receive(&stream, |answer| answers.push(answer.to_vec())).unwrap();
            }
            assert!(answers == [question]);
        }
        // Nobody there any more: that is no reason to end.
        drop(server);
        for _ in 0..3 {
            datagrams.send(&stream, b"lost").unwrap();
        }
        let again = UdpSocket::bind(to.address).unwrap();
        again.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut bytes = [0; 16];
        // That another was lost may be told to who sends this one, which is lost by that (udp(7)): it is sent until it is heard.
        loop {
            datagrams.send(&stream, b"found").unwrap();
            if again.recv(&mut bytes).is_ok_and(|length| length == 5) {
                break;
            }
        }
        drop((stream, host.channel));
        host.relay.join().unwrap().unwrap();
    }
}
