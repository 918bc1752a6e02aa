//! /etc/wsl.conf: what a distribution says about itself.
//!
//! The grammar is git's, as the reference system reads it: `[section]`, `key = value`, `#` comments, double quotes, `\`
//! escapes and continued lines; sections and keys in any case; booleans `true`, `false`, `1`, `0`. Nothing in the file is
//! fatal: what is not understood is a warning with its line.

use std::{collections::HashMap, time::Duration};

/// What this init honours, and what it knows without honouring it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// `boot.systemd`.
    pub(crate) systemd: bool,
    /// `boot.initTimeout`, in milliseconds there: how long systemd may take until sessions are let in all the same.
    pub(crate) init_timeout: Duration,
    /// `boot.command`: run as root by /bin/sh when the distribution starts.
    pub(crate) command: Option<String>,
    /// `network.hostname`.
    pub(crate) hostname: Option<String>,
    /// `network.generateHosts`.
    pub(crate) generate_hosts: bool,
    /// `network.generateResolvConf`.
    pub(crate) generate_resolv_conf: bool,
    /// `user.default`.
    pub(crate) user: Option<String>,
    /// `filesystem.umask`.
    pub(crate) umask: u32,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            systemd: false,
            init_timeout: Duration::from_millis(10_000),
            command: None,
            hostname: None,
            generate_hosts: true,
            generate_resolv_conf: true,
            user: None,
            umask: 0o022,
        }
    }
}

/// Keys of the reference system that have no meaning here, or none yet.
const WITHOUT_MEANING: [&str; 13] = [
    "automount.enabled",
    "automount.root",
    "automount.options",
    "automount.mountfstab",
    "automount.ldconfig",
    "automount.cgroups",
    "boot.protectbinfmt",
    "interop.enabled",
    "interop.appendwindowspath",
    "time.usewindowstimezone",
    "gpu.enabled",
    "gpu.appendlibpath",
    "fileserver.enabled",
];

/// The longest file that is read, in bytes: it is a few lines of text.
const LONGEST: u64 = 1 << 20;

/// Reads the file; that there is none is no warning.
pub(crate) fn read(path: &str, warnings: &mut Vec<String>) -> Configuration {
    use std::io::Read;
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => {
            if let Err(error) = file.take(LONGEST).read_to_end(&mut bytes) {
                warnings.push(format!("{path}: {error}"));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => warnings.push(format!("{path}: {error}")),
    }
    let mut found = Vec::new();
    let configuration = parse(&bytes, &mut found);
    warnings.extend(found.into_iter().map(|(line, text)| format!("{path}:{line}: {text}")));
    configuration
}

/// Warnings come with their lines' numbers, from 1.
fn parse(bytes: &[u8], warnings: &mut Vec<(usize, String)>) -> Configuration {
    let mut configuration = Configuration::default();
    let text = decode(bytes, warnings);
    let mut section = String::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (number, line) in logical_lines(&text) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            match rest.split_once(']') {
                Some((name, after)) if after.trim().is_empty() || after.trim().starts_with('#') => {
                    section = name.trim().to_ascii_lowercase();
                }
                _ => warnings.push((number, format!("expected a section in brackets, and got {line:?}"))),
            }
            continue;
        }
        let Some((key, raw)) = line.split_once('=') else {
            warnings.push((number, format!("expected `key = value`, and got {line:?}")));
            continue;
        };
        let key = format!("{section}.{}", key.trim().to_ascii_lowercase());
        let value = match unquote(raw.trim()) {
            Ok(value) => value,
            Err(reason) => {
                warnings.push((number, format!("{key}: {reason}")));
                continue;
            }
        };
        if let Some(first) = seen.insert(key.clone(), number) {
            warnings.push((number, format!("{key} was set in line {first} already; this line is not used")));
            continue;
        }
        if let Err(reason) = set(&mut configuration, &key, &value) {
            warnings.push((number, reason));
        }
    }
    configuration
}

/// UTF-8, with or without a byte-order mark, or UTF-16 with one: editors on other systems write both.
fn decode(bytes: &[u8], warnings: &mut Vec<(usize, String)>) -> String {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(error) => {
                let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                warnings.push((line, "is not UTF-8; other bytes are read as \u{fffd}".into()));
                String::from_utf8_lossy(bytes).into_owned()
            }
        },
    }
}

/// Lines with those joined that end in a backslash, and the number of their first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let backslashes = line.len() - line.trim_end_matches('\\').len();
        let continues = backslashes % 2 == 1;
        let line = if continues { &line[..line.len() - 1] } else { line };
        match lines.last_mut().filter(|_| continued) {
            Some((_, start)) => start.push_str(line),
            None => lines.push((index + 1, line.into())),
        }
        continued = continues;
    }
    lines
}

/// A value without its quotes, escapes and comment.
fn unquote(raw: &str) -> Result<String, String> {
    let mut value = String::new();
    // Where the value ends, if it ends with spaces that no quote protects.
    let mut kept = 0;
    let mut quoted = false;
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                kept = value.len();
                continue;
            }
            '\\' => match characters.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('b') => value.push('\u{8}'),
                Some(other @ ('"' | '\\')) => value.push(other),
                Some(other) => return Err(format!("`\\{other}` is no escape; a backslash is written twice")),
                None => return Err("ends with a backslash".into()),
            },
            '#' if !quoted => break,
            other => value.push(other),
        }
        if quoted || !character.is_whitespace() {
            kept = value.len();
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    value.truncate(kept);
    Ok(value)
}

