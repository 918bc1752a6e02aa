//! The files by which a distribution knows its own name, and finds others'.

use std::{fs, io, path::Path};

use undercroft_config::DistributionConfig;

use crate::log::Warnings;

/// The host's own name servers, kept by the VM's mini-init for all distributions.
const RESOLV_CONF: &str = "/mnt/undercroft/network/resolv.conf";
/// Names with their addresses, likewise: lines of hosts(5).
const HOSTS: &str = "/mnt/undercroft/network/hosts";

/// Sets the host name, and writes /etc/hostname and /etc/hosts as the configuration says.
pub(crate) fn prepare(hostname: &str, configuration: &DistributionConfig, warnings: &mut Warnings) {
    warnings.take(&format!("setting the host name {hostname:?}"), nix::unistd::sethostname(hostname));
    if Path::new("/etc").is_dir() {
        warnings.take("writing /etc/hostname", replace("/etc/hostname", &format!("{hostname}\n")));
        if configuration.generate_hosts {
            // Without a network there is none.
            let others = fs::read_to_string(HOSTS).unwrap_or_default();
            warnings.take("writing /etc/hosts", replace("/etc/hosts", &hosts(hostname, &others)));
        }
    }
    if configuration.generate_resolv_conf {
        let outcome = if Path::new(RESOLV_CONF).exists() {
            link("/etc/resolv.conf", RESOLV_CONF)
        } else {
            mend_resolv_conf("/etc/resolv.conf", "/run")
        };
        warnings.take("making /etc/resolv.conf", outcome);
    }
}

fn hosts(hostname: &str, others: &str) -> String {
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
    format!(
        "# Written when this distribution starts. To keep changes of your own, write into /etc/wsl.conf:\n\
         # [network]\n# generateHosts = false\n127.0.0.1\tlocalhost\n127.0.1.1\t{names}\n\n\
         ::1\tip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{others}"
    )
}

/// Puts a new file in a file's place, if it says something else. A link is replaced, and not written through.
fn replace(path: &str, content: &str) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_file())
        && fs::read_to_string(path).is_ok_and(|c| c == content)
    {
        return Ok(());
    }
    let new = format!("{path}.undercroft");
    let _ = fs::remove_file(&new);
    let mut file = fs::File::options().write(true).create_new(true).open(&new)?;
    io::Write::write_all(&mut file, content.as_bytes())?;
    fs::rename(&new, path)
}

/// Makes a name a link to `target`, whatever it was before.
fn link(path: &str, target: &str) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|now| now == Path::new(target)) {
        return Ok(());
    }
    let new = format!("{path}.undercroft");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(new, path)
}

/// A link to a file that a network manager would make on /run gets an empty file there: programs then find no name
/// server, which they can say, rather than no file, which some of them wait for.
fn mend_resolv_conf(path: &str, run: &str) -> io::Result<()> {
    let Ok(target) = fs::read_link(path) else { return Ok(()) };
    if Path::new(path).exists() {
        return Ok(());
    }
    let target = Path::new(path).parent().unwrap_or(Path::new("/")).join(target);
    // `../run/…` from /etc is how most distributions write it.
    let text = target.to_string_lossy().replace("/etc/../", "/");
    if !text.starts_with(&format!("{run}/")) || text.contains("/../") {
        return Ok(());
    }
    let target = Path::new(&text);
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::File::options().write(true).create_new(true).open(target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_names_both_forms_of_a_long_name() {
        assert!(hosts("box", "").contains("127.0.1.1\tbox\n"));
        assert!(hosts("box.example", "").contains("127.0.1.1\tbox.example box\n"));
        assert!(hosts("box", "10.0.0.1\thost.internal\n").ends_with("\n10.0.0.1\thost.internal\n"));
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path().join("hosts"), directory.path().join("target"));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        replace(path.to_str().unwrap(), "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    }

    #[test]
    fn a_file_becomes_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "mine").unwrap();
        for target in ["/shared/one", "/shared/one", "/shared/two"] {
            link(path.to_str().unwrap(), target).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        }
    }

    #[test]
    fn a_dangling_link_below_run_gets_an_empty_file() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let path = directory.path().join("resolv.conf");
        std::os::unix::fs::symlink(run.join("systemd/resolve/stub-resolv.conf"), &path).unwrap();
        mend_resolv_conf(path.to_str().unwrap(), run.to_str().unwrap()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let elsewhere = directory.path().join("other.conf");
        std::os::unix::fs::symlink("/nowhere/at/all", &elsewhere).unwrap();
        mend_resolv_conf(elsewhere.to_str().unwrap(), run.to_str().unwrap()).unwrap();
        assert!(!elsewhere.exists());
    }
}
