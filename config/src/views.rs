//! The files as types: what the programs that honour them look at.

use std::{path::PathBuf, time::Duration};

use crate::{
    facts::HostFacts,
    host::{Mount, Published, Tap},
    key::SUBSECTION,
    keys::{DISTRIBUTION, HOST, PACKAGE},
    settings::{Settings, View},
};

/// `.wslconfig`, defaults filled in. Each field is documented with its key in docs/configuration.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// `wsl2.kernel`.
    pub kernel: Option<PathBuf>,
    /// `wsl2.kernelModules`.
    pub kernel_modules: Option<PathBuf>,
    /// `wsl2.kernelCommandLine`.
    pub kernel_command_line: Option<String>,
    /// `wsl2.memory`, in bytes.
    pub memory: u64,
    /// `wsl2.processors`.
    pub processors: u32,
    /// `wsl2.swap`, in bytes; 0 is none.
    pub swap: u64,
    /// `wsl2.swapFile`.
    pub swap_file: Option<PathBuf>,
    /// `wsl2.defaultVhdSize`, in bytes.
    pub default_disk_size: u64,
    /// `wsl2.vmIdleTimeout`; `None` is never.
    pub vm_idle_timeout: Option<Duration>,
    /// `wsl2.kernelBootTimeout`.
    pub kernel_boot_timeout: Duration,
    /// `wsl2.distributionStartTimeout`.
    pub distribution_start_timeout: Duration,
    /// `wsl2.networkingMode`.
    pub networking_mode: NetworkingMode,
    /// `wsl2.localhostForwarding`.
    pub localhost_forwarding: bool,
    /// `wsl2.dnsProxy`.
    pub dns_proxy: bool,
    /// `wsl2.dnsTunneling`.
    pub dns_tunneling: bool,
    /// `wsl2.ipv6`.
    pub ipv6: bool,
    /// `wsl2.tap`.
    pub tap: Option<Tap>,
    /// `wsl2.macAddress`, with colons.
    pub mac_address: Option<String>,
    /// `wsl2.debugConsole`.
    pub debug_console: bool,
    /// `wsl2.debugConsoleLogFile`.
    pub debug_console_log_file: Option<PathBuf>,
    /// `general.instanceIdleTimeout`; `None` is never.
    pub instance_idle_timeout: Option<Duration>,
    /// `general.distributionInstallPath`.
    pub distribution_install_path: Option<PathBuf>,
    /// `experimental.autoMemoryReclaim`.
    pub auto_memory_reclaim: AutoMemoryReclaim,
    /// `experimental.ignoredPorts`.
    pub ignored_ports: Vec<u16>,
    /// `experimental.hostAddressLoopback`.
    pub host_address_loopback: bool,
    /// `undercroft.zram`, in bytes; 0 is none.
    pub zram: u64,
    /// `undercroft.publish`.
    pub publish: Vec<Published>,
}

/// `wsl2.networkingMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkingMode {
    /// `nat`.
    Nat,
    /// `tap`.
    Tap,
    /// `none`.
    None,
}

/// `experimental.autoMemoryReclaim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoMemoryReclaim {
    /// `dropCache`.
    DropCache,
    /// `gradual`.
    Gradual,
    /// `disabled`.
    Disabled,
}

/// What `.wslconfig` says of one distribution, under `[distribution "NAME"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistributionSettings {
    /// `keepAlive`; `None` leaves it to the distribution's own [`DistributionConfig::keep_alive`].
    pub keep_alive: Option<bool>,
    /// `autoStart`.
    pub auto_start: bool,
    /// `root` is `flat`.
    pub flat_root: bool,
    /// `user` is `shared`.
    pub shared_users: bool,
    /// `network` is `private`.
    pub private_network: bool,
    /// `memory`, in bytes.
    pub memory: Option<u64>,
    /// `processors`, in thousandths of a CPU.
    pub cpu_milli: Option<u32>,
    /// `processes`.
    pub processes: Option<u32>,
    /// `diskBandwidth`, in bytes a second.
    pub disk_bandwidth: Option<u64>,
    /// `mount`, with the home folder put in.
    pub mounts: Vec<Mount>,
}

/// `/etc/wsl.conf`, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistributionConfig {
    /// `automount.mountFsTab`.
    pub mount_fs_tab: bool,
    /// `boot.systemd`.
    pub systemd: bool,
    /// `boot.command`.
    pub command: Option<String>,
    /// `boot.initTimeout`.
    pub init_timeout: Duration,
    /// `network.hostname`.
    pub hostname: Option<String>,
    /// `network.generateHosts`.
    pub generate_hosts: bool,
    /// `network.generateResolvConf`.
    pub generate_resolv_conf: bool,
    /// `user.default`.
    pub user: Option<String>,
    /// `time.useWindowsTimezone`.
    pub host_time_zone: bool,
    /// `filesystem.umask`.
    pub umask: u32,
    /// `undercroft.keepAlive`.
    pub keep_alive: bool,
}

/// `/etc/wsl-distribution.conf`, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageConfig {
    /// `oobe.command`.
    pub command: Option<String>,
    /// `oobe.defaultUid`.
    pub default_uid: Option<u32>,
    /// `oobe.defaultName`. A claim: whether it can be a distribution's name is to be looked at.
    pub default_name: Option<String>,
}

fn duration(milliseconds: Option<u32>) -> Option<Duration> {
    milliseconds.map(|number| Duration::from_millis(number.into()))
}