fn set(to: &mut Configuration, key: &str, value: &str) -> Result<(), String> {
    let text = || (!value.is_empty()).then(|| value.to_owned());
    match key {
        "boot.systemd" => to.systemd = boolean(key, value)?,
        "boot.inittimeout" => {
            let number = integer(value).ok_or_else(|| {
                format!("{key}: expected milliseconds, in decimal, 0x… or 0…, and got {value:?}")
            })?;
            to.init_timeout = Duration::from_millis(number.into());
        }
        "boot.command" => to.command = text(),
        "network.hostname" => {
            to.hostname = text().filter(|name| is_hostname(name)).map(Some).ok_or_else(|| {
                format!(
                    "network.hostname: expected letters, digits, `-` and `.`, at most 64, and got {value:?}"
                )
            })?
        }
        "network.generatehosts" => to.generate_hosts = boolean(key, value)?,
        "network.generateresolvconf" => to.generate_resolv_conf = boolean(key, value)?,
        "user.default" => to.user = text(),
        "filesystem.umask" => {
            let octal = u32::from_str_radix(value, 8).ok().filter(|mask| *mask <= 0o777);
            to.umask = octal
                .ok_or_else(|| format!("{key}: expected an octal number up to 0777, and got {value:?}"))?;
        }
        key if WITHOUT_MEANING.contains(&key) => {
            return Err(format!("{key} has no meaning here, and is not used"));
        }
        key => return Err(format!("{key} is not known, and is not used")),
    }
    Ok(())
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}: expected true or false, and got {value:?}")),
    }
}

/// As git reads a number without a unit: decimal, hexadecimal after `0x`, octal after `0`.
fn integer(value: &str) -> Option<u32> {
    let lower = value.to_ascii_lowercase();
    match (lower.strip_prefix("0x"), lower.strip_prefix('0')) {
        (Some(digits), _) => u32::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) if !digits.is_empty() => u32::from_str_radix(digits, 8).ok(),
        _ => lower.parse().ok(),
    }
}

/// Whether the kernel and other programs take this for a host name (hostname(7)).
pub(crate) fn is_hostname(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> (Configuration, Vec<(usize, String)>) {
        let mut warnings = Vec::new();
        let configuration = parse(text.as_bytes(), &mut warnings);
        (configuration, warnings)
    }

    #[test]
    fn what_people_write_is_understood() {
        let (found, warnings) = parsed(
            "# mine\n[User]\nDefault = ada # me\n\n[network]\nhostname=\"box\"\ngenerateHosts = FALSE\n[boot]\n\
             command = \"echo \\\"a # b\\\" \\\n  && true\"\n[filesystem]\numask=0027\n",
        );
        assert_eq!(warnings, []);
        assert_eq!(found.user.as_deref(), Some("ada"));
        assert_eq!(found.hostname.as_deref(), Some("box"));
        assert_eq!(found.command.as_deref(), Some("echo \"a # b\"   && true"));
        assert_eq!((found.generate_hosts, found.umask), (false, 0o027));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_does_no_harm() {
        let (found, warnings) = parsed(
            "[user]\ndefault=ada\ndefault=bob\nfavourite=1\n[network]\ngenerateHosts=perhaps\nnonsense\n[broken\n\
             [boot]\nsystemd=true\ncommand=\"open\n[interop]\nenabled=false\n",
        );
        assert_eq!(
            found,
            Configuration { user: Some("ada".into()), systemd: true, ..Configuration::default() }
        );
        let lines: Vec<usize> = warnings.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 6, 7, 8, 11, 13]);
        assert!(warnings[0].1.contains("line 2"), "{warnings:?}");
    }

    #[test]
    fn the_time_for_systemd_is_a_number_as_git_reads_it() {
        for (text, milliseconds) in [("20000", 20_000), ("0x10", 16), ("010", 8), ("0", 0)] {
            let (found, warnings) = parsed(&format!("[boot]\ninitTimeout = {text}\n"));
            assert_eq!((found.init_timeout.as_millis(), warnings), (milliseconds, vec![]), "{text}");
        }
        for text in ["", "-1", "soon", "09", "4294967296"] {
            let (found, warnings) = parsed(&format!("[boot]\ninitTimeout = {text}\n"));
            assert_eq!((found.init_timeout.as_millis(), warnings.len()), (10_000, 1), "{text}");
        }
    }

    #[test]
    fn other_encodings_are_read() {
        let mut utf16 = vec![0xff, 0xfe];
        utf16.extend("[user]\ndefault=zoë\n".encode_utf16().flat_map(u16::to_le_bytes));
        for bytes in [utf16, [&[0xef, 0xbb, 0xbf][..], "[user]\ndefault=zoë\n".as_bytes()].concat()] {
            assert_eq!(parse(&bytes, &mut Vec::new()).user.as_deref(), Some("zoë"));
        }
        let mut warnings = Vec::new();
        parse(b"[user]\ndefault=zo\xeb\n", &mut warnings);
        assert_eq!(warnings[0].0, 2);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            parse(&bytes, &mut Vec::new());
        }
    }
}
