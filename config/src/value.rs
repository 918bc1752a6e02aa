//! What a key's value can be: how it is read, and how it is written.

use std::fmt;

use crate::{
    grammar::excerpt,
    host::{Mount, NotAMount, NotATap, Published, Tap},
};

/// The kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true`, `false`, `1`, `0`.
    Bool,
    /// A whole number, in decimal, hexadecimal (`0x…`) or octal (`0…`).
    Integer {
        /// The smallest.
        least: i64,
        /// The largest.
        most: i64,
    },
    /// Milliseconds, written as an integer.
    Milliseconds {
        /// Whether a negative number is allowed, and means for ever.
        or_never: bool,
    },
    /// Bytes, with `KB`, `MB`, `GB`, `TB` for powers of 1024.
    Size,
    /// CPUs, with up to three digits behind the point.
    Cpus,
    /// An absolute path; on the host, also one below the home folder (`~/…`).
    Path,
    /// Anything.
    Text,
    /// A host name (hostname(7)).
    Hostname,
    /// An Ethernet address.
    MacAddress,
    /// An octal number up to 0777.
    Umask,
    /// Ports with commas between them.
    Ports,
    /// Addresses of the host's, each with a port, see [`Published`]; with commas between them.
    Published,
    /// A folder of the host and where it is seen, see [`Mount`]; the key may be given many times.
    Mounts,
    /// A TAP device and addresses, see [`Tap`].
    Tap,
    /// One of some words, in any case.
    Choice {
        /// The words.
        of: &'static [&'static str],
        /// Words of the reference system's, and why they are none here.
        not_here: &'static [(&'static str, &'static str)],
    },
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// [`Kind::Bool`].
    Bool(bool),
    /// [`Kind::Integer`].
    Integer(i64),
    /// [`Kind::Milliseconds`]: `None` is for ever.
    Milliseconds(Option<u32>),
    /// [`Kind::Size`], in bytes.
    Size(u64),
    /// [`Kind::Cpus`], in thousandths.
    Milli(u32),
    /// [`Kind::Umask`].
    Umask(u32),
    /// [`Kind::Ports`].
    Ports(Vec<u16>),
    /// [`Kind::Published`].
    Published(Vec<Published>),
    /// [`Kind::Mounts`].
    Mounts(Vec<Mount>),
    /// [`Kind::Tap`].
    Tap(Tap),
    /// All others; a [`Kind::Choice`] as this crate writes it.
    Text(String),
}

/// A value that its key does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a boolean.
    #[error("expected true or false, and got {0}")]
    Bool(String),
    /// Not a number, or one out of its range.
    #[error("expected a whole number from {least} to {most}, in decimal, 0x… or 0…, and got {got}")]
    Integer {
        /// The smallest.
        least: i64,
        /// The largest.
        most: i64,
        /// What is there.
        got: String,
    },
    /// Not milliseconds.
    #[error("expected milliseconds{}, and got {got}", if *.or_never { " (-1: never)" } else { "" })]
    Milliseconds {
        /// Whether a negative number would do.
        or_never: bool,
        /// What is there.
        got: String,
    },
    /// Not a size.
    #[error("expected a size such as 512MB or 8GB, and got {0}")]
    Size(String),
    /// Not a number of CPUs.
    #[error("expected a number of CPUs such as 2 or 1.5, and got {0}")]
    Cpus(String),
    /// A path of Windows's.
    #[error("{0} is a path of Windows's, and this host has no drives; expected an absolute path or ~/…")]
    WindowsPath(String),
    /// Not an absolute path.
    #[error("expected an absolute path or ~/…, and got {0}")]
    Path(String),
    /// Not a host name.
    #[error("expected letters, digits, `-`, `_` and `.`, at most 64, and got {0}")]
    Hostname(String),
    /// Not an Ethernet address.
    #[error("expected an address such as 02:00:00:12:34:56, whose first byte is even, and got {0}")]
    MacAddress(String),
    /// Not a mask.
    #[error("expected an octal number up to 0777, and got {0}")]
    Umask(String),
    /// Not ports.
    #[error("expected port numbers from 1 to 65535 with commas between them, and got {0}")]
    Ports(String),
    /// Not addresses with ports.
    #[error(
        "expected addresses of this host's with a port, such as 0.0.0.0:8080 or [::]:53/udp, with commas between them, \
             and got {0}"
    )]
    Published(String),
    /// Not a folder and its place.
    #[error("{NotAMount}, and got {0}")]
    Mount(String),
    /// Not a device with addresses.
    #[error("{NotATap}, and got {0}")]
    Tap(String),
    /// None of the words.
    #[error("expected {}, and got {got}", .of.join(", "))]
    Choice {
        /// The words.
        of: &'static [&'static str],
        /// What is there.
        got: String,
    },
    /// A word of the reference system's.
    #[error("{word} is not there in undercroft: {reason}")]
    NotHere {
        /// The word.
        word: &'static str,
        /// Why.
        reason: &'static str,
    },
}

