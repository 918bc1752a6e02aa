//! The binary's arguments: the fields of [`MachineConfig`] by name, with dots for what lies within.
//!
//! There is no second definition of the options. Arguments become a JSON value, and that becomes a configuration; the table
//! here says only of which kind a field's value is and what to print for `--help`, and a test holds it against the type.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::MachineConfig;

/// How the text of an argument becomes a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Flag,
}

struct Field {
    /// The path of names; `N` stands for a number from 0.
    path: &'static str,
    kind: Kind,
    /// What the value is, and what it means.
    help: &'static str,
}

const fn field(path: &'static str, kind: Kind, help: &'static str) -> Field {
    Field { path, kind, help }
}

const FIELDS: &[Field] = &[
    field("kernel", Kind::Text, "PATH  an ELF vmlinux or a bzImage, told apart by content"),
    field("initramfs", Kind::Text, "PATH  an initramfs, loaded as it is"),
    field("command_line", Kind::Text, "TEXT  the kernel's command line"),
    field("cpus", Kind::Number, "N  virtual CPUs, 1 to 64"),
    field("memory_mib", Kind::Number, "N  guest memory at boot in MiB, at least 32"),
    field("max_memory_mib", Kind::Number, "N  what it can grow to while the machine runs, in MiB"),
    field("timer_hz", Kind::Number, "N  the kernel's CONFIG_HZ: spares CPUs that start later a calibration"),
    field("huge_pages", Kind::Text, "host | always | never  whether huge pages back guest memory"),
    field(
        "description",
        Kind::Text,
        "acpi | device-tree | command-line  how the guest learns of its devices",
    ),
    field("entry", Kind::Text, "long-mode | pvh  how the kernel is entered"),
    field("disks.N.path", Kind::Text, "PATH  a raw file or block device, present from the boot on"),
    field("disks.N.read_only", Kind::Flag, "true | false  whether writes are refused"),
    field("disks.N.serial", Kind::Text, "TEXT  the disk's serial number, at most 20 characters"),
    field("page_cache", Kind::Flag, "true | false  the host's page cache holds a second copy of disks"),
    field("scsi", Kind::Flag, "true | false  a SCSI controller for disks that come and go"),
    field("vsock.cid", Kind::Number, "N  the guest's context id, at least 3"),
    field("vsock.socket", Kind::Text, "PATH  the unix socket, and the beginning of its ports' paths"),
    field(
        "vsock.carrier_fd",
        Kind::Number,
        "N  an inherited socket over which connected sockets are handed over",
    ),
    field("network.mac", Kind::Text, "ADDRESS  the network card's, as 02:75:6e:64:63:74"),
    field("network.mtu", Kind::Number, "N  bytes of the longest packet, at least 68"),
    field("network.backend", Kind::Text, "stream | tap  the cable comes over the control socket"),
    field("network.backend.stream_fd", Kind::Number, "N  an inherited stream socket, as passt has it"),
    field("network.backend.stream_path", Kind::Text, "PATH  the unix socket of a passt"),
    field("network.backend.tap_fd", Kind::Number, "N  an inherited TAP device"),
    field("folders.N.tag", Kind::Text, "TEXT  what the guest mounts a folder by, at most 36 bytes"),
    field("folders.N.fd", Kind::Number, "N  an inherited stream socket to the virtiofsd that serves it"),
    field("rng", Kind::Flag, "true | false  an entropy device"),
    field("balloon.free_page_reporting", Kind::Flag, "true | false  free pages go back to the host"),
    field("balloon.deflate_on_oom", Kind::Flag, "true | false  the guest may take pages back in need"),
    field("serial", Kind::Text, "null | stdout | terminal  where ttyS0 goes"),
    field("serial.file", Kind::Text, "PATH  ttyS0 is appended to a file"),
    field("console", Kind::Text, "null | stdout | terminal  where hvc0 goes; none if absent"),
    field("console.file", Kind::Text, "PATH  hvc0 is appended to a file"),
    field("seccomp", Kind::Text, "enforce | log | off  what a system call outside a thread's filter does"),
    field("control_fd", Kind::Number, "N  an inherited stream socket to control the machine by"),
];

/// What the arguments ask for.
#[derive(Debug)]
pub enum Request {
    /// To print this text.
    Help(String),
    /// To run this machine.
    Run(Box<MachineConfig>),
}

