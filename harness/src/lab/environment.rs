//! Which variables of the host's environment a command in the lab gets.

use std::ffi::{OsStr, OsString};

/// Names that go along. What describes the host's session (sockets in `/run`, an agent, a display) stays behind.
const NAMES: &[&str] = &[
    "CI",
    "COLORTERM",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "NO_COLOR",
    "PATH",
    "SHELL",
    "SOURCE_DATE_EPOCH",
    "TERM",
    "TZ",
    "USER",
];

/// Beginnings of names that go along.
const PREFIXES: &[&str] =
    &["CARGO", "CRITERION", "INSTA_", "LC_", "PROPTEST_", "RSTEST_", "RUST", "UNDERCROFT_", "__CARGO"];

/// What is set in the lab whatever the host says. Symbolising a panic's backtrace takes a quarter of a minute there.
const SET: &[(&str, &str)] = &[
    (super::INSIDE, "1"),
    ("UNDERCROFT_KVM", "hardware"),
    ("RUST_BACKTRACE", "0"),
    ("RUST_LIB_BACKTRACE", "0"),
];

/// The environment of a command in the lab.
pub(super) fn chosen() -> Vec<(OsString, OsString)> {
    from(std::env::vars_os())
}

fn from(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let set = |name: &OsStr| SET.iter().any(|(n, _)| name == *n);
    let goes = |name: &OsStr| {
        name.to_str().is_some_and(|n| NAMES.contains(&n) || PREFIXES.iter().any(|p| n.starts_with(p)))
    };
    let runtime = format!("/run/user/{}", nix::unistd::getuid());
    variables
        .filter(|(name, _)| goes(name) && !set(name))
        .chain(SET.iter().map(|(n, v)| (n.into(), v.into())))
        .chain([("XDG_RUNTIME_DIR".into(), runtime.into())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_the_hosts_session_stays_behind() {
        let host =
            [("PATH", "/bin"), ("DISPLAY", ":0"), ("CARGO_MANIFEST_DIR", "/w"), ("RUST_BACKTRACE", "1")];
        let chosen = from(host.into_iter().map(|(n, v)| (n.into(), v.into())));
        let get =
            |name: &str| chosen.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap().to_owned());
        assert_eq!(get("PATH").as_deref(), Some("/bin"));
        assert_eq!(get("CARGO_MANIFEST_DIR").as_deref(), Some("/w"));
        assert_eq!(get("DISPLAY"), None);
        assert_eq!(get("RUST_BACKTRACE").as_deref(), Some("0"));
        assert_eq!(chosen.iter().filter(|(n, _)| n == "RUST_BACKTRACE").count(), 1);
    }
}
