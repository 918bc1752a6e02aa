//! Files as people write them, read to their end.

use std::{path::Path, time::Duration};

use proptest::prelude::*;
use undercroft_config::{
    AutoMemoryReclaim, DistributionConfig, DistributionSettings, HostConfig, HostFacts, NetworkingMode,
    PackageConfig, Settings,
    keys::{DISTRIBUTION, HOST, PACKAGE},
};

fn facts() -> HostFacts {
    HostFacts { memory: 16 << 30, processors: 8, home: Some("/home/ada".into()) }
}

fn host(text: &str) -> Settings {
    Settings::parse(&HOST, Path::new("/c"), text.as_bytes())
}

fn warnings(settings: &Settings) -> Vec<String> {
    settings.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn without_files_all_is_as_documented() {
    let config = HostConfig::new(&host(""), &facts());
    assert_eq!((config.memory, config.processors, config.swap), (8 << 30, 8, 2 << 30));
    assert_eq!(config.vm_idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(config.instance_idle_timeout, Some(Duration::from_secs(15)));
    assert_eq!(config.auto_memory_reclaim, AutoMemoryReclaim::DropCache);
    assert_eq!(config.networking_mode, NetworkingMode::Nat);
    let one = DistributionSettings::new(&host(""), &facts(), "x");
    assert!(!one.flat_root && !one.shared_users && one.memory.is_none() && one.keep_alive.is_none());
    let own = DistributionConfig::new(&Settings::parse(&DISTRIBUTION, Path::new("/etc/wsl.conf"), b""));
    assert!(own.mount_fs_tab && own.generate_hosts && own.host_time_zone && !own.systemd && !own.keep_alive);
    assert_eq!((own.umask, own.init_timeout), (0o022, Duration::from_secs(10)));
    let package = PackageConfig::new(&Settings::parse(&PACKAGE, Path::new("/p"), b""));
    assert_eq!(package, PackageConfig { command: None, default_uid: None, default_name: None });
}

#[test]
fn what_is_written_counts() {
    let settings = host(
        "[wsl2]\nMEMORY=4GB\nswap=0\nkernel=~/bzImage\nvmIdleTimeout=-1\nnetworkingMode=none\n\
         [experimental]\nautoMemoryReclaim=gradual\nignoredPorts=22, 80\n\
         [distribution \"Debian 12\"]\nmemory=1GB\nprocessors=1.5\nuser=shared\nmount=~/src:/src:ro\nmount=/tmp\n",
    );
    assert_eq!(warnings(&settings), [""; 0]);
    let config = HostConfig::new(&settings, &facts());
    assert_eq!((config.memory, config.swap, config.vm_idle_timeout), (4 << 30, 0, None));
    assert_eq!(config.kernel.as_deref(), Some(Path::new("/home/ada/bzImage")));
    assert_eq!(
        (config.networking_mode, config.auto_memory_reclaim),
        (NetworkingMode::None, AutoMemoryReclaim::Gradual)
    );
    assert_eq!(config.ignored_ports, [22, 80]);
    let one = DistributionSettings::new(&settings, &facts(), "debian 12");
    assert_eq!((one.memory, one.cpu_milli, one.shared_users), (Some(1 << 30), Some(1500), true));
    let mounts: Vec<_> =
        one.mounts.iter().map(|m| (m.host.as_str(), m.guest.as_str(), m.read_only)).collect();
    assert_eq!(mounts, [("/home/ada/src", "/src", true), ("/tmp", "/tmp", false)]);
    assert_eq!(one.mounts.iter().map(|mount| mount.line).collect::<Vec<_>>(), [14, 15]);
    assert_eq!(DistributionSettings::new(&settings, &facts(), "debian 13").memory, None);
    assert_eq!(settings.distributions(), ["Debian 12"]);
}

#[test]
fn what_is_wrong_has_its_line_and_its_reason() {
    let settings = host(
        "[wsl2]\nmemory=lots\ngpuSupport=true\nnetworkingMode=mirrored\ninstanceIdleTimeout=1\nsystemd=true\nfoo=1\n\
         processors=1\nprocessors=2\n[distribution]\nmemory=1GB\n[wsl2 \"x\"]\nipv6=1\nno key\n",
    );
    let expected = [
        "/c:2: wsl2.memory: expected a size such as 512MB or 8GB, and got `lots`. It is not used",
        "/c:3: wsl2.gpuSupport has no meaning here, and is not used: there is no virtual GPU",
        "/c:4: wsl2.networkingMode: mirrored is not there in undercroft: the network is passt's, a process of this user's that \
         opens sockets in the guest's place. It is not used",
        "/c:5: `wsl2.instanceIdleTimeout` is not known, and is not used: it belongs under [general]",
        "/c:6: `wsl2.systemd` is not known, and is not used: it belongs into /etc/wsl.conf, under [boot]",
        "/c:7: `wsl2.foo` is not known, and is not used",
        "/c:9: wsl2.processors was set in line 8 already; this line is not used",
        "/c:11: `distribution.memory`: whose is it? It belongs under [distribution \"NAME\"]; it is not used",
        "/c:13: `wsl2.ipv6`: expected [wsl2] with no name behind it; it is not used",
        "/c:14: expected `key = value`, and got `no key`",
    ];
    assert_eq!(warnings(&settings), expected);
    assert_eq!(HostConfig::new(&settings, &facts()).processors, 1);
}

#[test]
fn limits_are_not_a_distributions_to_set() {
    let text = b"[distribution \"x\"]\nmemory=64GB\n[wsl2]\nmemory=64GB\n[undercroft]\nmemory=1GB\n";
    let settings = Settings::parse(&DISTRIBUTION, Path::new("/etc/wsl.conf"), text);
    assert_eq!((settings.set.len(), settings.warnings.len()), (0, 3));
}

#[test]
fn every_key_has_a_row_with_its_origin() {
    let settings = host("[wsl2]\nprocessors=2\n[distribution \"x\"]\nmemory=1GB\n");
    let rows = settings.rows(&facts(), &["x", "y"]);
    let shown: Vec<String> = rows
        .iter()
        .filter(|row| ["processors", "memory", "swapFile"].contains(&row.key.name))
        .map(|row| {
            let heading = row.key.heading(row.subsection.as_deref());
            format!("{heading} {} = {}  {}", row.key.name, row.shown(), row.origin)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "[wsl2] memory = 8GB  default",
            "[wsl2] processors = 2  /c:2",
            "[wsl2] swapFile = (a file beside the distributions)  default",
            "[distribution \"x\"] memory = 1GB  /c:4",
            "[distribution \"x\"] processors = (no limit but the machine's)  default",
            "[distribution \"y\"] memory = (no limit but the machine's)  default",
            "[distribution \"y\"] processors = (no limit but the machine's)  default",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_none_and_one_that_cannot_be_read_is_a_warning() {
    assert!(Settings::read(&HOST, Path::new("/nonexistent/.wslconfig")).warnings.is_empty());
    assert_eq!(Settings::read(&HOST, Path::new("/")).warnings[0].line, 0);
    let long = vec![b'\n'; (undercroft_config::LONGEST + 1) as usize];
    assert_eq!(Settings::parse(&HOST, Path::new("/c"), &long).warnings.len(), 1);
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(bytes: Vec<u8>, text in "(\\[(wsl2|boot|distribution \"x\")\\]\n|(memory|mount|systemd)=[0-9a-zG/:~]{0,9}\n){0,20}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let settings = Settings::parse(&HOST, Path::new("/c"), bytes);
            HostConfig::new(&settings, &facts());
            DistributionSettings::new(&settings, &facts(), "x");
            DistributionConfig::new(&Settings::parse(&DISTRIBUTION, Path::new("/c"), bytes));
            PackageConfig::new(&Settings::parse(&PACKAGE, Path::new("/c"), bytes));
        }
    }
}