impl HostConfig {
    /// What the settings of the [host's file](HOST) come to on this host.
    pub fn new(settings: &Settings, facts: &HostFacts) -> Self {
        debug_assert!(std::ptr::eq(settings.table, &HOST));
        let view = View { settings, facts, of: None };
        let time = |section, key| duration(view.milliseconds(section, key).flatten());
        let processors = view.integer("wsl2", "processors").and_then(|number| u32::try_from(number).ok());
        Self {
            kernel: view.path("wsl2", "kernel"),
            kernel_modules: view.path("wsl2", "kernelModules"),
            kernel_command_line: view.text("wsl2", "kernelCommandLine"),
            memory: view.size("wsl2", "memory").unwrap_or_default(),
            processors: processors.unwrap_or(1),
            swap: view.size("wsl2", "swap").unwrap_or_default(),
            swap_file: view.path("wsl2", "swapFile"),
            default_disk_size: view.size("wsl2", "defaultVhdSize").unwrap_or_default(),
            vm_idle_timeout: time("wsl2", "vmIdleTimeout"),
            kernel_boot_timeout: time("wsl2", "kernelBootTimeout").unwrap_or_default(),
            distribution_start_timeout: time("wsl2", "distributionStartTimeout").unwrap_or_default(),
            networking_mode: match view.text("wsl2", "networkingMode").as_deref() {
                Some("none") => NetworkingMode::None,
                Some("tap") => NetworkingMode::Tap,
                _ => NetworkingMode::Nat,
            },
            localhost_forwarding: view.bool("wsl2", "localhostForwarding").unwrap_or_default(),
            dns_proxy: view.bool("wsl2", "dnsProxy").unwrap_or_default(),
            dns_tunneling: view.bool("wsl2", "dnsTunneling").unwrap_or_default(),
            ipv6: view.bool("wsl2", "ipv6").unwrap_or_default(),
            tap: view.tap("wsl2", "tap"),
            mac_address: view.text("wsl2", "macAddress"),
            debug_console: view.bool("wsl2", "debugConsole").unwrap_or_default(),
            debug_console_log_file: view.path("wsl2", "debugConsoleLogFile"),
            instance_idle_timeout: time("general", "instanceIdleTimeout"),
            distribution_install_path: view.path("general", "distributionInstallPath"),
            auto_memory_reclaim: match view.text("experimental", "autoMemoryReclaim").as_deref() {
                Some("gradual") => AutoMemoryReclaim::Gradual,
                Some("disabled") => AutoMemoryReclaim::Disabled,
                _ => AutoMemoryReclaim::DropCache,
            },
            ignored_ports: view.ports("experimental", "ignoredPorts").unwrap_or_default(),
            host_address_loopback: view.bool("experimental", "hostAddressLoopback").unwrap_or_default(),
            zram: view.size("undercroft", "zram").unwrap_or_default(),
            publish: view.published("undercroft", "publish").unwrap_or_default(),
        }
    }
}

impl DistributionSettings {
    /// What the settings of the [host's file](HOST) say of a distribution; its name is taken in any case.
    pub fn new(settings: &Settings, facts: &HostFacts, name: &str) -> Self {
        debug_assert!(std::ptr::eq(settings.table, &HOST));
        let view = View { settings, facts, of: Some(name) };
        let is = |key, word: &str| view.text(SUBSECTION, key).is_some_and(|text| text == word);
        let mut mounts = view.mounts(SUBSECTION, "mount").unwrap_or_default();
        for mount in &mut mounts {
            mount.host = facts.path(&mount.host).to_string_lossy().into_owned();
        }
        Self {
            keep_alive: view.bool(SUBSECTION, "keepAlive"),
            auto_start: view.bool(SUBSECTION, "autoStart").unwrap_or_default(),
            flat_root: is("root", "flat"),
            shared_users: is("user", "shared"),
            private_network: is("network", "private"),
            memory: view.size(SUBSECTION, "memory"),
            cpu_milli: view.milli(SUBSECTION, "processors"),
            processes: view.integer(SUBSECTION, "processes").and_then(|number| u32::try_from(number).ok()),
            disk_bandwidth: view.size(SUBSECTION, "diskBandwidth"),
            mounts,
        }
    }
}

impl DistributionConfig {
    /// What the settings of a [distribution's file](DISTRIBUTION) come to.
    pub fn new(settings: &Settings) -> Self {
        debug_assert!(std::ptr::eq(settings.table, &DISTRIBUTION));
        let view = View { settings, facts: &HostFacts::default(), of: None };
        Self {
            mount_fs_tab: view.bool("automount", "mountFsTab").unwrap_or_default(),
            systemd: view.bool("boot", "systemd").unwrap_or_default(),
            command: view.text("boot", "command"),
            init_timeout: duration(view.milliseconds("boot", "initTimeout").flatten()).unwrap_or_default(),
            hostname: view.text("network", "hostname"),
            generate_hosts: view.bool("network", "generateHosts").unwrap_or_default(),
            generate_resolv_conf: view.bool("network", "generateResolvConf").unwrap_or_default(),
            user: view.text("user", "default"),
            host_time_zone: view.bool("time", "useWindowsTimezone").unwrap_or_default(),
            umask: view.umask("filesystem", "umask").unwrap_or_default(),
            keep_alive: view.bool("undercroft", "keepAlive").unwrap_or_default(),
        }
    }
}

impl PackageConfig {
    /// What the settings of a [package's file](PACKAGE) come to.
    pub fn new(settings: &Settings) -> Self {
        debug_assert!(std::ptr::eq(settings.table, &PACKAGE));
        let view = View { settings, facts: &HostFacts::default(), of: None };
        Self {
            command: view.text("oobe", "command"),
            default_uid: view.integer("oobe", "defaultUid").and_then(|number| u32::try_from(number).ok()),
            default_name: view.text("oobe", "defaultName"),
        }
    }
}
