use super::{
    super::action::{Import, Launch, Making, Origin, Style},
    *,
};

fn meant(line: &str) -> Result<Option<Action>, String> {
    action(line.split_whitespace().map(OsString::from).collect())
}

fn run(line: &str) -> Run {
    match meant(line) {
        Ok(Some(Action::Run(run))) => run,
        other => panic!("{line}: {other:?}"),
    }
}

fn import(line: &str) -> Import {
    match meant(line) {
        Ok(Some(Action::Import(import))) => import,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn what_fingers_know() {
    let argv = |words: &[&str]| Program::Argv(words.iter().map(OsString::from).collect());
    assert_eq!(run("").program, Program::LoginShell);
    assert_eq!(run("ls -l").program, Program::Line("ls -l".into()));
    assert_eq!(run("-- -x").program, Program::Line("-x".into()));
    assert_eq!(run("--shell-type none ls -l").program, argv(&["ls", "-l"]));
    assert_eq!(run("--shell-type login ls -l").program, Program::LoginLine("ls -l".into()));
    assert_eq!(run("--shell-type login").program, Program::LoginShell);
    let one = run("-d Debian -u root --cd /tmp -e bash -c id");
    assert_eq!(one.distribution.as_deref(), Some("Debian"));
    assert_eq!(one.user.as_deref(), Some("root"));
    assert_eq!((one.directory, one.at_home), (Some("/tmp".into()), false));
    let home = run("--cd ~ ls");
    assert_eq!((home.directory, home.at_home), (None, true));
    assert_eq!(one.program, argv(&["bash", "-c", "id"]));
    let verbose = Style::Wsl { verbose: true };
    assert_eq!(meant("-l -v"), Ok(Some(Action::List { style: verbose, running: false })));
    assert_eq!(meant("--shutdown --force"), Ok(Some(Action::Shutdown { force: true })));
    assert_eq!(meant("--status"), Ok(Some(Action::Defaults)));
    assert_eq!(meant("--help"), Ok(None));
    assert_eq!(meant("-h"), Ok(None));
}

#[test]
fn distributions_are_made_of_archives_and_images() {
    let made = |origin| Import {
        name: Some("x".into()),
        origin,
        list: None,
        making: Making { location: Some("/d".into()), ..Making::default() },
        launch: Launch::Never,
    };
    assert_eq!(import("--import x /d - --version 2"), made(Origin::File("-".into())));
    assert_eq!(import("--import x /d f.ext4 --vhd"), made(Origin::Image("f.ext4".into())));
}

#[test]
fn an_installation_is_followed_by_a_shell() {
    let none = import("--install");
    assert_eq!((none.origin, none.name, none.launch), (Origin::Default, None, Launch::AtTerminal));
    for line in ["--install Debian -n", "--install --no-launch -d Debian"] {
        let named = import(line);
        assert_eq!((named.origin, named.launch), (Origin::Text("Debian".into()), Launch::Never), "{line}");
    }
}

#[test]
fn what_is_so_in_any_case_succeeds() {
    let of = |line: &str| match meant(line) {
        Ok(Some(Action::Note { of, text })) if text.ends_with('\n') => of,
        other => panic!("{line}: {other:?}"),
    };
    for line in ["--manage deb --set-sparse true", "--manage deb --set-sparse true --allow-unsafe"] {
        assert_eq!(of(line).as_deref(), Some("deb"), "{line}");
    }
    assert_eq!(of("--set-version deb 2").as_deref(), Some("deb"));
    for line in ["--set-default-version 2", "--update", "--update --web-download"] {
        assert_eq!(of(line), None, "{line}");
    }
}

#[test]
fn mistakes_say_what_was_expected() {
    let all = [
        "-d",
        "--lost",
        "--list --quick",
        "--shell-type fish ls",
        "--shutdown now",
        "--import deb",
        "--export deb",
        "--terminate",
        "--manage",
        "--manage deb",
        "--manage deb --grow",
        "--manage deb --resize",
        "--import deb /d - --vhd",
        "--import deb /d f --vhd --vhd-size 1G",
        "--set-version deb 3",
    ];
    let said: Vec<_> = all.iter().map(|line| format!("{line} → {}", meant(line).unwrap_err())).collect();
    insta::assert_snapshot!(said.join("\n"), @r"
    -d → --distribution: expected NAME after it
    --lost → --lost: not known
    --list --quick → --quick: not known after --list
    --shell-type fish ls → --shell-type fish: expected standard, login or none
    --shutdown now → now: not known after --shutdown
    --import deb → --import: expected NAME DIR FILE after it
    --export deb → --export: expected NAME FILE after it
    --terminate → --terminate: expected NAME after it
    --manage → --manage: expected NAME and what of it is to be changed after it
    --manage deb → --manage deb: expected --move DIR, --resize SIZE, --set-default-user USER or --set-sparse true after it
    --manage deb --grow → --grow: expected --move DIR, --resize SIZE, --set-default-user USER or --set-sparse true after --manage deb
    --manage deb --resize → --resize: expected a size, such as 64G, after it
    --import deb /d - --vhd → --vhd: expected a file before it, and no stream
    --import deb /d f --vhd --vhd-size 1G → --vhd-size: a copy of an image is as large as that, and `undercroft resize deb SIZE` changes it
    --set-version deb 3 → --set-version deb 3: expected 2, and there is no other version
    ");
}

/// What there is not: why, and what to do instead.
#[test]
fn refusals_have_a_reason() {
    let all = [
        "--manage deb --set-sparse false",
        "--set-version deb 1",
        "--set-default-version 1",
        "--system",
        "--debug-shell",
        "--distribution-id {0}",
        "--mount /dev/sdb",
        "--unmount",
        "--uninstall",
    ];
    let said: Vec<_> = all.iter().map(|line| format!("{line} → {}", meant(line).unwrap_err())).collect();
    insta::assert_snapshot!(said.join("\n"), @r"
    --manage deb --set-sparse false → --set-sparse false: every disk is sparse, and there is no other kind; `undercroft resize deb SIZE` is the most that it may take
    --set-version deb 1 → --set-version deb 1: WSL's first version has no kernel of its own, and there is nothing of the kind here: every distribution is on version 2
    --set-default-version 1 → --set-default-version 1: WSL's first version has no kernel of its own, and there is nothing of the kind here: every distribution is on version 2
    --system → --system: there is no system distribution beneath the others, and nothing that would need one (graphical programs are not served); `-d NAME -u root` is root in one of yours
    --debug-shell → --debug-shell: the virtual machine has no shell of its own; `debugConsole` in .wslconfig shows its console, and a distribution with `user = shared` there has its rights
    --distribution-id {0} → --distribution-id: distributions have no GUID here, and their names are unique: `-d NAME`, with a name of `--list`
    --mount /dev/sdb → --mount: disks of the host are not handed through. A disk with a distribution on it is one by `--import-in-place NAME FILE`, if it is a file; any other is mounted on the host, and distributions get the folder: by `mount` in .wslconfig, or for once by `undercroft run --mount FOLDER`
    --unmount → --unmount: disks of the host are not handed through, so that there is none to take back; a folder that was shared by `undercroft run --mount` goes with the virtual machine (`--shutdown`)
    --uninstall → --uninstall: undercroft is removed as it came: by the package manager, or with the folder that its archive was unpacked in. `--unregister NAME` removes a distribution and its files
    ");
}

#[test]
fn the_help_text() {
    assert!(HELP.lines().all(|line| line.chars().count() <= 120));
    insta::assert_snapshot!(HELP, @r"
    Usage: wsl [options] [--] [command]        in the default user's shell; without a command, a login shell
           wsl [options] --exec command        without a shell

    Options:
        -d, --distribution NAME     in this distribution, instead of the default one
        -u, --user USER             as this user
        --cd DIR                    in this directory; ~ is the user's home
        --shell-type standard|login|none
                                    how a command is run: by the user's shell, by the same as at a login, without one

    Management:
        --install [NAME] [--from-file FILE|-] [--name NAME] [--location DIR] [--vhd-size SIZE] [--no-launch, -n]
                                    install by a name of --list --online, without one what that list has as default;
                                    at a terminal its first shell follows, unless there is --no-launch
        --import NAME DIR FILE|-    make a distribution from a tar archive, with its disk in DIR
        --import NAME DIR FILE --vhd
                                    the same, with a copy of a raw ext4 image
        --import-in-place NAME FILE make an ext4 image a distribution, where it stands
        --export NAME FILE|- [--format tar|tar.gz|tar.xz|vhd]
        --manage NAME --move DIR | --resize SIZE | --set-default-user USER | --set-sparse true
        --list, -l [--verbose, -v] [--quiet, -q] [--running] [--all] [--online, -o]
        --set-default, -s NAME
        --terminate, -t NAME
        --unregister NAME
        --shutdown [--force]
        --status                    the default distribution
        --update                    how undercroft is updated
        --set-version NAME 2, --set-default-version 2
                                    nothing: there is one version
        --version, -v
        --help, -h

    undercroft's own verbs: undercroft --help
    ");
}
