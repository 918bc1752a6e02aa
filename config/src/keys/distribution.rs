//! `/etc/wsl.conf`: what a distribution says of itself.

use super::{honoured, meaningless, more};
use crate::{
    key::{Acts::*, Default, Key, Table},
    value::Kind,
};

/// A distribution's own file.
pub static DISTRIBUTION: Table = Table {
    file: "/etc/wsl.conf",
    about: "In each distribution. Read by its init when it starts. Nothing in it can give the distribution more than the \
            host lets it have.",
    keys: &KEYS,
    neighbours: &[],
};

const NO_DRIVES: &str =
    "the host has no drives; its folders are shared by `mount` in .wslconfig, under [distribution \"NAME\"]";
const NO_INTEROP: &str = "programs of the host are not started from distributions";
const NO_GPU: &str = "there is no virtual GPU";
const CGROUPS: Kind =
    Kind::Choice { of: &["v2"], not_here: &[("v1", "the kernel has control groups v2 only")] };

static KEYS: [Key; 25] = [
    meaningless(
        "automount",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host's drives are mounted.",
        NO_DRIVES,
    ),
    meaningless(
        "automount",
        "root",
        Kind::Path,
        Default::Text("/mnt/"),
        "The folder that they are mounted in.",
        NO_DRIVES,
    ),
    meaningless(
        "automount",
        "options",
        Kind::Text,
        Default::Unset("none"),
        "Options for those mounts.",
        NO_DRIVES,
    ),
    more(
        honoured(
            "automount",
            "mountFsTab",
            Kind::Bool,
            Default::Bool(true),
            DistributionStart,
            "Whether what /etc/fstab lists is mounted when the distribution starts.",
        ),
        "By the distribution's own `mount -a`; with systemd, by systemd, whatever this says.",
    ),
    meaningless(
        "automount",
        "ldconfig",
        Kind::Bool,
        Default::Bool(true),
        "Whether the linker's cache gets the host's libraries for its GPU.",
        NO_GPU,
    ),
    honoured(
        "automount",
        "cgroups",
        CGROUPS,
        Default::Text("v2"),
        DistributionStart,
        "Which control groups are mounted.",
    ),
    more(
        honoured(
            "boot",
            "systemd",
            Kind::Bool,
            Default::Bool(false),
            DistributionStart,
            "Whether systemd is the distribution's first process.",
        ),
        "If it cannot be, because /sbin/init is something else, the distribution starts without and a warning says so.",
    ),
    honoured(
        "boot",
        "command",
        Kind::Text,
        Default::Unset("none"),
        DistributionStart,
        "A command that root's /bin/sh runs when the distribution starts; nobody waits for its end.",
    ),
    honoured(
        "boot",
        "initTimeout",
        Kind::Milliseconds { or_never: false },
        Default::Milliseconds(10_000),
        DistributionStart,
        "How long systemd may take until sessions are let in all the same.",
    ),
    meaningless(
        "boot",
        "protectBinfmt",
        Kind::Bool,
        Default::Bool(true),
        "Whether systemd is kept from removing the handler for the host's programs.",
        NO_INTEROP,
    ),
    honoured(
        "network",
        "generateHosts",
        Kind::Bool,
        Default::Bool(true),
        DistributionStart,
        "Whether /etc/hosts is written at each start.",
    ),
    honoured(
        "network",
        "generateResolvConf",
        Kind::Bool,
        Default::Bool(true),
        DistributionStart,
        "Whether /etc/resolv.conf is made to name the virtual machine's name server.",
    ),
    honoured(
        "network",
        "hostname",
        Kind::Hostname,
        Default::Unset("the distribution's name"),
        DistributionStart,
        "The distribution's host name.",
    ),
    meaningless(
        "interop",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host's programs can be started from the distribution.",
        NO_INTEROP,
    ),
    meaningless(
        "interop",
        "appendWindowsPath",
        Kind::Bool,
        Default::Bool(true),
        "Whether PATH has the host's folders behind its own.",
        NO_INTEROP,
    ),
    honoured(
        "user",
        "default",
        Kind::Text,
        Default::Unset("what the installation chose, or `root`"),
        DistributionStart,
        "Who sessions run as that name no user: it counts before what the installation chose and `set-default-user` has set.",
    ),
    more(
        honoured(
            "time",
            "useWindowsTimezone",
            Kind::Bool,
            Default::Bool(true),
            DistributionStart,
            "Whether the distribution has the host's time zone.",
        ),
        "/etc/localtime is made a link to the host's zone, if the distribution has that zone below /usr/share/zoneinfo.",
    ),
    honoured(
        "filesystem",
        "umask",
        Kind::Umask,
        Default::Umask(0o022),
        DistributionStart,
        "The permissions that new files of a session do not get.",
    ),
    meaningless(
        "gpu",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether programs can compute on the host's GPU.",
        NO_GPU,
    ),
    meaningless(
        "gpu",
        "appendLibPath",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host's libraries for its GPU are found.",
        NO_GPU,
    ),
    meaningless(
        "fileServer",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether the host can open the distribution's files.",
        "the host reads and writes them through sessions: `undercroft run NAME -- tar c …`",
    ),
    meaningless(
        "fileServer",
        "logLevel",
        Kind::Text,
        Default::Unset("none"),
        "How much that server logs.",
        "there is no such server",
    ),
    meaningless(
        "fileServer",
        "logFile",
        Kind::Path,
        Default::Unset("none"),
        "Where that server logs to.",
        "there is no such server",
    ),
    meaningless(
        "fileServer",
        "logTruncate",
        Kind::Bool,
        Default::Bool(true),
        "Whether that log begins anew.",
        "there is no such server",
    ),
    more(
        honoured(
            "undercroft",
            "keepAlive",
            Kind::Bool,
            Default::Bool(false),
            DistributionStart,
            "Whether the distribution would rather go on when its last session has ended.",
        ),
        "The host's own word counts more: `keepAlive` in .wslconfig, under `[distribution \"NAME\"]`. Ours; WSL has no such key.",
    ),
];