/// What is wrong with the arguments.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument that is no option.
    #[error("{0:?} is not an option; options begin with --, and --help lists them")]
    NotAnOption(String),
    /// No field of that name.
    #[error("there is no option --{0}; --help lists them")]
    Unknown(String),
    /// An option without its value.
    #[error("--{name} needs a value: {help}")]
    NoValue {
        /// The option.
        name: String,
        /// What its value is.
        help: &'static str,
    },
    /// A value of the wrong kind.
    #[error("--{name} {value}: expected {help}")]
    Value {
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What was expected.
        help: &'static str,
    },
    /// `disks.7` without `disks.6`.
    #[error("--{0}: lists are numbered from 0 without gaps")]
    Gap(String),
    /// Two options contradict each other.
    #[error("--{0} contradicts an earlier option")]
    Conflict(String),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration {name}: {source}")]
    Read {
        /// Its path or descriptor.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration is not one.
    #[error("the configuration is not valid: {0}")]
    Config(#[from] serde_json::Error),
}

/// Reads the arguments, without the program's name.
///
/// # Errors
/// They are not the fields of a configuration.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Error> {
    let mut arguments = arguments.into_iter().map(|a| a.to_string_lossy().into_owned()).peekable();
    let mut value = Value::Object(Map::new());
    while let Some(argument) = arguments.next() {
        if argument == "--help" || argument == "-h" {
            return Ok(Request::Help(help()));
        }
        let Some(option) = argument.strip_prefix("--") else { return Err(Error::NotAnOption(argument)) };
        let (name, mut text) = match option.split_once('=') {
            Some((name, text)) => (name.replace('-', "_"), Some(text.to_owned())),
            None => (option.replace('-', "_"), None),
        };
        let known = find(&name);
        if text.is_none() {
            let flag = known.is_some_and(|field| field.kind == Kind::Flag);
            // A flag may stand alone; every other option takes what follows, whatever it looks like.
            text = if flag { arguments.next_if(|next| !next.starts_with("--")) } else { arguments.next() };
            if flag && text.is_none() {
                text = Some("true".into());
            }
        }
        match (name.as_str(), text) {
            ("config", Some(path)) => value = read(&path, File::open(&path))?,
            ("config_fd", Some(fd)) => value = read(&fd, open_inherited(&fd))?,
            ("config" | "config_fd", None) => {
                return Err(Error::NoValue { name, help: "the configuration as JSON" });
            }
            (_, text) => {
                let field = known.ok_or_else(|| Error::Unknown(name.clone()))?;
                let text = text.ok_or_else(|| Error::NoValue { name: name.clone(), help: field.help })?;
                set(&mut value, &name, typed(field, &name, text)?)?;
            }
        }
    }
    Ok(Request::Run(Box::new(serde_json::from_value(value)?)))
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "undercroft-vmm: runs one virtual machine on KVM\n\n\
         usage: undercroft-vmm --kernel PATH [--OPTION VALUE]...\n\
         \x20      undercroft-vmm --config FILE.json | --config-fd N   [--OPTION VALUE]...\n\n",
    );
    for field in FIELDS {
        text += &format!("  --{:<29}{}\n", field.path.replace('_', "-"), field.help);
    }
    text += "\nexit status: 0 power-off, 1 error, 2 usage, 3 reset, 4 guest panic, 5 triple fault, 6 KVM internal error\n";
    text
}

fn find(name: &str) -> Option<&'static Field> {
    let pattern: Vec<&str> =
        name.split('.').map(|part| if part.parse::<usize>().is_ok() { "N" } else { part }).collect();
    let pattern = pattern.join(".");
    FIELDS.iter().find(|field| field.path == pattern)
}

fn typed(field: &Field, name: &str, text: String) -> Result<Value, Error> {
    match field.kind {
        Kind::Text => Ok(Value::String(text)),
        Kind::Number => text.parse::<i64>().map(Value::from).map_err(|_| text),
        Kind::Flag => text.parse::<bool>().map(Value::from).map_err(|_| text),
    }
    .map_err(|value| Error::Value { name: name.into(), value, help: field.help })
}

/// Sets the value at a path of names, making objects and lists on the way.
fn set(root: &mut Value, name: &str, value: Value) -> Result<(), Error> {
    let mut at = root;
    for part in name.split('.') {
        at = if let Ok(index) = part.parse::<usize>() {
            if at.is_null() {
                *at = Value::Array(Vec::new());
            }
            let list = at.as_array_mut().ok_or_else(|| Error::Conflict(name.into()))?;
            if index > list.len() {
                return Err(Error::Gap(name.into()));
            }
            if index == list.len() {
                list.push(Value::Null);
            }
            &mut list[index]
        } else {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            let object = at.as_object_mut().ok_or_else(|| Error::Conflict(name.into()))?;
            object.entry(part).or_insert(Value::Null)
        };
    }
    *at = value;
    Ok(())
}

