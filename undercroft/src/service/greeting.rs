//! A request, and before it which messages it is one of, so that client and service of different versions notice.

use std::{io::Write, os::unix::net::UnixStream};

use undercroft_protocol::{FrameError, read_frame, write_frame};

use super::wire::Request;

/// Which messages a program speaks: whatever that file says. Client and service are one program, and differ only while the
/// service of an older one still runs; postcard knows variants by their places, and one request must never be taken for another.
const WIRE: u64 = digest(include_bytes!("wire.rs"));
/// What the service answers whoever speaks another one: a frame's header that no reader takes for one of its own version.
const ANOTHER: [u8; 8] = *b"uc\xff\xff\0\0\0\0";

/// FNV-1a, 64 bits (draft-eastlake-fnv, section 5).
const fn digest(bytes: &[u8]) -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Writes a request, and before it which messages it is one of.
pub(super) fn write_request(mut stream: &UnixStream, request: &Request) -> Result<(), FrameError> {
    write_frame(&mut stream, &WIRE)?;
    write_frame(&mut stream, request)
}

/// Reads a request; who speaks other messages is told that it is another version's.
pub(super) fn read_request(mut stream: &UnixStream) -> Result<Request, FrameError> {
    let theirs: u64 = read_frame(&mut stream)?;
    if theirs != WIRE {
        // It may have gone.
        let _ = stream.write_all(&ANOTHER);
        return Err(FrameError::Version { theirs: u16::MAX });
    }
    read_frame(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_and_a_strangers_does_not() {
        let (client, service) = UnixStream::pair().unwrap();
        write_request(&client, &Request::List).unwrap();
        assert_eq!(read_request(&service).unwrap(), Request::List);

        let (mut client, service) = UnixStream::pair().unwrap();
        write_frame(&mut client, &(WIRE ^ 1)).unwrap();
        write_frame(&mut client, &Request::List).unwrap();
        assert!(matches!(read_request(&service), Err(FrameError::Version { .. })));
        assert!(matches!(read_frame::<u64>(&mut client), Err(FrameError::Version { theirs: u16::MAX })));
    }

    #[test]
    fn the_digest_is_the_known_one() {
        // The draft's appendix C.
        assert_eq!(digest(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(digest(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