impl Kind {
    /// Reads a value. Nothing is no value, where text would do: `Ok(None)`.
    ///
    /// # Errors
    /// It is not of this kind.
    pub fn read(&self, text: &str) -> Result<Option<Value>, Invalid> {
        let text = text.trim();
        let got = || excerpt(text);
        let may_be_empty = matches!(self, Self::Path | Self::Text | Self::Ports | Self::Published);
        if text.is_empty() && may_be_empty {
            return Ok(None);
        }
        let value = match *self {
            Self::Bool => Value::Bool(boolean(text).ok_or_else(|| Invalid::Bool(got()))?),
            Self::Integer { least, most } => {
                let number = integer(text).filter(|number| (least..=most).contains(number));
                Value::Integer(number.ok_or_else(|| Invalid::Integer { least, most, got: got() })?)
            }
            Self::Milliseconds { or_never } => {
                let number = integer(text).and_then(|number| match number {
                    ..0 if or_never => Some(None),
                    _ => u32::try_from(number).ok().map(Some),
                });
                Value::Milliseconds(number.ok_or_else(|| Invalid::Milliseconds { or_never, got: got() })?)
            }
            Self::Size => Value::Size(size(text).ok_or_else(|| Invalid::Size(got()))?),
            Self::Cpus => Value::Milli(milli(text).ok_or_else(|| Invalid::Cpus(got()))?),
            Self::Path => Value::Text(path(text)?),
            Self::Text => Value::Text(text.into()),
            Self::Hostname if is_hostname(text) => Value::Text(text.into()),
            Self::Hostname => return Err(Invalid::Hostname(got())),
            Self::MacAddress => Value::Text(mac_address(text).ok_or_else(|| Invalid::MacAddress(got()))?),
            Self::Umask => {
                let mask = digits(text, 8).and_then(|mask| u32::try_from(mask).ok());
                Value::Umask(mask.filter(|mask| *mask <= 0o777).ok_or_else(|| Invalid::Umask(got()))?)
            }
            Self::Ports => Value::Ports(ports(text).ok_or_else(|| Invalid::Ports(got()))?),
            Self::Published => Value::Published(published(text).ok_or_else(|| Invalid::Published(got()))?),
            Self::Tap => Value::Tap(text.parse().map_err(|_| Invalid::Tap(got()))?),
            Self::Mounts => Value::Mounts(vec![text.parse().map_err(|_| Invalid::Mount(got()))?]),
            Self::Choice { of, not_here } => {
                if let Some(&(word, reason)) = not_here.iter().find(|(w, _)| w.eq_ignore_ascii_case(text)) {
                    return Err(Invalid::NotHere { word, reason });
                }
                let word = of.iter().find(|word| word.eq_ignore_ascii_case(text));
                Value::Text((*word.ok_or_else(|| Invalid::Choice { of, got: got() })?).into())
            }
        };
        Ok(Some(value))
    }

    /// In people's words.
    pub fn name(&self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Integer { least, most } if *most == i64::MAX || *most == i64::from(u32::MAX) => {
                format!("a whole number, {least} or more")
            }
            Self::Integer { least, most } => format!("a whole number from {least} to {most}"),
            Self::Milliseconds { or_never: true } => "milliseconds, or -1 for never".into(),
            Self::Milliseconds { or_never: false } => "milliseconds".into(),
            Self::Size => "a size, such as 512MB or 8GB".into(),
            Self::Cpus => "a number of CPUs, such as 2 or 1.5".into(),
            Self::Path => "a path, absolute or below ~/".into(),
            Self::Text => "text".into(),
            Self::Hostname => "a host name".into(),
            Self::MacAddress => "an Ethernet address".into(),
            Self::Umask => "an octal number up to 0777".into(),
            Self::Ports => "port numbers with commas between them".into(),
            Self::Published => {
                "addresses with a port, such as 0.0.0.0:8080 or [::]:53/udp, with commas between them".into()
            }
            Self::Mounts => {
                "HOST-FOLDER:GUEST-FOLDER, with :ro behind it if wanted; the key may be repeated".into()
            }
            Self::Tap => "DEVICE ADDRESS/BITS[,…] [via GATEWAY[,…]]".into(),
            Self::Choice { of, .. } => of.join(", "),
        }
    }
}

