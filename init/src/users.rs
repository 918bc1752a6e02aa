//! Who a session runs as, from /etc/passwd and /etc/group.
//!
//! Read by hand: glibc's own lookup loads libraries of the distribution's, which a static program must not.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// A line of /etc/passwd (passwd(5)), with the groups of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: OsString,
    /// User id.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    /// Home directory.
    pub(crate) home: PathBuf,
    /// Login shell.
    pub(crate) shell: PathBuf,
}

/// Shells to try for a user whose line names none (passwd(5): "if empty, /bin/sh").
const DEFAULT_SHELL: &str = "/bin/sh";

/// Finds a user by name, or by number if there is no such name. Uid 0 and other numbers are there even where the files
/// do not know them: an image of one program has no /etc/passwd.
pub(crate) fn find(wanted: &str) -> Option<User> {
    let read = |path| fs::read(path).unwrap_or_default();
    find_in(&read("/etc/passwd"), &read("/etc/group"), wanted)
}

fn find_in(passwd: &[u8], group: &[u8], wanted: &str) -> Option<User> {
    let number: Option<u32> = wanted.parse().ok();
    let lines: Vec<Entry> = passwd.split(|b| *b == b'\n').filter_map(Entry::parse).collect();
    let by_name = lines.iter().find(|entry| entry.name == wanted.as_bytes());
    let by_number = || lines.iter().find(|entry| Some(entry.uid) == number);
    match (by_name.or_else(by_number), number) {
        (Some(entry), _) => Some(entry.user(group)),
        (None, Some(uid)) => Some(unknown(uid)),
        (None, None) if wanted == "root" => Some(unknown(0)),
        (None, None) => None,
    }
}

/// A user that is only a number.
fn unknown(uid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".into(), "/root") } else { (uid.to_string().into(), "/") };
    User { name, uid, gid: uid, groups: vec![uid], home: home.into(), shell: DEFAULT_SHELL.into() }
}

struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty() && name[0] != b'#')?;
        let _password = fields.next()?;
        let mut number = || number(fields.next()?);
        let (uid, gid) = (number()?, number()?);
        let _comment = fields.next()?;
        let home = fields.next()?;
        Some(Self { name, uid, gid, home, shell: fields.next().unwrap_or_default() })
    }

    fn user(&self, group: &[u8]) -> User {
        let path = |bytes: &[u8], otherwise: &str| match bytes {
            [] => PathBuf::from(otherwise),
            bytes => PathBuf::from(OsStr::from_bytes(bytes)),
        };
        let mut groups = vec![self.gid];
        groups.extend(group.split(|b| *b == b'\n').filter_map(|line| membership(line, self.name)));
        groups.sort_unstable();
        groups.dedup();
        User {
            name: OsString::from_vec(self.name.to_vec()),
            uid: self.uid,
            gid: self.gid,
            groups,
            home: path(self.home, "/"),
            shell: path(self.shell, DEFAULT_SHELL),
        }
    }
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// The group of a line of /etc/group (group(5)), if the user is named in it.
fn membership(line: &[u8], user: &[u8]) -> Option<u32> {
    let mut fields = line.split(|b| *b == b':');
    let (_name, _password, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    members.split(|b| *b == b',').any(|member| member == user).then(|| number(gid))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:a:0\n\
        ada:x:1000:1000:Ada,,,:/home/ada:/usr/bin/zsh\nsvc:x:1001:1001:::\n4711:x:5:5::/five:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:\nsudo:x:27:ada,other\nada:x:1000:\ndocker:x:999:other,ada\nnot:x:998:adam\n";

    #[test]
    fn by_name_with_the_groups() {
        let ada = find_in(PASSWD, GROUP, "ada").unwrap();
        assert_eq!((ada.uid, ada.gid, ada.groups), (1000, 1000, vec![27, 999, 1000]));
        assert_eq!((ada.home, ada.shell), (PathBuf::from("/home/ada"), PathBuf::from("/usr/bin/zsh")));
    }

    #[test]
    fn by_number_and_a_name_of_digits_first() {
        assert_eq!(find_in(PASSWD, GROUP, "1000").unwrap().name, "ada");
        assert_eq!(find_in(PASSWD, GROUP, "4711").unwrap().uid, 5);
        assert_eq!(find_in(PASSWD, GROUP, "77").unwrap(), User { shell: "/bin/sh".into(), ..unknown(77) });
    }

    #[test]
    fn empty_fields_have_defaults_and_nobody_is_nobody() {
        let svc = find_in(PASSWD, GROUP, "svc").unwrap();
        assert_eq!((svc.home, svc.shell), (PathBuf::from("/"), PathBuf::from("/bin/sh")));
        assert_eq!(find_in(PASSWD, GROUP, "nobody"), None);
        assert_eq!(find_in(PASSWD, GROUP, "broken"), None);
        assert_eq!(find_in(b"", b"", "root").unwrap().uid, 0);
    }
}
