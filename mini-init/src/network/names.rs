//! What names mean, in files that all distributions share.
//!
//! They lie in the shared memory in a directory that only the VM's root writes to: a distribution's /etc/resolv.conf is a
//! link to the one, and its /etc/hosts has the lines of the other. Both are replaced as a whole, so that a reader never
//! finds half of one.

use std::{fs, io, path::Path};

use undercroft_protocol::{
    command::{Done, Failure},
    network::Names,
};

use crate::{early::SHARED, jobs::system};

/// Below the shared memory.
const DIRECTORY: &str = "network";

/// Makes the directory, before any distribution could make another in its place.
pub(crate) fn make_directory() -> io::Result<()> {
    match fs::create_dir(Path::new(SHARED).join(DIRECTORY)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes the files.
pub(crate) fn write(names: &Names) -> Result<Done, Failure> {
    let directory = Path::new(SHARED).join(DIRECTORY);
    for (name, content) in [("resolv.conf", resolv_conf(names)), ("hosts", hosts(names))] {
        replace(&directory, name, &content).map_err(system(&format!("writing the shared {name}")))?;
    }
    Ok(Done::Nothing)
}

fn replace(directory: &Path, name: &str, content: &str) -> io::Result<()> {
    let new = directory.join(format!(".{name}"));
    fs::write(&new, content)?;
    fs::rename(new, directory.join(name))
}

/// resolv.conf(5).
fn resolv_conf(names: &Names) -> String {
    let mut text = String::from("# The host's, kept as it is there by undercroft.\n");
    for server in &names.nameservers {
        text += &format!("nameserver {server}\n");
    }
    for (key, words) in [("search", &names.search), ("options", &names.options)] {
        if !words.is_empty() {
            text += &format!("{key} {}\n", words.join(" "));
        }
    }
    text
}

/// hosts(5).
fn hosts(names: &Names) -> String {
    names.hosts.iter().map(|host| format!("{}\t{}\n", host.address, host.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use undercroft_protocol::network::Host;

    #[test]
    fn files_are_what_programs_read() {
        let names = Names {
            nameservers: vec![[10, 0, 0, 3].into(), std::net::Ipv6Addr::LOCALHOST.into()],
            search: vec!["a.example".into(), "b.example".into()],
            options: vec!["edns0".into()],
            hosts: vec![Host { address: [10, 0, 0, 1].into(), name: "host.internal".into() }],
        };
        let text = resolv_conf(&names);
        assert!(
            text.ends_with(
                "nameserver 10.0.0.3\nnameserver ::1\nsearch a.example b.example\noptions edns0\n"
            )
        );
        assert_eq!(hosts(&names), "10.0.0.1\thost.internal\n");
        assert_eq!(resolv_conf(&Names::default()).lines().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["one\n", "two\n"] {
            replace(directory.path(), "hosts", content).unwrap();
            assert_eq!(fs::read_to_string(directory.path().join("hosts")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