fn read(name: &str, file: std::io::Result<File>) -> Result<Value, Error> {
    /// Far more than any configuration, and far less than memory.
    const MAX: u64 = 1 << 20;
    let failed = |source| Error::Read { name: name.into(), source };
    let mut text = String::new();
    file.and_then(|file| file.take(MAX).read_to_string(&mut text)).map_err(failed)?;
    Ok(serde_json::from_str(&text)?)
}

/// An inherited descriptor, through /proc, which makes a descriptor of our own for the same file.
fn open_inherited(fd: &str) -> std::io::Result<File> {
    let fd: u32 = fd.parse().map_err(|_| std::io::Error::other("not the number of a file descriptor"))?;
    File::open(PathBuf::from(format!("/proc/self/fd/{fd}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        BalloonConfig, DiskConfig, FolderConfig, NetBackend, NetConfig, Output, VsockConfig,
    };

    fn config(line: &str) -> Result<MachineConfig, Error> {
        match parse(line.split_whitespace().map(OsString::from))? {
            Request::Run(config) => Ok(*config),
            Request::Help(_) => panic!("asked for no help"),
        }
    }

    #[test]
    fn arguments_are_the_fields() {
        let c = config(
            "--kernel /boot/vmlinuz --cpus 2 --memory-mib=1024 --disks.0.path a --disks.0.read-only --disks.1.path b \
             --vsock.cid 3 --vsock.socket /s --scsi --rng false --description device-tree --serial.file /log",
        )
        .unwrap();
        assert_eq!((c.cpus, c.memory_mib, c.scsi, c.rng), (2, 1024, true, false));
        assert_eq!(c.disks.len(), 2);
        assert!(c.disks[0].read_only && !c.disks[1].read_only);
        assert_eq!(c.vsock.unwrap().cid, 3);
        assert_eq!(c.serial, Output::File("/log".into()));
    }

    #[test]
    fn errors_name_the_option() {
        let text = |line| config(line).unwrap_err().to_string();
        assert_eq!(text("--kernl x"), "there is no option --kernl; --help lists them");
        assert_eq!(text("--cpus two"), "--cpus two: expected N  virtual CPUs, 1 to 64");
        assert!(text("--cpus").starts_with("--cpus needs a value"));
        assert!(text("--disks.1.path x").contains("numbered from 0"));
        assert!(text("vmlinux").contains("is not an option"));
        assert!(text("--description pci").contains("unknown variant `pci`"));
        assert!(text("--config /nonexistent.json").contains("/nonexistent.json"));
    }

    #[test]
    fn a_configuration_comes_by_file_and_by_descriptor() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, br#"{"kernel":"/k","cpus":4}"#).unwrap();
        let c = config(&format!("--config {} --cpus 8", file.path().display())).unwrap();
        assert_eq!((c.kernel, c.cpus), ("/k".into(), 8));
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert_eq!(config(&format!("--config-fd {fd}")).unwrap().cpus, 4);
    }

    /// Every field of a configuration in which nothing is absent is in the table, and the table has no other.
    #[test]
    fn the_table_is_the_type() {
        fn walk(prefix: &str, value: &Value, out: &mut Vec<String>) {
            let join = |name: &str| if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") };
            match value {
                Value::Object(map) => map.iter().for_each(|(name, value)| walk(&join(name), value, out)),
                Value::Array(list) => list.iter().take(1).for_each(|value| walk(&join("N"), value, out)),
                _ => out.push(prefix.into()),
            }
        }
        let full = |output: Output, backend: NetBackend| MachineConfig {
            disks: vec![DiskConfig::default()],
            folders: vec![FolderConfig::default()],
            max_memory_mib: Some(1024),
            timer_hz: Some(100),
            vsock: Some(VsockConfig { cid: 3, socket: "/s".into(), carrier_fd: Some(3) }),
            balloon: Some(BalloonConfig::default()),
            network: Some(NetConfig { backend, ..NetConfig::default() }),
            serial: output.clone(),
            console: Some(output),
            ..Default::default()
        };
        let mut names = Vec::new();
        for (output, backend) in [
            (Output::Null, NetBackend::Stream),
            (Output::File("/f".into()), NetBackend::StreamFd(3)),
            (Output::Null, NetBackend::StreamPath("/s".into())),
            (Output::Null, NetBackend::TapFd(3)),
        ] {
            walk("", &serde_json::to_value(full(output, backend)).unwrap(), &mut names);
        }
        names.sort();
        names.dedup();
        let mut table: Vec<String> = FIELDS.iter().map(|field| field.path.into()).collect();
        table.sort();
        assert_eq!(names, table);
    }
}
