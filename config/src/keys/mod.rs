//! The tables: every key of the reference system's three files (`notes/wsl2.md`, "Configuration"), and ours.

mod distribution;
mod host;
mod package;

pub use distribution::DISTRIBUTION;
pub use host::HOST;
pub use package::PACKAGE;

use crate::{
    key::{Acts, Default, Fate, Key},
    value::Kind,
};

/// A key that does what it says.
const fn honoured(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Default,
    acts: Acts,
    what: &'static str,
) -> Key {
    Key { section, name, kind, default, acts, fate: Fate::Honoured, what, more: "" }
}

/// A key of the reference system's that has no meaning here.
const fn meaningless(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Default,
    what: &'static str,
    why: &'static str,
) -> Key {
    Key { section, name, kind, default, acts: Acts::AtOnce, fate: Fate::NoMeaning(why), what, more: "" }
}

/// Adds what else there is to say.
const fn more(key: Key, more: &'static str) -> Key {
    Key { more, ..key }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostFacts, Table};

    #[test]
    fn every_key_is_there_once_and_takes_its_own_default() {
        let facts = HostFacts { memory: 8 << 30, processors: 4, home: None };
        for table in [&HOST, &DISTRIBUTION, &PACKAGE] {
            for (index, key) in table.keys.iter().enumerate() {
                let name = key.full_name();
                let again = table.keys[..index].iter().any(|k| k.full_name().eq_ignore_ascii_case(&name));
                assert!(!again, "{}: {name} is there twice", table.file);
                assert!(
                    key.what.ends_with('.') && (key.more.is_empty() || key.more.ends_with('.')),
                    "{name}"
                );
                if let Some(value) = key.default.value(&facts, 4 << 30) {
                    let text = value.to_string();
                    assert_eq!(key.kind.read(&text), Ok(Some(value)), "{name} = {text}");
                }
            }
        }
    }

    /// `notes/wsl2.md`, "Configuration", word for word.
    #[test]
    fn the_reference_systems_keys_are_all_there() {
        let has = |table: &Table, section: &str, names: &str| {
            for name in names.split_whitespace() {
                assert!(table.find(section, name).is_some(), "{}: {section}.{name}", table.file);
            }
        };
        has(
            &HOST,
            "wsl2",
            "kernel kernelModules kernelCommandLine systemDistro memory processors swap swapFile defaultVhdSize \
             vmIdleTimeout kernelBootTimeout distributionStartTimeout networkingMode localhostForwarding dnsProxy \
             dnsTunneling firewall autoProxy dhcp ipv6 macAddress nestedVirtualization gpuSupport guiApplications \
             loadKernelModules isolateDistroCgroup safeMode debugConsole earlyBootLogging debugConsoleLogFile \
             crashDumpFolder maxCrashDumpCount",
        );
        has(&HOST, "general", "instanceIdleTimeout distributionInstallPath");
        has(&HOST, "experimental", "autoMemoryReclaim sparseVhd ignoredPorts hostAddressLoopback");
        has(&DISTRIBUTION, "automount", "enabled root options mountFsTab ldconfig cgroups");
        has(&DISTRIBUTION, "boot", "systemd command initTimeout protectBinfmt");
        has(&DISTRIBUTION, "network", "generateHosts generateResolvConf hostname");
        has(&DISTRIBUTION, "interop", "enabled appendWindowsPath");
        has(&DISTRIBUTION, "user", "default");
        has(&DISTRIBUTION, "time", "useWindowsTimezone");
        has(&DISTRIBUTION, "filesystem", "umask");
        has(&DISTRIBUTION, "gpu", "enabled");
        has(&DISTRIBUTION, "fileServer", "enabled");
        has(&PACKAGE, "oobe", "command defaultUid defaultName");
        has(&PACKAGE, "shortcut", "icon enabled");
        has(&PACKAGE, "windowsterminal", "enabled profileTemplate");
    }
}
