//! Verbs of WSL's that undercroft has nothing for: why, and what does what was probably wanted.

/// Why, if it is one of them.
pub(super) fn reason(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "--debug-shell" => {
            "the virtual machine has no shell of its own; `debugConsole` in .wslconfig shows its console, and a distribution with \
             `user = shared` there has its rights"
        }
        "--system" => {
            "there is no system distribution beneath the others, and nothing that would need one (graphical programs are not \
             served); `-d NAME -u root` is root in one of yours"
        }
        "--distribution-id" => {
            "distributions have no GUID here, and their names are unique: `-d NAME`, with a name of `--list`"
        }
        "--mount" => {
            "disks of the host are not handed through. A disk with a distribution on it is one by `--import-in-place NAME FILE`, if \
             it is a file; any other is mounted on the host, and distributions get the folder: by `mount` in .wslconfig, or for \
             once by `undercroft run --mount FOLDER`"
        }
        "--unmount" => {
            "disks of the host are not handed through, so that there is none to take back; a folder that was shared by `undercroft \
             run --mount` goes with the virtual machine (`--shutdown`)"
        }
        "--uninstall" => {
            "undercroft is removed as it came: by the package manager, or with the folder that its archive was unpacked in. \
             `--unregister NAME` removes a distribution and its files"
        }
        _ => return None,
    })
}
