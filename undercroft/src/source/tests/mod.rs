//! Sources against a server on loopback and files in a temporary folder: nothing leaves this machine.

mod errors;
mod fetch;
mod files;
mod hostile;
mod images;
mod registry;
mod server;

use std::{path::Path, time::Duration};

use tempfile::TempDir;

use super::*;

/// A folder, a cache in it, and what was told.
struct Fixture {
    folder: TempDir,
    cache: Cache,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        Self { folder, cache }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// No retries, so that each try can be looked at; short times, none of which is asserted.
    fn order(&self) -> Order<'_> {
        let network = Network {
            retries: 0,
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(5),
            ..Network::default()
        };
        let lists = Lists::new(Some(self.path().join("list.json").display().to_string()), Vec::new());
        Order {
            network,
            lists,
            passwords: Vec::new(),
            architecture: Architecture::Amd64,
            ..Order::new(&self.cache)
        }
    }

    fn obtain(&self, text: &str) -> crate::Result<Obtained> {
        self.obtain_with(text, &self.order())
    }

    fn obtain_with(&self, text: &str, order: &Order<'_>) -> crate::Result<Obtained> {
        Source::parse(text, self.path())?.obtain(order, &Cancel::new(), &mut |_| ())
    }

    /// Writes a list with one distribution.
    fn list(&self, url: &str, sha256: &str) {
        let list = serde_json::json!({
            "ModernDistributions": {"Test": [{
                "Name": "Test-1", "FriendlyName": "Test one", "Default": true,
                "Amd64Url": {"Url": url, "Sha256": sha256},
            }]},
            "Default": "Test",
        });
        fs::write(self.path().join("list.json"), list.to_string()).unwrap();
    }

    /// Names of files in a folder of the cache.
    fn cached(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.cache.directory().join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// An error's text without this test's folder and ports.
    fn message<T>(&self, result: crate::Result<T>) -> String {
        let Err(error) = result else { panic!("expected an error") };
        let text = error.to_string().replace(&self.path().display().to_string(), "FOLDER");
        let mut out = String::new();
        for (n, piece) in text.split("127.0.0.1:").enumerate() {
            let piece = if n > 0 { piece.trim_start_matches(|c: char| c.is_ascii_digit()) } else { piece };
            out += if n > 0 { "HOST" } else { "" };
            out += piece;
        }
        out
    }
}

/// The content of the file that was obtained.
fn content(obtained: &Obtained) -> Vec<u8> {
    match &obtained.content {
        Content::File(file) => {
            let bytes = fs::read(file.path()).unwrap();
            assert_eq!(images::sha256(&bytes), file.digest());
            bytes
        }
        Content::Held(_) => panic!("expected a file"),
    }
}

#[test]
fn texts_are_sources() {
    let folder = Path::new("/home/me");
    let parse = |text: &str| Source::parse(text, folder).map(|source| source.to_string());
    for (text, shown) in [
        ("Debian", "Debian"),
        ("Ubuntu-24.04", "Ubuntu-24.04"),
        ("debian.tar.xz", "/home/me/debian.tar.xz"),
        ("x.WSL", "/home/me/x.WSL"),
        ("./debian", "/home/me/./debian"),
        ("/tmp/x", "/tmp/x"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("file:/tmp/x", "/tmp/x"),
        ("file://localhost/tmp/x", "/tmp/x"),
        ("https://me:secret@host/x.tar", "https://host/x.tar"),
        ("docker://debian:12", "docker://debian:12"),
        ("oci:images:12", "oci:/home/me/images:12"),
        ("oci:/images", "oci:/images"),
        ("docker-archive:x.tar:debian:12", "docker-archive:/home/me/x.tar:debian:12"),
    ] {
        assert_eq!(parse(text).unwrap(), shown, "{text}");
    }
    for bad in ["", "file://host/x", "file:x", "file:///%zz", "file:///%00", "ftp://x/y", "docker://Debian"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn files_suggest_names() {
    for (file, name) in [
        ("debian-12.tar.xz", Some("debian-12")),
        ("Ubuntu.WSL", Some("Ubuntu")),
        ("my rootfs.tar", Some("my-rootfs")),
        (".tar", None),
        ("…", None),
    ] {
        assert_eq!(suggestion(file).as_deref(), name, "{file}");
    }
}
