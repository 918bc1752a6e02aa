//! A guest made of threads and unix sockets: what a real one does, and what only a broken or hostile one does.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use undercroft_protocol::{
    FrameError, Opening, Token, VERSION,
    command::{
        Command, DiskAddress, Done, Event, Failure, FailureKind, Imported, Reply, Request, Root, Users,
    },
    opening::{GuestHello, Mark},
    read_frame,
    session::{ExitStatus, InitEvent, InitRequest, StartError, Stdio},
    write_frame,
};
use undercroft_vmm::MachineConfig;

use crate::{
    Archive, Cause, Ending, Error, LaunchOptions, Machine, MachineOptions, Pipes, Program,
    board::Board,
    distribution::{Distribution, Given},
    error::Console,
    guest::Guest,
    import::ArchiveError,
};

const LIMIT: Duration = Duration::from_secs(60);

/// The host's side, and how to reach it.
struct Host {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    board: Arc<Board>,
    guest: Arc<Guest>,
}

fn host() -> Host {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let board = Arc::new(Board::new(None));
    let guest = Arc::new(Guest::listen(&socket, board.clone(), 2).unwrap());
    Host { _directory: directory, socket, board, guest }
}

impl Host {
    fn connect(&self, opening: &Opening) -> UnixStream {
        connect(&self.socket, opening)
    }

    /// mini-init's two channels, greeted.
    fn greeted(&self) -> (UnixStream, UnixStream) {
        let command = self.connect(&Opening::Command(hello()));
        let notify = self.connect(&Opening::Notify);
        assert_eq!(self.guest.greet(LIMIT).unwrap(), hello());
        (command, notify)
    }
}

fn connect(socket: &PathBuf, opening: &Opening) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    write_frame(&mut stream, opening).unwrap();
    stream
}

fn hello() -> GuestHello {
    GuestHello {
        mini_init: "0.1.0".into(),
        kernel: "6.12".into(),
        cpus: 1,
        memory: 1 << 29,
        marks: vec![Mark { name: "hello".into(), boottime_ns: 1, realtime_ns: 2 }],
        warnings: vec!["no rtc".into()],
    }
}

fn request(stream: &mut UnixStream) -> Request {
    read_frame(stream).unwrap()
}

fn reply(stream: &mut UnixStream, id: u64, done: Done) {
    write_frame(stream, &Reply { id, outcome: Ok(done) }).unwrap();
}

fn panicked() -> Ending {
    Ending { cause: Cause::GuestPanic("no init".into()), console: Console::default() }
}

#[test]
fn replies_may_come_out_of_order() {
    let host = host();
    let (mut command, _notify) = host.greeted();
    let first = host.guest.send(Command::Ping).unwrap();
    let second = host.guest.send(Command::DetachDisk(DiskAddress::Lun(1))).unwrap();
    let (a, b) = (request(&mut command), request(&mut command));
    let failure = Failure { kind: FailureKind::Disk, message: "it is mounted".into() };
    write_frame(&mut command, &Reply { id: b.id, outcome: Err(failure) }).unwrap();
    reply(&mut command, 77, Done::Nothing);
    reply(&mut command, a.id, Done::Nothing);
    let error = second.wait("let go of the disk", Some(LIMIT)).unwrap_err();
    assert_eq!(error.to_string(), "the VM could not let go of the disk: it is mounted");
    assert_eq!(first.wait("answer", Some(LIMIT)).unwrap(), Done::Nothing);
    assert_eq!(host.board.lock().warnings, ["no rtc"]);
}

#[test]
fn a_guest_of_another_build_is_told_from_something_that_is_no_guest() {
    let first_words = |bytes: &[u8]| {
        let host = host();
        let mut stream = UnixStream::connect(&host.socket).unwrap();
        stream.write_all(bytes).unwrap();
        let error = host.guest.greet(LIMIT).unwrap_err();
        let Error::Protocol { source, .. } = error else { panic!("{error}") };
        source
    };
    let newer = [b"uc".as_slice(), &(VERSION + 1).to_le_bytes(), &[4, 0, 0, 0]].concat();
    assert!(matches!(first_words(&newer), FrameError::Version { theirs } if theirs == VERSION + 1));
    let absurd = [b"uc".as_slice(), &VERSION.to_le_bytes(), &[0xff; 4]].concat();
    assert!(matches!(first_words(&absurd), FrameError::TooLong { length } if length == u64::from(u32::MAX)));
    assert!(matches!(first_words(b"GET / HTTP/1.1\r\n"), FrameError::NotOurs([b'G', b'E'])));
    let garbage = [b"uc".as_slice(), &VERSION.to_le_bytes(), &[2, 0, 0, 0, 0xff, 0xff]].concat();
    assert!(matches!(first_words(&garbage), FrameError::Malformed { .. }));
}

