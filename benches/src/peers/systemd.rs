//! A Debian whose PID 1 is systemd: from the launch to its last job, ours and systemd-nspawn's, from one tree.

use std::{fs, path::Path};

use undercroft_ruler_runner::{Run, Until};

use super::{Peer, Row, containers, measure};
use crate::{
    Error,
    archive::Archive,
    machine::Machine,
    program,
    scenario::{self, Scenario},
};

/// The ruler's machine holds the tree packed and unpacked, and a guest with it.
const MACHINE_MIB: u32 = 5120;
/// The guest's memory in MiB.
const GUEST_MIB: u64 = 1024;

/// The unit that executes the marker: an idle service waits until no other job does (systemd.service(5), `Type=`).
const UNIT: &str = "[Unit]\nDescription=the ruler's marker\n[Service]\nType=idle\nExecStart=/marker\n";
const UNIT_PATH: &str = "etc/systemd/system/measured.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/measured.service";
/// A small init may take a minute of this machine's time for systemd.
const WSL_CONF: &str = "[boot]\nsystemd=true\ninitTimeout=600000\n";
/// Only where the container's end is the run's: systemd ends when the marker was executed.
const END: &str = "[Unit]\nSuccessAction=poweroff-force\n";

const ROOT: &str = "/tree";
const TAR: &str = "/tree.tar";
const BUSYBOX: &str = "/bin/busybox";

/// Measures both; the second value is ours in parts. `debian` is a tar with systemd in it.
pub fn rows(
    machine: &Machine,
    scenario: &Scenario,
    debian: &Path,
    work: &Path,
) -> Result<(Vec<Row>, scenario::Result), Error> {
    let machine = Machine { memory_mib: MACHINE_MIB, ..machine.clone() };
    let tree = work.join("systemd.tar");
    distribution(debian, &tree)?;
    let scenario = Scenario {
        memory_mib: GUEST_MIB,
        idle: 0,
        contents: scenario::Contents::Systemd(tree.clone()),
        ..scenario.clone()
    };
    let life = scenario::measure(&machine, &scenario, work)?;
    let mut rows = vec![Row {
        name: "undercroft".into(),
        what: "a user namespace, PIDs, mounts, UTS, IPC, cgroups; a shared base and a disk of its own".into(),
        counts: life.part("systemd").map(|part| part.whole).ok_or_else(|| "was not measured".into()),
    }];
    rows.extend(nspawn(&machine, &tree, work)?);
    Ok((rows, life))
}

/// The Debian with the marker's program, its unit, and the wish for systemd.
fn distribution(debian: &Path, out: &Path) -> Result<(), Error> {
    let folder = tempfile::tempdir().map_err(Error::io("make", "a temporary folder"))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, bytes));
        made.map_err(Error::io("write", &path))
    };
    put("etc/wsl.conf", WSL_CONF.as_bytes())?;
    put(UNIT_PATH, UNIT.as_bytes())?;
    put(WANTED, b"")?;
    let wanted = folder.path().join(WANTED);
    fs::remove_file(&wanted)
        .and_then(|()| std::os::unix::fs::symlink(Path::new("/").join(UNIT_PATH), &wanted))
        .map_err(Error::io("link", &wanted))?;
    put("marker", &program::that_ends())?;
    let marker = folder.path().join("marker");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&marker, mode).map_err(Error::io("change", &marker))?;
    fs::copy(debian, out).map_err(Error::io("copy", debian))?;
    let names = ["etc/wsl.conf", UNIT_PATH, WANTED, "marker"];
    let arguments = ["--owner=0", "--group=0", "-C"].map(Into::into).into_iter();
    let arguments = ["-rf".into(), out.as_os_str().to_owned()].into_iter().chain(arguments);
    let arguments = arguments.chain([folder.path().as_os_str().to_owned()]).chain(names.map(Into::into));
    let added = duct::cmd("tar", arguments).run();
    added.map(drop).map_err(|source| Error::Program {
        program: "tar".into(),
        help: "GNU tar is needed".into(),
        source,
    })
}

/// systemd-nspawn's, with nothing of the host but its network. Each time in a cgroup of its own: it leaves the one that it was
/// started in divided, and could not start there again.
fn nspawn(machine: &Machine, tree: &Path, work: &Path) -> Result<Vec<Row>, Error> {
    let tool = containers::nspawn();
    let what = "PIDs, mounts, UTS, IPC, cgroups; a folder of the host's";
    let Some(program) = tool.found() else {
        let counts = Err(format!("not on this host; it comes with {}", tool.install));
        return Ok(vec![Row { name: tool.name.into(), what: what.into(), counts }]);
    };
    let script = format!(
        "{BUSYBOX} mkdir /sys/fs/cgroup/$$ && echo $$ > /sys/fs/cgroup/$$/cgroup.procs && \
         exec {} --quiet --register=no --keep-unit --console=pipe --boot -D {ROOT}",
        program.display()
    );
    let mut archive = Archive::default();
    archive.program(&program, &program)?;
    let peer =
        Peer { program: "busybox", arguments: ["sh", "-c", &script].map(String::from).into(), what, ..tool };
    archive.copy(tree, TAR);
    archive.program(Path::new(BUSYBOX), BUSYBOX)?;
    let drop_in = format!("{ROOT}/etc/systemd/system/measured.service.d");
    let unpack = format!(
        "{BUSYBOX} mkdir -p {ROOT} && {BUSYBOX} tar x -f {TAR} -C {ROOT} && {BUSYBOX} rm {TAR} && \
         {BUSYBOX} mkdir -p {drop_in} && {BUSYBOX} printf '{}' > {drop_in}/end.conf",
        END.replace('\n', "\\n")
    );
    let unpack = Run {
        name: "unpack".into(),
        program: [BUSYBOX, "sh", "-c", &unpack].map(String::from).into(),
        repetitions: 1,
        until: Until::Exit,
        limit_seconds: 300,
        log: None,
    };
    measure(machine, &[peer], archive, vec![unpack], |span| span.program, work)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_units_program_is_the_scenarios() {
        assert!(super::UNIT.contains(&format!("ExecStart={}\n", undercroft_ruler_scenario::PROGRAM)));
    }
}
