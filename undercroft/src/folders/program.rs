//! virtiofsd: which one there is, what it can do, and how it is called.
//!
//! There are two programs of this name. The one in Rust is kept up; from 1.13 on it can write every user of a distribution's as
//! this host's user, which is what is wanted: it runs as that user, and could make files for nobody else. The one that came with
//! QEMU until 7.2 (in C) runs as root only and knows no other owners than the VM's own; it serves a distribution whose users are
//! the VM's, on a host where root runs the service.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use undercroft_protocol::command::Users;

/// The program's name.
const NAME: &str = "virtiofsd";
/// Where packages put it, besides in a folder of PATH: it is no program for people.
const FOLDERS: [&str; 4] = ["/usr/libexec", "/usr/lib", "/usr/lib/virtiofsd", "/usr/lib/qemu"];
/// What to do where there is none that is good enough.
const ADVICE: &str = "install virtiofsd 1.13 or later (`apt install virtiofsd` from Debian 13 on, or `cargo install virtiofsd`)";

/// What a virtiofsd can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    /// QEMU's own, in C.
    Qemu,
    /// In Rust, before it could translate owners.
    Plain,
    /// In Rust, with `--translate-uid`.
    Translating,
}

/// A virtiofsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// What it can do.
    pub style: Style,
}

/// Looks for the best one, in the folders of PATH and where packages put it.
///
/// # Errors
/// There is none: what to do about it.
pub fn find() -> Result<Program, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from)))
}

fn find_in(folders: impl Iterator<Item = PathBuf>) -> Result<Program, String> {
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let all = folders.map(|folder| folder.join(NAME)).filter(is_program);
    let mut best: Option<Program> = None;
    for program in all.filter_map(|path| Program::look(&path).ok()) {
        if best.as_ref().is_none_or(|best| best.style < program.style) {
            best = Some(program);
        }
    }
    best.ok_or_else(|| format!("{NAME} is not installed; {ADVICE}"))
}

/// Whose files are whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    /// The distribution's range in the VM: first and number.
    range: (u32, u32),
    /// Whether that is the VM's own.
    is_shared: bool,
    /// Who of the range the host's user is.
    owner: u32,
    /// The host's user and group.
    host: (u32, u32),
}

impl Ids {
    pub(super) fn new(users: Users, owner: u32) -> Self {
        let host = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (range, is_shared) = match users {
            Users::Own { first, count } => ((first, count), false),
            // All but -1, which is nobody.
            Users::Shared => ((0, u32::MAX), true),
        };
        Self { range, is_shared, owner: range.0 + owner.min(range.1 - 1), host }
    }
}

