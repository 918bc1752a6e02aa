//! The host's resolv.conf: what it says, and when it says something else.

use std::{
    fs::File,
    io::Read,
    net::IpAddr,
    os::fd::AsFd,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// Where it is.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// More than any has.
const LENGTH_MAX: u64 = 64 << 10;
/// glibc looks at no more (MAXNS, resolv.h).
const SERVERS_MAX: usize = 3;
/// And at no more domains than this before 2.26 (MAXDNSRCH).
const DOMAINS_MAX: usize = 32;

/// What a resolv.conf says (resolv.conf(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) nameservers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl Resolver {
    /// Reads a file; one that is not there says nothing.
    pub(crate) fn read(path: &Path) -> Self {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LENGTH_MAX).read_to_end(&mut text));
        if read.is_err() {
            return Self::default();
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if found.nameservers.len() < SERVERS_MAX => {
                    // One with a zone (fe80::1%eth0) means an interface of the host's.
                    found.nameservers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last one counts.
                Some("search" | "domain") => {
                    found.search =
                        words.take(DOMAINS_MAX).filter(|word| is_plain(word)).map(str::to_owned).collect();
                }
                Some("options") => {
                    found.options.extend(words.filter(|word| is_plain(word)).map(str::to_owned))
                }
                _ => {}
            }
        }
        found
    }

    /// What a VM is to ask instead: servers on the host's own loopback it reaches by `forwarder` only.
    pub(crate) fn nameservers_for_guest(&self, forwarder: IpAddr, ipv6: bool) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for &server in &self.nameservers {
            let server = if server.is_loopback() { forwarder } else { server };
            if (server.is_ipv4() || ipv6) && !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }
}

/// Whether it may stand in a file of one line each.
fn is_plain(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Calls `changed` whenever the file may say something else, until `end` is closed at its other side.
///
/// # Errors
/// inotify(7)'s: then nothing is watched.
pub(crate) fn watch(path: &Path, end: &UnixStream, mut changed: impl FnMut()) -> nix::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    loop {
        // Files are replaced rather than written to, so what is watched is where they lie: the name's folder, and that of the
        // file which the name is a link to, which may be another one each time.
        for folder in folders(path) {
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE;
            // A folder that is gone is replaced in the other one.
            let _ = inotify.add_watch(&folder, flags);
        }
        let mut fds =
            [PollFd::new(inotify.as_fd(), PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        if fds[1].any() == Some(true) {
            return Ok(());
        }
        let names: Vec<_> = path.file_name().into_iter().map(std::ffi::OsStr::to_owned).collect();
        let target = path.canonicalize().ok().and_then(|target| target.file_name().map(ToOwned::to_owned));
        let is_ours = |name: &std::ffi::OsString| names.contains(name) || Some(name) == target.as_ref();
        while let Ok(events) = inotify.read_events() {
            if events.iter().any(|event| event.name.as_ref().is_none_or(is_ours)) {
                changed();
            }
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let of = |path: &Path| path.parent().map(Path::to_owned);
    let mut all: Vec<PathBuf> = of(path).into_iter().collect();
    if let Some(folder) =
        path.canonicalize().ok().as_deref().and_then(of).filter(|folder| !all.contains(folder))
    {
        all.push(folder);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_programs_read_is_read() {
        let resolver = Resolver::parse(
            "# nameserver 9.9.9.9\nnameserver 192.0.2.53\nnameserver  ::1 # x\nnameserver fe80::1%eth0\n\
             domain old.example\nsearch a.example b.example\noptions edns0 trust-ad\nsortlist 1\nnameserver 10.0.0.1\n\
             nameserver 10.0.0.2\n",
        );
        let servers: Vec<String> = resolver.nameservers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.53", "::1", "10.0.0.1"]);
        assert_eq!(resolver.search, ["a.example", "b.example"]);
        assert_eq!(resolver.options, ["edns0", "trust-ad"]);
        let forwarder = IpAddr::from([10, 87, 84, 3]);
        let guests: Vec<String> =
            resolver.nameservers_for_guest(forwarder, false).iter().map(ToString::to_string).collect();
        assert_eq!(guests, ["192.0.2.53", "10.87.84.3", "10.0.0.1"]);
        assert_eq!(Resolver::read("/nonexistent".as_ref()), Resolver::default());
    }

    #[test]
    fn a_file_behind_a_link_is_watched_when_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, run) = (folder.path().join("etc"), folder.path().join("run"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::create_dir(&run).unwrap();
        let (path, target) = (etc.join("resolv.conf"), run.join("stub-resolv.conf"));
        std::os::unix::fs::symlink(&target, &path).unwrap();
        std::fs::write(&target, "nameserver 192.0.2.1\n").unwrap();
        let (end, watched_end) = UnixStream::pair().unwrap();
        let (tell, told) = channel();
        let thread = {
            let path = path.clone();
            std::thread::spawn(move || {
                watch(&path, &watched_end, || {
                    let _ = tell.send(Resolver::read(&path));
                })
            })
        };
        let until = |server: &str, change: &dyn Fn()| {
            let server: IpAddr = server.parse().unwrap();
            // The first changes may come before the watch does.
            loop {
                change();
                let found = told.recv_timeout(std::time::Duration::from_millis(50));
                if found.is_ok_and(|found| found.nameservers == [server]) {
                    break;
                }
            }
        };
        until("192.0.2.2", &|| {
            std::fs::write(run.join("new"), "nameserver 192.0.2.2\n").unwrap();
            std::fs::rename(run.join("new"), &target).unwrap();
        });
        until("192.0.2.3", &|| {
            std::fs::write(etc.join("new"), "nameserver 192.0.2.3\n").unwrap();
            std::fs::rename(etc.join("new"), &path).unwrap();
        });
        drop(end);
        thread.join().unwrap().unwrap();
    }
}
