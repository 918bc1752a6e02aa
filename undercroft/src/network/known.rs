//! Names that no server is asked for: those of the host and of the distributions, which those that run already learn this way
//! (their /etc/hosts was written when they started).
//!
//! Only what is needed of RFC 1035: one question, and an answer of addresses.

use std::net::IpAddr;

use undercroft_protocol::network::Host;

/// Bytes of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// The longest label and name, in bytes (2.3.4).
const LABEL: usize = 63;
const NAME: usize = 255;
/// Types of records: A (3.2.2), AAAA (RFC 3596, 2.1), any (3.2.3); the class IN (3.2.4).
const A: u16 = 1;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const IN: u16 = 1;
/// In the third byte: a response; what is asked for (the opcode); with authority; recursion is wanted. In the fourth: there
/// is recursion.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITY: u8 = 0x04;
const WANTED: u8 = 0x01;
const AVAILABLE: u8 = 0x80;
/// For a name: the one at the message's 12th byte (4.1.4).
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];

/// The answer to a question about one of these; nothing if it is about something else, or is no question.
pub(super) fn answer(question: &[u8], hosts: &[Host]) -> Option<Vec<u8>> {
    let (name, kind, end) = parse(question)?;
    let mut known = hosts.iter().filter(|host| host.name.eq_ignore_ascii_case(&name)).peekable();
    known.peek()?;
    let mut count: u16 = 0;
    let mut records = Vec::new();
    for host in known {
        let (its, bytes) = match host.address {
            IpAddr::V4(ip) => (A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
        };
        if kind == its || kind == ANY {
            count += 1;
            records.extend(SAME_NAME);
            records.extend([its, IN].map(u16::to_be_bytes).concat());
            // Not to be kept: the next one of that name may be elsewhere.
            records.extend([0; 4]);
            records.extend((bytes.len() as u16).to_be_bytes());
            records.extend(bytes);
        }
    }
    let mut answer = question[..end].to_vec();
    answer[2] = RESPONSE | AUTHORITY | question[2] & WANTED;
    answer[3] = AVAILABLE;
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    answer[8..HEADER].fill(0);
    answer.extend(records);
    Some(answer)
}

/// The name and the type that are asked for, and where the question ends.
fn parse(question: &[u8]) -> Option<(String, u16, usize)> {
    let header = question.get(..HEADER)?;
    if header[2] & (RESPONSE | OPCODE) != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if length > LABEL || at + length > HEADER + NAME {
            return None;
        }
        labels.push(std::str::from_utf8(question.get(at..at + length)?).ok()?);
        at += length;
    }
    let rest: [u8; 4] = question.get(at..at + 4)?.try_into().ok()?;
    let [kind, class] = [[rest[0], rest[1]], [rest[2], rest[3]]].map(u16::from_be_bytes);
    (class == IN).then(|| (labels.join("."), kind, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![7, 8, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend([kind, IN].map(u16::to_be_bytes).concat());
        // What else it says (EDNS) is not answered.
        bytes.extend([0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn hosts() -> Vec<Host> {
        let host = |name: &str, address: &str| Host { address: address.parse().unwrap(), name: name.into() };
        vec![host("host.internal", "10.0.0.1"), host("deb", "10.0.0.6"), host("deb", "fd00::6")]
    }

    #[test]
    fn what_is_known_is_answered() {
        let told = answer(&question("DEB", A), &hosts()).unwrap();
        assert_eq!(told[..HEADER], [7, 8, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(told[HEADER..HEADER + 9], *b"\x03DEB\0\0\x01\0\x01");
        assert_eq!(told[HEADER + 9..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, 6]);
        let told = answer(&question("deb", AAAA), &hosts()).unwrap();
        assert_eq!((told[7], told.last()), (1, Some(&6)));
        let told = answer(&question("host.internal", AAAA), &hosts()).unwrap();
        assert_eq!((told[3], told[7]), (0x80, 0), "it is there, and has no such address");
        assert_eq!(answer(&question("deb", ANY), &hosts()).unwrap()[7], 2);
    }

    #[test]
    fn what_is_not_known_or_no_question_is_not() {
        assert_eq!(answer(&question("deb.example", A), &hosts()), None);
        assert_eq!(answer(&question("internal", A), &hosts()), None);
        let good = question("deb", A);
        for length in 0..HEADER + 9 {
            assert_eq!(answer(&good[..length], &hosts()), None);
        }
        for (at, byte) in [(2, 0x80), (2, 0x28), (5, 2), (HEADER, 64), (HEADER, 0xc0), (HEADER + 8, 3)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(answer(&bad, &hosts()), None, "{byte:#x} at {at}");
        }
    }

    #[test]
    fn no_byte_makes_it_panic() {
        let good = question("deb.example", A);
        for at in 0..good.len() {
            for byte in 0..=u8::MAX {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = answer(&bad, &hosts());
            }
        }
    }
}
