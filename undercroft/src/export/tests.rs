//! Exports from a guest made of threads and unix sockets.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    thread,
};

use undercroft_protocol::{
    Opening,
    command::{DiskAddress, Event, Failure, FailureKind, Reply, Request},
    opening::GuestHello,
    read_frame, write_frame,
};

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

/// What a guest does with the request and the stream.
type Play = fn(&mut UnixStream, &mut UnixStream, &Request);

struct Host {
    _directory: tempfile::TempDir,
    guest: Arc<Guest>,
    // Whoever closes it is gone.
    _notify: UnixStream,
}

fn tar(content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, "./file", content).unwrap();
    builder.into_inner().unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A host whose guest takes one request for an export and does with it what the test says.
fn host(play: Play) -> Host {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let guest = Arc::new(Guest::listen(&socket, Arc::new(Board::new(None)), 1).unwrap());
    let connect = move |opening: &Opening| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        write_frame(&mut stream, opening).unwrap();
        stream
    };
    let hello = GuestHello {
        mini_init: "0".into(),
        kernel: "6".into(),
        cpus: 1,
        memory: 1,
        marks: Vec::new(),
        warnings: Vec::new(),
    };
    let mut command = connect(&Opening::Command(hello));
    let mut notify = connect(&Opening::Notify);
    guest.greet(LIMIT).unwrap();
    let ours = notify.try_clone().unwrap();
    thread::spawn(move || {
        let request: Request = read_frame(&mut command).unwrap();
        let Command::Export(what) = &request.command else { panic!("{request:?}") };
        let mut stream = connect(&Opening::Stream(what.archive));
        write_frame(&mut notify, &Event::ExportProgress { archive: what.archive, entries: 3, about: 4_000 })
            .unwrap();
        play(&mut command, &mut stream, &request);
        // Until the host hangs up.
        let _ = command.read(&mut [0]);
    });
    Host { _directory: directory, guest, _notify: ours }
}

fn reply(command: &mut UnixStream, request: &Request, outcome: std::result::Result<Done, Failure>) {
    write_frame(command, &Reply { id: request.id, outcome }).unwrap();
}

fn done(bytes: u64) -> Done {
    Done::Exported(Exported { entries: 1, bytes, warnings: Vec::new() })
}

/// A guest that sends all of it.
fn honest(command: &mut UnixStream, stream: &mut UnixStream, request: &Request) {
    let sent = stream.write_all(&tar(&noise(2 << 20))).and_then(|()| stream.shutdown(Shutdown::Both));
    let refused =
        Failure { kind: FailureKind::System, message: "the host stopped taking the archive".into() };
    reply(command, request, sent.map(|()| done(1)).map_err(|_| refused));
}

fn export_with(host: &Host, file: &File, compression: Compression, tell: &mut Tell<'_>) -> Result<Exported> {
    let root = Root::Flat { disk: DiskAddress::Lun(1) };
    export(&host.guest, &root, &Target { file, name: Path::new("x.tar"), compression }, tell)
}

#[test]
fn every_compression_gives_the_same_archive() {
    let whole = tar(&noise(2 << 20));
    for compression in [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut last = Exporting::default();
        export_with(&host(honest), file.as_file(), compression, &mut |so_far| {
            last = so_far;
            Ok(())
        })
        .unwrap();
        let written = std::fs::read(file.path()).unwrap();
        assert_eq!((last.read, last.written), (whole.len() as u64, written.len() as u64));
        let mut plain = Vec::new();
        match compression {
            Compression::None => plain = written,
            Compression::Gzip => {
                flate2::read::GzDecoder::new(&written[..]).read_to_end(&mut plain).unwrap();
            }
            Compression::Xz => {
                liblzma::read::XzDecoder::new(&written[..]).read_to_end(&mut plain).unwrap();
            }
            Compression::Zstd => plain = zstd::decode_all(&written[..]).unwrap(),
        }
        assert!(plain == whole, "{compression:?}");
    }
}

#[test]
fn what_the_guest_sends_is_a_claim() {
    let cases: [(Play, &str); 4] = [
        (
            |command, stream, request| {
                stream.write_all(&tar(b"x")[..512]).unwrap();
                stream.shutdown(Shutdown::Both).unwrap();
                reply(command, request, Ok(done(1)));
            },
            "cut off",
        ),
        (
            |command, stream, request| {
                let _ = stream.write_all(&noise(4096));
                reply(command, request, Ok(done(1)));
            },
            "damaged",
        ),
        (
            |command, stream, request| {
                stream.write_all(&tar(b"x")[..512]).unwrap();
                stream.shutdown(Shutdown::Both).unwrap();
                let message = "./etc: reading it: Input/output error".into();
                reply(command, request, Err(Failure { kind: FailureKind::Disk, message }));
            },
            "Input/output error",
        ),
        (
            |command, stream, request| {
                stream.write_all(&tar(b"x")).unwrap();
                stream.shutdown(Shutdown::Both).unwrap();
                reply(command, request, Ok(Done::Nothing));
            },
            "answered a request",
        ),
    ];
    for (play, expected) in cases {
        let file = tempfile::tempfile().unwrap();
        let error = export_with(&host(play), &file, Compression::None, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn who_is_told_can_end_it_even_while_a_pipe_is_full() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let file = File::from(OwnedFd::from(writer));
    let mut told = 0;
    let host = host(honest);
    let error = export_with(&host, &file, Compression::None, &mut |so_far| {
        told += 1;
        if told > 3 && so_far.written > 0 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(error, Err(Error::Cancelled)), "{error:?}");
    drop(reader);
    assert!(host.guest.board.lock().exports.is_empty());
}

#[test]
fn a_full_file_system_and_a_reader_that_went_are_told() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = export_with(&host(honest), &full, Compression::Zstd, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::DiskFull { path, .. } if path == Path::new("x.tar")), "{error}");
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let gone = File::from(OwnedFd::from(writer));
    let error = export_with(&host(honest), &gone, Compression::None, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::File { what: "write", .. }), "{error}");
}

#[test]
fn a_name_says_how_to_compress() {
    for (name, compression) in [
        ("a.tar", Compression::None),
        ("a.TAR.GZ", Compression::Gzip),
        ("a.tgz", Compression::Gzip),
        ("a.tar.xz", Compression::Xz),
        ("dir.zst/a.wsl", Compression::None),
        ("a.tar.zst", Compression::Zstd),
    ] {
        assert_eq!(Compression::of_name(Path::new(name)), compression, "{name}");
    }
}
