//! `/etc/wsl-distribution.conf`: what a distribution's makers say of how it is installed.

use super::{honoured, meaningless, more};
use crate::{
    key::{Acts::NextInstall, Default, Key, Table},
    value::Kind,
};

/// A package's file.
pub static PACKAGE: Table = Table {
    file: "/etc/wsl-distribution.conf",
    about: "In a distribution's package. Read when it is installed and when its first interactive session starts.",
    keys: &KEYS,
    neighbours: &[],
};

const NO_START_MENU: &str = "nothing is put into the host's menus";
const NO_WINDOWS_TERMINAL: &str = "Windows Terminal is not there";

static KEYS: [Key; 7] = [
    more(
        honoured(
            "oobe",
            "command",
            Kind::Text,
            Default::Unset("none"),
            NextInstall,
            "What root's /bin/sh runs before the first interactive shell, to make a user or ask what has to be asked.",
        ),
        "If it fails there is no shell, and it runs again the next time. A command (`undercroft run NAME COMMAND`) does not wait \
         for it.",
    ),
    honoured(
        "oobe",
        "defaultUid",
        Kind::Integer { least: 0, most: u32::MAX as i64 },
        Default::Unset("root"),
        NextInstall,
        "The number of the user that sessions run as, once that command has succeeded.",
    ),
    honoured(
        "oobe",
        "defaultName",
        Kind::Text,
        Default::Unset("the file's name"),
        NextInstall,
        "The distribution's name, where neither the person who installs it nor a list gives one.",
    ),
    meaningless(
        "shortcut",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether the distribution is put into the host's menu.",
        NO_START_MENU,
    ),
    meaningless(
        "shortcut",
        "icon",
        Kind::Path,
        Default::Unset("none"),
        "The icon that it has there.",
        NO_START_MENU,
    ),
    meaningless(
        "windowsterminal",
        "enabled",
        Kind::Bool,
        Default::Bool(true),
        "Whether Windows Terminal gets a profile for it.",
        NO_WINDOWS_TERMINAL,
    ),
    meaningless(
        "windowsterminal",
        "profileTemplate",
        Kind::Path,
        Default::Unset("none"),
        "What that profile is made from.",
        NO_WINDOWS_TERMINAL,
    ),
];
