//! The kernel's requests for modules, served from the modules disk.
//!
//! The kernel executes the path in /proc/sys/kernel/modprobe with `-q -- NAME`, where NAME is a module or an alias
//! (`fs-xfs`, `net-pf-40`). What depmod wrote beside the modules says the rest (modules.dep(5)).

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use undercroft_protocol::command::{DiskAddress, Done, Failure, FailureKind};

use crate::{
    disk,
    jobs::{failure, system},
    log, modules,
};

/// Where the modules disk is mounted.
const PLACE: &str = "/run/modules";
/// The link to this program that the initramfs has for the kernel.
const HELPER: &str = "/sbin/modprobe";

/// Mounts the modules disk, and tells the kernel whom to ask.
pub(crate) fn serve_from(address: &DiskAddress) -> Result<Done, Failure> {
    let device = disk::path(address)?;
    let what = format!("mounting {}, which is to hold the kernel's modules", disk::describe(address));
    fs::create_dir_all(PLACE).map_err(system(&format!("making {PLACE}")))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&device), PLACE, Some("ext4"), flags, Some("noload"))
        .map_err(failure(FailureKind::Disk, &what))?;
    let directory = directory();
    if !directory.join("modules.dep").is_file() {
        return Err(Failure {
            kind: FailureKind::Disk,
            message: format!(
                "{} has no lib/modules/{}/modules.dep: it holds another kernel's modules",
                disk::describe(address),
                modules::release()
            ),
        });
    }
    fs::write("/proc/sys/kernel/modprobe", HELPER).map_err(system("setting the kernel's modprobe helper"))?;
    Ok(Done::Nothing)
}

fn directory() -> PathBuf {
    Path::new(PLACE).join("lib/modules").join(modules::release())
}

/// Loads a module with those that it needs.
pub(crate) fn load(name: &str) -> std::io::Result<()> {
    let directory = directory();
    let wanted = Index::read(&directory).resolve(name);
    if wanted.is_empty() {
        return Err(std::io::Error::other(format!("there is no module {name} in {}", directory.display())));
    }
    wanted.iter().try_for_each(|path| modules::load(&directory.join(path), ""))
}

/// The program `modprobe`: loads what is named, and gives the exit status.
pub(crate) fn main() -> i32 {
    log::open();
    let mut quiet = false;
    let mut status = 0;
    let index = Index::read(&directory());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "-q" | "--quiet" => quiet = true,
            option if option.starts_with('-') => {}
            name => {
                let wanted = index.resolve(name);
                if wanted.is_empty() {
                    // The kernel asks for many aliases that no module has; only a person wants to know.
                    status = 1;
                    if !quiet {
                        log::line(log::Level::Warning, &format!("modprobe: there is no module {name}"));
                    }
                }
                for path in wanted {
                    if let Err(error) = modules::load(&directory().join(&path), "") {
                        log::line(log::Level::Warning, &format!("modprobe {name}: loading {path}: {error}"));
                        status = 1;
                    }
                }
            }
        }
    }
    status
}

/// depmod's files.
#[derive(Debug, Default)]
struct Index {
    dependencies: String,
    aliases: String,
    soft: String,
}

/// A module's name: its file's, without suffixes, and `_` for `-` as the kernel has it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// `_` for `-`, but in brackets, where it means a range.
fn underscores(pattern: &str) -> Vec<u8> {
    let mut inside = false;
    let one = |byte| {
        inside = match byte {
            b'[' => true,
            b']' => false,
            _ => inside,
        };
        if byte == b'-' && !inside { b'_' } else { byte }
    };
    pattern.bytes().map(one).collect()
}

impl Index {
    fn read(directory: &Path) -> Self {
        let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        Self {
            dependencies: read("modules.dep"),
            aliases: read("modules.alias"),
            soft: read("modules.softdep"),
        }
    }