/// As one would write it into a file, but for quotes.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Milliseconds(Some(value)) => write!(f, "{value}"),
            Self::Milliseconds(None) => f.write_str("-1"),
            Self::Size(bytes) => {
                let units = ["", "KB", "MB", "GB", "TB"];
                let power = (bytes.trailing_zeros() / 10).min(4) * u32::from(*bytes != 0);
                write!(f, "{}{}", bytes >> (10 * power), units[power as usize])
            }
            Self::Milli(milli) => {
                let (whole, part) = (milli / 1000, milli % 1000);
                if part == 0 {
                    return write!(f, "{whole}");
                }
                write!(f, "{whole}.{}", format!("{part:03}").trim_end_matches('0'))
            }
            Self::Umask(mask) => write!(f, "{mask:04o}"),
            Self::Published(all) => {
                f.write_str(&all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
            Self::Ports(ports) => {
                f.write_str(&ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
            }
            Self::Mounts(mounts) => {
                f.write_str(&mounts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::Tap(tap) => write!(f, "{tap}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Digits and nothing else: `from_str_radix` would take a sign.
fn digits(text: &str, radix: u32) -> Option<i64> {
    let all = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    all.then(|| i64::from_str_radix(text, radix).ok()).flatten()
}

/// As git reads a number without a unit: decimal, hexadecimal after `0x`, octal after `0`.
fn integer(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let (sign, number) = match lower.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, lower.as_str()),
    };
    let magnitude = match (number.strip_prefix("0x"), number.strip_prefix('0')) {
        (Some(hex), _) => digits(hex, 16)?,
        (None, Some(octal)) if !octal.is_empty() => digits(octal, 8)?,
        _ => digits(number, 10)?,
    };
    Some(sign * magnitude)
}

fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

fn milli(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = match part.len() {
        0 => 0,
        length @ 1..=3 => u32::try_from(digits(part, 10)?).ok()? * 10u32.pow(3 - length as u32),
        _ => return None,
    };
    let whole = u32::try_from(digits(whole, 10)?).ok()?;
    whole.checked_mul(1000)?.checked_add(part).filter(|milli| *milli > 0)
}

fn path(text: &str) -> Result<String, Invalid> {
    let bytes = text.as_bytes();
    let drive = bytes.len() > 1 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    if drive || text.starts_with("\\\\") || text.starts_with('%') {
        return Err(Invalid::WindowsPath(excerpt(text)));
    }
    if is_path(text) { Ok(text.into()) } else { Err(Invalid::Path(excerpt(text))) }
}

pub(crate) fn is_path(text: &str) -> bool {
    (text.starts_with('/') || text.starts_with("~/")) && !text.contains('\0')
}

/// Whether the kernel and other programs take this for a host name (hostname(7)).
pub fn is_hostname(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// A station's address, not a group's (IEEE 802: the lowest bit of the first byte).
fn mac_address(text: &str) -> Option<String> {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    let byte = |text: &&str| if text.len() == 2 { digits(text, 16) } else { None };
    let numbers: Vec<i64> = bytes.iter().map(byte).collect::<Option<_>>()?;
    if numbers.len() != 6 || numbers[0] & 1 != 0 {
        return None;
    }
    Some(numbers.iter().map(|n| format!("{n:02x}")).collect::<Vec<_>>().join(":"))
}

fn published(text: &str) -> Option<Vec<Published>> {
    text.split(',').map(|word| word.trim().parse().ok()).collect()
}

fn ports(text: &str) -> Option<Vec<u16>> {
    let port = |text: &str| digits(text.trim(), 10).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    text.split(',').map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(kind: Kind, text: &str) -> String {
        match kind.read(text) {
            Ok(Some(value)) => value.to_string(),
            Ok(None) => "(nothing)".into(),
            Err(error) => format!("! {error}"),
        }
    }

    #[test]
    fn numbers_are_read_as_git_reads_them() {
        let integer = Kind::Integer { least: -8, most: 5000 };
        for (text, expected) in
            [("12", "12"), ("0x10", "16"), ("010", "8"), ("0", "0"), ("-1", "-1"), ("0XF", "15")]
        {
            assert_eq!(shown(integer, text), expected, "{text}");
        }
        for text in ["", "+1", "09", "-9", "5001", "1 2", "0x", "--1", "99999999999999999999"] {
            assert!(shown(integer, text).starts_with('!'), "{text}");
        }
        let (never, always) = (Kind::Milliseconds { or_never: true }, Kind::Milliseconds { or_never: false });
        assert_eq!((shown(never, "-7"), shown(never, "15000")), ("-1".into(), "15000".into()));
        assert_eq!(shown(always, "-1"), "! expected milliseconds, and got `-1`");
        assert!(shown(never, "4294967296").starts_with('!'));
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("4GB", "4GB"),
            ("512mb", "512MB"),
            ("1024 MB", "1GB"),
            ("0", "0"),
            ("1000", "1000"),
            ("2t", "2TB"),
        ] {
            assert_eq!(shown(Kind::Size, text), expected, "{text}");
        }
        for text in ["", "GB", "-1GB", "1.5GB", "4 GBs", "99999999999TB", "50%"] {
            assert!(shown(Kind::Size, text).starts_with('!'), "{text}");
        }
        for (text, expected) in [("2", "2"), ("1.5", "1.5"), ("0.05", "0.05"), ("1.000", "1")] {
            assert_eq!(shown(Kind::Cpus, text), expected);
        }
        for text in ["0", "0.0", "-1", "1.", ".5", "1.2345", "x"] {
            let wrong = shown(Kind::Cpus, text).starts_with('!');
            assert!(wrong || text == "1.", "{text}");
        }
    }

    #[test]
    fn paths_are_the_hosts() {
        assert_eq!(shown(Kind::Path, "~/kernel"), "~/kernel");
        assert_eq!(shown(Kind::Path, ""), "(nothing)");
        for text in ["C:\\Temp\\swap.vhdx", "c:/x", "%USERPROFILE%\\x", "\\\\server\\x"] {
            assert!(shown(Kind::Path, text).contains("Windows"), "{text}");
        }
        assert!(shown(Kind::Path, "kernel").contains("absolute"));
        let mount = |text| shown(Kind::Mounts, text);
        assert_eq!(mount("/src:/mnt/src:ro"), "/src:/mnt/src:ro");
        assert_eq!(mount("~/a:b:/x"), "~/a:b:/x");
        assert_eq!(mount("/src:rw"), "/src:/src");
        for text in ["", "src:/x", "/src:x", "~/src", "/a:/", "/a:/b/../c"] {
            assert!(mount(text).starts_with('!'), "{text}");
        }
    }

    #[test]
    fn words_are_known_in_any_case_and_others_have_reasons() {
        let kind = Kind::Choice { of: &["dropCache", "gradual"], not_here: &[("v1", "it is gone.")] };
        assert_eq!(shown(kind, "DROPCACHE"), "dropCache");
        assert_eq!(shown(kind, "V1"), "! v1 is not there in undercroft: it is gone.");
        assert_eq!(shown(kind, "x"), "! expected dropCache, gradual, and got `x`");
        assert_eq!(shown(Kind::MacAddress, "02-00-5E-10-00-0a"), "02:00:5e:10:00:0a");
        assert!(shown(Kind::MacAddress, "03:00:5e:10:00:0a").starts_with('!'));
        assert_eq!(shown(Kind::Umask, "022"), "0022");
        assert!(shown(Kind::Umask, "0778").starts_with('!') && shown(Kind::Umask, "1777").starts_with('!'));
        assert_eq!(shown(Kind::Ports, "80, 443"), "80,443");
        let published = "0.0.0.0:80, [::]:53/udp,192.0.2.1:9/tcp";
        assert_eq!(shown(Kind::Published, published), "0.0.0.0:80,[::]:53/udp,192.0.2.1:9");
        for wrong in
            ["80", "0.0.0.0", "0.0.0.0:0", "localhost:80", "0.0.0.0:80,,1.1.1.1:1", "0.0.0.0:80/sctp"]
        {
            assert!(shown(Kind::Published, wrong).starts_with('!'), "{wrong}");
        }
        assert!(shown(Kind::Ports, "0").starts_with('!') && shown(Kind::Ports, "80,,1").starts_with('!'));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(bytes: u64, milli in 1u32.., ports in prop::collection::vec(1u16.., 1..5)) {
            for (kind, value) in
                [(Kind::Size, Value::Size(bytes)), (Kind::Cpus, Value::Milli(milli)), (Kind::Ports, Value::Ports(ports))]
            {
                prop_assert_eq!(kind.read(&value.to_string()), Ok(Some(value)));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            for kind in [
                Kind::Bool, Kind::Integer { least: 0, most: 9 }, Kind::Milliseconds { or_never: true }, Kind::Size, Kind::Cpus,
                Kind::Path, Kind::Hostname, Kind::MacAddress, Kind::Umask, Kind::Ports, Kind::Published, Kind::Mounts,
            ] {
                let _ = kind.read(&text);
            }
        }
    }
}