#[test]
fn the_machines_end_explains_a_connection_that_broke() {
    let host = host();
    let (mut command, notify) = host.greeted();
    let pending = host.guest.send(Command::Ping).unwrap();
    request(&mut command);
    drop((command, notify));
    let board = host.board.clone();
    thread::spawn(move || board.update(|state| state.ended = Some(panicked())));
    let error = pending.wait("answer", Some(LIMIT)).unwrap_err();
    assert_eq!(error.to_string(), "the guest's kernel panicked: no init");
}

#[test]
fn a_connection_that_broke_without_an_explanation_is_told_as_that() {
    let host = host();
    let (command, _notify) = host.greeted();
    drop(command);
    let error = host.guest.ask("answer", Command::Ping, Some(LIMIT)).unwrap_err();
    assert!(matches!(error, Error::GuestLost { channel: "command", .. }), "{error}");
}

#[test]
fn an_absurd_reply_ends_the_connection_and_nothing_else() {
    let host = host();
    let (mut command, _notify) = host.greeted();
    let pending = host.guest.send(Command::Ping).unwrap();
    command.write_all(&[b"uc".as_slice(), &VERSION.to_le_bytes(), &[0xff; 4]].concat()).unwrap();
    let error = pending.wait("answer", Some(LIMIT)).unwrap_err();
    assert!(error.to_string().contains("4294967295 bytes was announced"), "{error}");
}

/// Reads until the end, which must come.
fn refused(mut stream: UnixStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut rest = Vec::new();
    // A reset is as good an end.
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

#[test]
fn nobody_comes_in_with_a_token_that_is_wrong_or_used() {
    let host = host();
    let _channels = host.greeted();
    refused(host.connect(&Opening::Stream(Token([0; 16]))));
    refused(host.connect(&Opening::Command(hello())));
    refused(host.connect(&Opening::Notify));
    let expected = crate::door::Expected::new(&host.board).unwrap();
    let token = expected.token();
    let mut first = host.connect(&Opening::Stream(token));
    first.write_all(b"and then").unwrap();
    let mut stream = expected.wait("it", LIMIT).unwrap();
    refused(host.connect(&Opening::Stream(token)));
    // What follows the opening is the stream's, to the byte.
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"and then");
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let host = host();
    let _channels = host.greeted();
    let crowd: Vec<_> = (0..300)
        .map(|n| {
            let mut stream = UnixStream::connect(&host.socket).unwrap();
            // Some of them begin, and announce as much as they can.
            if n % 3 == 0 {
                stream
                    .write_all(&[b"uc".as_slice(), &VERSION.to_le_bytes(), &[0, 0, 1, 0]].concat())
                    .unwrap();
            }
            stream
        })
        .collect();
    let expected = crate::door::Expected::new(&host.board).unwrap();
    let _stream = host.connect(&Opening::Stream(expected.token()));
    expected.wait("the honest one", LIMIT).unwrap();
    drop(crowd);
}

/// mini-init and one distribution's init, which runs "programs" named by their first argument.
fn serve(host: &Host) -> thread::JoinHandle<()> {
    let (mut command, notify) = host.greeted();
    let socket = host.socket.clone();
    thread::spawn(move || {
        // Without it the guest counts as lost, a moment later.
        let _notify = notify;
        while let Ok(Request { id, command: what }) = read_frame(&mut command) {
            match what {
                Command::Launch(launch) => {
                    let (token, socket) = (launch.token, socket.clone());
                    reply(&mut command, id, Done::Launched { pid: 2, marks: vec![] });
                    thread::spawn(move || init(&socket, token));
                }
                _ => reply(&mut command, id, Done::Nothing),
            }
        }
    })
}

