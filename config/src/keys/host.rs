//! `.wslconfig`: what the host says of the virtual machine and of each distribution.

use super::{DISTRIBUTION, PACKAGE, honoured, meaningless, more};
use crate::{
    key::{Acts::*, Default, Key, SUBSECTION, Table},
    value::Kind,
};

/// The host's file.
pub static HOST: Table = Table {
    file: ".wslconfig",
    about: "On the host: `$XDG_CONFIG_HOME/undercroft/.wslconfig` (usually `~/.config/undercroft/.wslconfig`), or, where \
            there is none, `~/.wslconfig`. Read by the service. What a distribution must not decide for itself stands here.",
    keys: &KEYS,
    neighbours: &[&DISTRIBUTION, &PACKAGE],
};

const COUNT: Kind = Kind::Integer { least: 1, most: u32::MAX as i64 };
const IDLE: Kind = Kind::Milliseconds { or_never: true };
const TIMEOUT: Kind = Kind::Milliseconds { or_never: false };
const WHAT_ELSE_IT_IS: &str =
    "the network is passt's, a process of this user's that opens sockets in the guest's place";
const NETWORKING: Kind = Kind::Choice {
    of: &["nat", "tap", "none"],
    not_here: &[
        ("mirrored", WHAT_ELSE_IT_IS),
        ("bridged", "a bridge needs root on the host; with a TAP device on one it is `tap`"),
        ("virtioproxy", WHAT_ELSE_IT_IS),
    ],
};
const RECLAIM: Kind = Kind::Choice { of: &["dropCache", "gradual", "disabled"], not_here: &[] };
const ROOT: Kind = Kind::Choice { of: &["layered", "flat"], not_here: &[] };
const USER: Kind = Kind::Choice { of: &["own", "shared"], not_here: &[] };
const NETWORK: Kind = Kind::Choice { of: &["shared", "private"], not_here: &[] };
const GIB: u64 = 1 << 30;
const NO_DUMPS: &str = "crash dumps are files of the host's there; here a program's core goes where the distribution's own \
                        kernel.core_pattern settings and systemd-coredump put it";