impl Program {
    /// What the program at a path is, from what it says of itself.
    ///
    /// # Errors
    /// It cannot be executed, or is none.
    pub fn look(path: &Path) -> Result<Self, String> {
        let mut command = Command::new(path);
        command.arg("--help").env_clear().stdin(Stdio::null());
        let output = command.output().map_err(|e| format!("{} cannot be executed: {e}", path.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let style = if said.contains("--translate-uid") {
            Style::Translating
        } else if said.contains("--shared-dir") {
            Style::Plain
        } else if said.contains("-o source=") {
            Style::Qemu
        } else {
            return Err(format!("{} is no virtiofsd; {ADVICE}", path.display()));
        };
        Ok(Self { path: path.into(), style })
    }

    /// Why it cannot share folders with distributions whose users are their own.
    pub fn lack(&self) -> Option<String> {
        let path = self.path.display();
        match self.style {
            Style::Translating => None,
            Style::Plain => Some(format!("{path} is too old to translate owners; {ADVICE}")),
            Style::Qemu => Some(format!("{path} is QEMU's, which cannot translate owners; {ADVICE}")),
        }
    }

    /// Its arguments for a folder, but for the socket.
    pub(super) fn arguments(&self, host: &Path, read_only: bool, ids: Ids) -> Result<Vec<OsString>, String> {
        if let Some(lack) = self.lack() {
            let root = ids.host.0 == 0;
            if !(root && ids.is_shared) {
                return Err(lack);
            }
        }
        if self.style == Style::Qemu {
            return qemu(host, read_only);
        }
        let mut all: Vec<OsString> = vec!["--shared-dir".into(), host.into()];
        // One request after the other is also what the VMM relies on to answer those of a server that has ended.
        let sandbox = if ids.host.0 == 0 || may_make_namespaces() { "namespace" } else { "none" };
        let plain =
            ["--sandbox", sandbox, "--cache", "auto", "--thread-pool-size", "0", "--log-level", "error"];
        all.extend(plain.map(Into::into));
        if read_only {
            all.push("--readonly".into());
        }
        if self.style == Style::Translating {
            let (first, count) = ids.range;
            for (option, host) in [("--translate-uid", ids.host.0), ("--translate-gid", ids.host.1)] {
                for map in
                    [format!("squash-guest:{first}:{host}:{count}"), format!("host:{host}:{}:1", ids.owner)]
                {
                    all.extend([option.into(), map.into()]);
                }
            }
        }
        Ok(all)
    }
}

/// Arguments of QEMU's.
fn qemu(host: &Path, read_only: bool) -> Result<Vec<OsString>, String> {
    if read_only {
        return Err(format!("QEMU's virtiofsd cannot share read-only; {ADVICE}"));
    }
    if host.as_os_str().as_encoded_bytes().contains(&b',') {
        return Err(format!("QEMU's virtiofsd cannot share a folder with a comma in its name; {ADVICE}"));
    }
    let mut source = OsString::from("source=");
    source.push(host);
    let options = ["cache=auto", "sandbox=namespace", "log_level=err"].map(OsStr::new);
    let mut all: Vec<OsString> = vec!["--thread-pool-size=0".into()];
    for option in std::iter::once(source.as_os_str()).chain(options) {
        all.extend(["-o".into(), option.to_owned()]);
    }
    Ok(all)
}

/// Whether this host lets its users make user namespaces, on which virtiofsd's sandbox stands: the kernel's limit, Debian's switch
/// and Ubuntu's.
fn may_make_namespaces() -> bool {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    number("/proc/sys/user/max_user_namespaces") != Some(0)
        && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
        && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that says something of itself.
    fn install(folder: &Path, says: &str) {
        fs::create_dir_all(folder).unwrap();
        crate::tests::install(&folder.join(NAME), &format!("echo '{says}'"));
    }

    #[test]
    fn the_best_one_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let folders = ["none", "c", "old", "new", "other"].map(|name| folder.path().join(name));
        install(&folders[1], "-o source=PATH  shared directory tree");
        install(&folders[2], "--shared-dir <SHARED_DIR>");
        install(&folders[3], "--shared-dir <SHARED_DIR> --translate-uid <MAP>");
        install(&folders[4], "hello");
        let found =
            |number: usize| find_in(folders.clone().into_iter().take(number)).map(|found| found.style);
        assert!(found(1).unwrap_err().contains("not installed; install virtiofsd 1.13"));
        assert_eq!(found(2), Ok(Style::Qemu));
        assert_eq!(found(3), Ok(Style::Plain));
        assert_eq!(found(5), Ok(Style::Translating));
        assert!(Program::look(&folders[4].join(NAME)).unwrap_err().contains("is no virtiofsd"));
    }

    fn line(style: Style, read_only: bool, ids: Ids) -> Result<String, String> {
        let program = Program { path: "/v".into(), style };
        let all = program.arguments(Path::new("/a b"), read_only, ids)?;
        Ok(all.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn whoever_writes_is_the_hosts_user_and_the_hosts_user_is_the_first_person() {
        let own = Users::Own { first: 1 << 20, count: 1 << 20 };
        let ids = Ids { host: (1001, 100), ..Ids::new(own, 1000) };
        let said = line(Style::Translating, true, ids).unwrap();
        for wanted in [
            "--shared-dir /a b --sandbox ",
            "--readonly",
            "--translate-uid squash-guest:1048576:1001:1048576 --translate-uid host:1001:1049576:1",
            "--translate-gid squash-guest:1048576:100:1048576 --translate-gid host:100:1049576:1",
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        let all = Ids { host: (1001, 100), ..Ids::new(Users::Shared, 0) };
        let said = line(Style::Translating, false, all).unwrap();
        assert!(said.contains("squash-guest:0:1001:4294967295") && said.contains("host:1001:0:1"), "{said}");
        assert!(!said.contains("--readonly"));
    }

    #[test]
    fn one_that_cannot_translate_serves_only_where_nothing_is_to_be_translated() {
        let own = Ids { host: (0, 0), ..Ids::new(Users::Own { first: 1 << 20, count: 10 }, 1000) };
        assert_eq!(own.owner, (1 << 20) + 9);
        let shared = |user| Ids { host: (user, user), ..Ids::new(Users::Shared, 1000) };
        for style in [Style::Plain, Style::Qemu] {
            assert!(line(style, false, own).unwrap_err().contains("translate owners; install"));
            assert!(line(style, false, shared(1000)).is_err());
            assert!(line(style, false, shared(0)).is_ok());
        }
        assert!(line(Style::Qemu, true, shared(0)).unwrap_err().contains("read-only"));
    }
}