fn init(socket: &PathBuf, token: Token) {
    let mut stream = connect(socket, &Opening::Distribution(token));
    write_frame(&mut stream, &InitEvent::Ready { marks: vec![], warnings: vec![] }).unwrap();
    while let Ok(request) = read_frame::<InitRequest>(&mut stream) {
        let InitRequest::Exec(exec) = request else { continue };
        let session = exec.session;
        let undercroft_protocol::session::Program::Argv(argv) = &exec.program else { panic!() };
        if argv[0] == b"missing" {
            let error = StartError::NotFound("missing".into());
            write_frame(&mut stream, &InitEvent::NotStarted { session, error }).unwrap();
            continue;
        }
        let Stdio::Pipes { stdin, stdout, stderr } = exec.stdio else { panic!() };
        let mark = Mark { name: "cat".into(), boottime_ns: 0, realtime_ns: 0 };
        // An event of a session that nobody asked for changes nothing.
        write_frame(&mut stream, &InitEvent::Exited { session: 999, status: ExitStatus::Code(1) }).unwrap();
        write_frame(&mut stream, &InitEvent::Started { session, pid: 4, mark }).unwrap();
        let open = |token: Option<Token>| connect(socket, &Opening::Stream(token.unwrap()));
        let (mut stdin, mut stdout, mut stderr) = (open(stdin), open(stdout), open(stderr));
        if argv[0] == b"cat" {
            std::io::copy(&mut stdin, &mut stdout).unwrap();
            stderr.write_all(b"done").unwrap();
        }
        let exited = InitEvent::Exited { session, status: ExitStatus::Signal(9) };
        if argv[0] == b"daemon" {
            // Something in the background keeps its streams.
            stdout.write_all(b"started").unwrap();
            write_frame(&mut stream, &exited).unwrap();
            thread::spawn(move || (thread::sleep(LIMIT), stdin, stdout, stderr));
            continue;
        }
        drop((stdin, stdout, stderr));
        write_frame(&mut stream, &exited).unwrap();
    }
}

fn given(guest: &Guest) -> Given {
    Given { id: guest.distribution_id(), users: Users::Shared, wire: None, folders: Vec::new() }
}

fn deb() -> LaunchOptions {
    LaunchOptions::new("deb", Root::Flat { disk: DiskAddress::Lun(0) })
}

#[test]
fn a_session_has_its_bytes_and_its_status() {
    let host = host();
    let _server = serve(&host);
    let distribution = Distribution::launch(&host.guest, &deb(), given(&host.guest)).unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let session = distribution.exec(&Program::new(["cat"]), Pipes::ALL).unwrap();
    assert_eq!(session.pid(), 4);
    let output = session.output(bytes.clone()).unwrap();
    assert_eq!(output.status.shell(), 137);
    assert!(output.stdout == bytes);
    assert_eq!(output.stderr, b"done");

    let error = distribution.exec(&Program::new(["missing"]), Pipes::ALL).unwrap_err();
    assert_eq!(error.shell_status(), Some(127));

    let session = distribution.exec(&Program::new(["daemon"]), Pipes::ALL).unwrap();
    assert_eq!(session.output("").unwrap().stdout, b"started");
    // Nothing is left of what was asked for.
    let state = host.board.lock();
    assert!(state.tokens.is_empty() && state.replies.is_empty());
}

#[test]
fn an_init_that_dies_is_told_before_and_after_it_was_ready() {
    for ready in [false, true] {
        let host = host();
        let (mut command, mut notify) = host.greeted();
        let socket = host.socket.clone();
        thread::spawn(move || {
            let Request { id, command: Command::Launch(launch) } = request(&mut command) else { panic!() };
            reply(&mut command, id, Done::Launched { pid: 2, marks: vec![] });
            if ready {
                let mut init = connect(&socket, &Opening::Distribution(launch.token));
                write_frame(&mut init, &InitEvent::Ready { marks: vec![], warnings: vec![] }).unwrap();
                read_frame::<InitRequest>(&mut init).unwrap();
            }
            let ended = Event::DistributionEnded { distribution: launch.id, status: ExitStatus::Code(1) };
            write_frame(&mut notify, &ended).unwrap();
            if !ready {
                let Request { id, command: Command::Terminate { .. } } = request(&mut command) else {
                    panic!()
                };
                reply(&mut command, id, Done::Stopped { complaints: vec![] });
            }
            // As long as the channel is there nothing else tells the end.
            let _ = command.read(&mut [0]);
        });
        let launched = Distribution::launch(&host.guest, &deb(), given(&host.guest));
        let error = if ready {
            launched.unwrap().exec(&Program::new(["cat"]), Pipes::ALL).unwrap_err().to_string()
        } else {
            launched.unwrap_err().to_string()
        };
        let when = if ready { "" } else { " before it was ready" };
        assert_eq!(error, format!("the init of deb ended (status 1){when}"));
    }
}