static KEYS: [Key; 51] = [
    honoured(
        "wsl2",
        "kernel",
        Kind::Path,
        Default::Unset("undercroft's own kernel"),
        MachineStart,
        "A Linux kernel to boot in place of undercroft's own: a bzImage, or an ELF vmlinux.",
    ),
    more(
        honoured(
            "wsl2",
            "kernelModules",
            Kind::Path,
            Default::Unset("undercroft's own kernel's"),
            MachineStart,
            "A disk image with that kernel's modules.",
        ),
        "It is ext4, holds `lib/modules/RELEASE`, and is only read. The kernel's requests for modules are served from it.",
    ),
    honoured(
        "wsl2",
        "kernelCommandLine",
        Kind::Text,
        Default::Unset("nothing is added"),
        MachineStart,
        "Words to add to the kernel's command line, behind those that the machine needs.",
    ),
    meaningless(
        "wsl2",
        "systemDistro",
        Kind::Path,
        Default::Unset("none"),
        "A disk image of the distribution that serves graphical programs.",
        "there is no system distribution: graphical programs are not served",
    ),
    more(
        honoured(
            "wsl2",
            "memory",
            Kind::Size,
            Default::HalfOfMemory,
            MachineStart,
            "The most memory that the virtual machine, with every distribution in it, takes of the host's.",
        ),
        "It boots with less and grows. What is free in it goes back to the host.",
    ),
    honoured(
        "wsl2",
        "processors",
        COUNT,
        Default::AllProcessors,
        MachineStart,
        "CPUs of the virtual machine.",
    ),
    more(
        honoured(
            "wsl2",
            "swap",
            Kind::Size,
            Default::QuarterOfMachine,
            MachineStart,
            "How much swap the virtual machine has; 0 is none.",
        ),
        "It is a sparse file of the host's: what is not swapped out takes no room.",
    ),
    honoured(
        "wsl2",
        "swapFile",
        Kind::Path,
        Default::Unset("a file beside the distributions"),
        MachineStart,
        "Where the swap file is.",
    ),
    more(
        honoured(
            "wsl2",
            "defaultVhdSize",
            Kind::Size,
            Default::Size(64 * GIB),
            NextInstall,
            "How large a new distribution's disk can become.",
        ),
        "It is a limit and takes no room. WSL's default is 1 TB; here every start looks at each 128 MB of it, so it is less. \
         `undercroft resize NAME SIZE` changes it later.",
    ),
    honoured(
        "wsl2",
        "vmIdleTimeout",
        IDLE,
        Default::Milliseconds(60_000),
        AtOnce,
        "How long the virtual machine goes on after its last distribution has stopped.",
    ),
    honoured(
        "wsl2",
        "kernelBootTimeout",
        TIMEOUT,
        Default::Milliseconds(30_000),
        MachineStart,
        "How long the kernel may take to boot until that is an error.",
    ),
    more(
        honoured(
            "wsl2",
            "distributionStartTimeout",
            TIMEOUT,
            Default::Milliseconds(60_000),
            AtOnce,
            "How long a distribution may take to start until that is an error.",
        ),
        "It has to be longer than its `boot.initTimeout`.",
    ),
    more(
        honoured(
            "wsl2",
            "networkingMode",
            NETWORKING,
            Default::Text("nat"),
            MachineStart,
            "How distributions reach the network, or that they do not.",
        ),
        "`nat`: connections go out as the host's own, by passt, without root. `tap`: by a TAP device that somebody with root has \
         made, see `tap`; what lies behind it is theirs. `none`: there is a loopback device and no other.",
    ),
    honoured(
        "wsl2",
        "localhostForwarding",
        Kind::Bool,
        Default::Bool(true),
        MachineStart,
        "Whether what listens in a distribution is found at the host's localhost.",
    ),
    more(
        honoured(
            "wsl2",
            "dnsProxy",
            Kind::Bool,
            Default::Bool(true),
            MachineStart,
            "Whether a name server on the host's own loopback is asked by an address of the virtual network's.",
        ),
        "It matters where `dnsTunneling` is off. Without either, distributions are told the host's name servers as they are.",
    ),
    more(
        honoured(
            "wsl2",
            "dnsTunneling",
            Kind::Bool,
            Default::Bool(true),
            MachineStart,
            "Whether names are looked up by the host itself.",
        ),
        "Distributions ask an address of the virtual machine's, from where each question goes to the name servers that the \
         host's /etc/resolv.conf has at that moment: what its VPN knows is known in the distributions too. Without, they \
         ask those servers over the network.",
    ),
    meaningless(
        "wsl2",
        "firewall",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host's firewall rules hold for the virtual machine.",
        "connections are passt's, a process of the host's, so that they hold in any case",
    ),
    meaningless(
        "wsl2",
        "autoProxy",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host's HTTP proxy settings are handed on.",
        "a Linux host has them in the environment: name http_proxy, https_proxy and no_proxy in WSLENV",
    ),
    meaningless(
        "wsl2",
        "dhcp",
        Kind::Bool,
        Default::Bool(true),
        "Whether a bridged network gives the virtual machine its address.",
        "there is no bridged network; the virtual machine's address is told to it when it boots",
    ),
    honoured(
        "wsl2",
        "ipv6",
        Kind::Bool,
        Default::Bool(false),
        MachineStart,
        "Whether distributions have IPv6 beyond the loopback device.",
    ),
    honoured(
        "wsl2",
        "macAddress",
        Kind::MacAddress,
        Default::Unset("one that is made up"),
        MachineStart,
        "The virtual network device's address.",
    ),
    more(
        honoured(
            "wsl2",
            "tap",
            Kind::Tap,
            Default::Unset("none"),
            MachineStart,
            "The TAP device of `networkingMode=tap`, and the virtual machine's addresses in its network.",
        ),
        "`ip tuntap add dev tap0 mode tap vnet_hdr user NAME` as root makes one that NAME can use; its `mtu` is the guest's, \
         too. Distributions have the host's name servers (`dnsTunneling`). Ours; WSL has no such key.",
    ),
    meaningless(
        "wsl2",
        "nestedVirtualization",
        Kind::Bool,
        Default::Bool(true),
        "Whether virtual machines can run in the virtual machine.",
        "the guest has what the host's KVM offers: its modules' parameter `nested` decides",
    ),
    meaningless(
        "wsl2",
        "gpuSupport",
        Kind::Bool,
        Default::Bool(true),
        "Whether programs can compute on the host's GPU.",
        "there is no virtual GPU",
    ),
    meaningless(
        "wsl2",
        "guiApplications",
        Kind::Bool,
        Default::Bool(true),
        "Whether graphical programs show windows on the host.",
        "graphical programs are not served",
    ),
    meaningless(
        "wsl2",
        "loadKernelModules",
        Kind::Text,
        Default::Unset("none"),
        "Kernel modules to load when the virtual machine boots.",
        "modules are loaded when the kernel asks for them, and a distribution with `user = shared` can use modprobe",
    ),
    meaningless(
        "wsl2",
        "isolateDistroCgroup",
        Kind::Bool,
        Default::Bool(true),
        "Whether a distribution sees its own control groups only.",
        "it always does: it has a cgroup namespace",
    ),
    meaningless(
        "wsl2",
        "safeMode",
        Kind::Bool,
        Default::Bool(false),
        "Whether distributions start with the least that they need.",
        "a distribution starts by itself: one that cannot does not keep others from it",
    ),
    more(
        honoured(
            "wsl2",
            "debugConsole",
            Kind::Bool,
            Default::Bool(false),
            MachineStart,
            "Whether the virtual machine's console is shown while it boots.",
        ),
        "By the `undercroft run` that it boots for, on standard error; the kernel tells all that it does then. What it tells is kept in \
         any case: `debugConsoleLogFile`.",
    ),
    meaningless(
        "wsl2",
        "earlyBootLogging",
        Kind::Bool,
        Default::Bool(false),
        "Whether the console has the kernel's first lines too.",
        "it always has; `debugConsole` makes the kernel tell more",
    ),
    honoured(
        "wsl2",
        "debugConsoleLogFile",
        Kind::Path,
        Default::Unset("a file among undercroft's logs"),
        MachineStart,
        "Where the virtual machine's console is written to.",
    ),
    meaningless(
        "wsl2",
        "crashDumpFolder",
        Kind::Path,
        Default::Unset("none"),
        "Where the memory of programs that crashed is written to.",
        NO_DUMPS,
    ),
    meaningless(
        "wsl2",
        "maxCrashDumpCount",
        Kind::Integer { least: -1, most: u32::MAX as i64 },
        Default::Integer(10),
        "How many such files are kept.",
        NO_DUMPS,
    ),
    more(
        honoured(
            "general",
            "instanceIdleTimeout",
            IDLE,
            Default::Milliseconds(15_000),
            AtOnce,
            "How long a distribution goes on after its last session has ended.",
        ),
        "Its services end with it. `keepAlive` makes an exception of one distribution.",
    ),
    honoured(
        "general",
        "distributionInstallPath",
        Kind::Path,
        Default::Unset("undercroft's data folder"),
        NextInstall,
        "The folder that the disks of distributions are put into which are installed or imported.",
    ),
    more(
        honoured(
            "experimental",
            "autoMemoryReclaim",
            RECLAIM,
            Default::Text("dropCache"),
            AtOnce,
            "How the virtual machine gives memory back that it only uses as a cache, when it has nothing to do.",
        ),
        "`dropCache`: all of it, once in each idle time. `gradual`: little by little, oldest first. `disabled`: it keeps its \
         cache. Memory that is free goes back in any case.",
    ),
    meaningless(
        "experimental",
        "sparseVhd",
        Kind::Bool,
        Default::Bool(false),
        "Whether new disks give room back to the host when files on them are deleted.",
        "all disks do",
    ),
    honoured(
        "experimental",
        "ignoredPorts",
        Kind::Ports,
        Default::Unset("none"),
        MachineStart,
        "Ports, of TCP's and UDP's, that are not forwarded from the host's localhost.",
    ),
    honoured(
        "experimental",
        "hostAddressLoopback",
        Kind::Bool,
        Default::Bool(false),
        MachineStart,
        "Whether distributions reach what listens on the host's own loopback address, at the network's gateway.",
    ),
    more(
        honoured(
            "undercroft",
            "zram",
            Kind::Size,
            Default::Size(0),
            MachineStart,
            "How much swap the virtual machine has in its own memory, compressed; 0 is none.",
        ),
        "It is used before the swap file. Ours; WSL has no such key.",
    ),
    more(
        honoured(
            "undercroft",
            "publish",
            Kind::Published,
            Default::Unset("none: only the host's localhost"),
            MachineStart,
            "Addresses of the host's where a port of the virtual machine is reached too, by everybody.",
        ),
        "It is there as long as something in a distribution listens at that port, on loopback or everywhere, and takes the \
         place of localhost where it includes it. Ours; WSL has no such key.",
    ),
    honoured(
        SUBSECTION,
        "keepAlive",
        Kind::Bool,
        Default::Unset("its own wsl.conf's, or `false`"),
        AtOnce,
        "Whether the distribution goes on when its last session has ended.",
    ),
    honoured(
        SUBSECTION,
        "autoStart",
        Kind::Bool,
        Default::Bool(false),
        AtOnce,
        "Whether the distribution starts with undercroft's service (at login, where that is a systemd user unit).",
    ),
    more(
        honoured(
            SUBSECTION,
            "root",
            ROOT,
            Default::Text("layered"),
            NextInstall,
            "Whether the distribution's files are its changes over a shared base, or all on a disk of its own.",
        ),
        "With `layered` several distributions of one origin share their files and their page cache. With `flat` the disk can \
         be taken elsewhere alone.",
    ),
    more(
        honoured(
            SUBSECTION,
            "user",
            USER,
            Default::Text("own"),
            DistributionStart,
            "Whose users the distribution's are.",
        ),
        "`own`: its root is nobody in the virtual machine and in other distributions. `shared`: its root is the virtual \
         machine's and can load modules, set up networks, and do as it likes with the other distributions.",
    ),
    more(
        honoured(
            SUBSECTION,
            "network",
            NETWORK,
            Default::Text("shared"),
            DistributionStart,
            "Whether the distribution shares the virtual machine's network.",
        ),
        "`shared`: one loopback, one set of ports, as in the reference system. `private`: interfaces, rules and ports of its \
         own, so that two distributions can both listen on 80, and a container engine can manage what is its own. The first \
         has the port on the host's localhost, the next another one, see `undercroft ports`.",
    ),
    honoured(
        SUBSECTION,
        "memory",
        Kind::Size,
        Default::Unset("no limit but the machine's"),
        DistributionStart,
        "The most memory that the distribution's programs may use together, page cache included.",
    ),
    honoured(
        SUBSECTION,
        "processors",
        Kind::Cpus,
        Default::Unset("no limit but the machine's"),
        DistributionStart,
        "The most CPU time that the distribution's programs may use together, in CPUs.",
    ),
    honoured(
        SUBSECTION,
        "processes",
        COUNT,
        Default::Unset("no limit but the machine's"),
        DistributionStart,
        "The most processes and threads that the distribution may have.",
    ),
    honoured(
        SUBSECTION,
        "diskBandwidth",
        Kind::Size,
        Default::Unset("no limit"),
        DistributionStart,
        "The most bytes that the distribution may read from its disk in a second, and write to it.",
    ),
    more(
        honoured(
            SUBSECTION,
            "mount",
            Kind::Mounts,
            Default::Unset("none"),
            DistributionStart,
            "A folder of the host's, and where the distribution sees it.",
        ),
        "`HOST:GUEST`, both absolute (or `~/…` for the host's). Without the second folder it is seen at its own path; with \
         `:ro` behind them the distribution can only read. The key may be repeated. A folder is shared by virtiofsd, a process of \
         this user's: nobody in the distribution can do more with it than this user. Whoever writes there, the files are this \
         user's on the host; in the distribution this user's files are its default user's (1000, where no other was set). It \
         takes virtiofsd 1.13 or later. One that is added while the machine runs is there when the distribution is started next, \
         and slower until the machine is. Memory of a machine that was started with folders has huge pages only where the \
         host gives them to shared memory (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`).",
    ),
];