    /// The files to load, in order, for a module or an alias. Empty if there is none.
    fn resolve(&self, wanted: &str) -> Vec<String> {
        let name = wanted.replace('-', "_");
        let mut order = Order::default();
        if self.line(&name).is_some() {
            self.add(&name, &mut order);
        } else {
            for line in self.aliases.lines() {
                let mut words = line.split_whitespace().skip(1);
                if let (Some(pattern), Some(module)) = (words.next(), words.next())
                    && matches(&underscores(pattern), name.as_bytes())
                {
                    self.add(module, &mut order);
                }
            }
        }
        order.paths
    }

    /// A module's line in modules.dep: its path and those that it needs, the deepest last.
    fn line(&self, name: &str) -> Option<(&str, &str)> {
        self.dependencies
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(path, _)| module_name(path) == name)
    }

    fn add(&self, name: &str, order: &mut Order) {
        let name = name.replace('-', "_");
        if !order.seen.insert(name.clone()) {
            return;
        }
        let Some((path, needs)) = self.line(&name) else { return };
        for soft in self.wanted_before(&name) {
            self.add(soft, order);
        }
        for need in needs.split_whitespace().rev() {
            self.add(&module_name(need), order);
        }
        order.paths.push(path.into());
    }

    /// `softdep NAME pre: A B post: C` → A, B.
    fn wanted_before<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let of = |line: &'a str| {
            let rest = line.strip_prefix("softdep ")?;
            let (module, wanted) = rest.split_once(char::is_whitespace)?;
            (module.replace('-', "_") == name).then_some(wanted)
        };
        let wanted = self.soft.lines().filter_map(of);
        wanted
            .flat_map(|w| {
                w.split_whitespace().skip_while(|w| *w != "pre:").skip(1).take_while(|w| *w != "post:")
            })
            .collect()
    }
}

#[derive(Debug, Default)]
struct Order {
    seen: HashSet<String>,
    paths: Vec<String>,
}

/// Shell patterns as they are in modules.alias: `*`, `?` and `[…]` (fnmatch(3), without flags).
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        ([b'?', rest @ ..], [_, text @ ..]) => matches(rest, text),
        ([b'[', rest @ ..], [character, text @ ..]) => {
            let Some(end) = rest.iter().position(|c| *c == b']') else { return false };
            let set = &rest[..end];
            let inside = set.contains(character)
                || set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(character));
            inside && matches(&rest[end + 1..], text)
        }
        ([a, pattern @ ..], [b, text @ ..]) => a == b && matches(pattern, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        Index {
            dependencies: "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\n\
                           kernel/net/vmw-vsock.ko: kernel/a.ko kernel/b.ko\nkernel/a.ko: kernel/b.ko\nkernel/b.ko:\n\
                           kernel/crc32c_generic.ko.xz:\n"
                .into(),
            aliases: "# comment\nalias fs-xfs xfs\nalias net-pf-40 vmw_vsock\nalias virtio:d0000001[3-5]v* a\n".into(),
            soft: "softdep libcrc32c pre: crc32c-generic post: other\n".into(),
        }
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(index().resolve("vmw-vsock"), ["kernel/b.ko", "kernel/a.ko", "kernel/net/vmw-vsock.ko"]);
    }

    #[test]
    fn aliases_are_patterns() {
        let xfs = ["kernel/crc32c_generic.ko.xz", "kernel/lib/libcrc32c.ko", "kernel/fs/xfs/xfs.ko"];
        assert_eq!(index().resolve("fs-xfs"), xfs);
        assert_eq!(index().resolve("virtio:d00000014v00001AF4"), ["kernel/b.ko", "kernel/a.ko"]);
        assert!(index().resolve("virtio:d00000016v00001AF4").is_empty());
        assert!(index().resolve("net-pf-41").is_empty());
    }

    #[test]
    fn modules_that_need_each_other_end() {
        let index = Index { dependencies: "a.ko: b.ko\nb.ko: a.ko\n".into(), ..Index::default() };
        assert_eq!(index.resolve("a"), ["b.ko", "a.ko"]);
    }
}