#[test]
fn an_archive_that_is_cut_off_is_told_as_that_whatever_the_guest_says() {
    let whole = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2_000_000);
        header.set_cksum();
        builder.append_data(&mut header, "bin/sh", &vec![1; 2_000_000][..]).unwrap();
        builder.into_inner().unwrap()
    };
    for cut in [whole.len(), 700_000] {
        let host = host();
        let (mut command, _notify) = host.greeted();
        let socket = host.socket.clone();
        thread::spawn(move || {
            let Request { id, command: Command::Import(import) } = request(&mut command) else { panic!() };
            let mut stream = connect(&socket, &Opening::Stream(import.archive));
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            let failure = Failure { kind: FailureKind::Archive, message: "unexpected end".into() };
            let done = Done::Imported(Imported { entries: 1, bytes: 2_000_000, warnings: vec![] });
            let outcome = if bytes.len() > 2_000_000 { Ok(done) } else { Err(failure) };
            write_frame(&mut command, &Reply { id, outcome }).unwrap();
            thread::sleep(LIMIT);
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &whole[..cut]).unwrap();
        let mut last = 0;
        let archive = Archive::open(file.path()).unwrap();
        let result =
            crate::import::import(&host.guest, DiskAddress::Lun(0), archive, |progress| last = progress.read);
        assert_eq!(last, cut as u64);
        match result {
            Ok(imported) => assert_eq!((cut, imported.entries), (whole.len(), 1)),
            Err(Error::Archive(ArchiveError::CutOff { at, entry, .. })) => {
                assert_eq!((at, entry.as_str()), (700_000, "bin/sh"));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// A shell script that can be executed at once. A process of its own writes it: a descriptor of this one, open for writing, would
/// be in every process that another test starts meanwhile, until that executes its program, and for as long nobody could execute
/// the script (execve(2), ETXTBSY).
pub(crate) fn install(path: &Path, script: &str) {
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
    let shell = std::process::Command::new("/bin/sh").args(["-c", write]).arg(path).arg(script).status();
    assert!(shell.unwrap().success(), "{}", path.display());
}

/// A VMM that is a shell script: it gets `--config-fd N`.
fn with_vmm(script: &str) -> (tempfile::TempDir, MachineOptions) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = directory.path().join("vmm");
    install(&vmm, script);
    let console_log = Some(directory.path().join("console.log"));
    let config = MachineConfig { kernel: "vmlinux".into(), ..Default::default() };
    (
        directory,
        MachineOptions {
            vmm,
            config,
            modules_disk: None,
            console_log,
            network: Default::default(),
            folders: Default::default(),
            patience: 1,
        },
    )
}

#[test]
fn a_vmm_that_ends_says_why() {
    let cases = [
        ("exit 5", "triple fault"),
        ("echo 'undercroft-vmm: vmlinux: not a kernel' >&2; exit 1", "vmlinux: not a kernel"),
        ("kill -SYS $$", "system call filter"),
        ("exit 3", "reset itself"),
        // The configuration is on the descriptor that the arguments name, and says where the console goes.
        ("read -r c < /dev/fd/$2; echo \"${c#*'\"kernel\":\"'}\" >&2; exit 1", "vmlinux\""),
    ];
    for (script, expected) in cases {
        let (_directory, options) = with_vmm(script);
        let error = Machine::start(options).unwrap_err().to_string();
        assert!(error.contains(expected), "{script}: {error}");
    }
    let (_directory, mut options) = with_vmm("");
    options.vmm.set_file_name("missing");
    assert!(matches!(Machine::start(options), Err(Error::File { what: "execute", .. })));
}

#[test]
fn a_machine_can_be_stopped_while_it_starts() {
    let (_directory, options) = with_vmm("exec sleep 1000");
    let error = Machine::start_with(options, |stopper| stopper.interrupt(2)).unwrap_err();
    assert_eq!(error.to_string(), "interrupted by signal 2");
}
