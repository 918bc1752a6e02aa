//! Launching a distribution: from a request to its own `/init`, executed as PID 1 of namespaces of its own.
//!
//! | step | where | what |
//! | --- | --- | --- |
//! | namespaces | [`start`] | clone3 into the distribution's cgroup, with mount, PID, UTS and IPC namespaces; then the cgroup namespace, whose root is the cgroup that its maker is in |
//! | root | [`root`] | the root file system is mounted, looked at, and pivoted into: nothing of the VM's stays in sight |
//! | mounts | [`mounts`] | what the distribution cannot make itself once it has a user namespace: device nodes, the one `/init` |
//! | exec | [`exec`] | the launch's description on a descriptor, then `/init` |
//!
//! The steps speak to the kernel through [`kernel::Kernel`], so that their order is tested without any privilege.

mod exec;
mod kernel;
mod mounts;
mod root;

use std::path::Path;

use nix::{sched::CloneFlags, unistd::ForkResult};
use undercroft_guest::{
    channel::Channel,
    clock,
    process::{clone_into, exit_child},
};
use undercroft_protocol::command::{Done, Failure, Launch};

use crate::{
    distribution,
    jobs::{self, Job, Mouth, Purpose, Word, system},
};
use kernel::{Kernel, Linux};
pub(crate) use mounts::INIT;

/// The namespaces that are made with the process.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// Starts a distribution's first process. It has become the init when its pipe ends without a word.
pub(crate) fn start(request: u64, what: &Launch, device: &Path) -> Result<Job, Failure> {
    let asked = clock::mark("mini-init: launch asked for");
    let cgroup = distribution::make_cgroup(what.id).map_err(system("making the distribution's cgroup"))?;
    let (read, mut mouth) = jobs::pipe().map_err(system("making a pipe"))?;
    let child = match clone_into(NAMESPACES, std::os::fd::AsFd::as_fd(&cgroup)) {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            drop(read);
            let failure = become_init(&mut Linux, what, device, &mut mouth);
            mouth.say(&Word::Answer(Err::<Done, _>(failure)));
            exit_child(1)
        }
        Err(error) => {
            let _ = std::fs::remove_dir(distribution::cgroup(what.id));
            return Err(system("making the distribution's namespaces")(error));
        }
    };
    let ear = Channel::new(read).map_err(system("listening to a child"))?;
    let purpose = Purpose::Launch { request, distribution: what.id };
    Ok(Job { pid: child, ear, purpose, marks: vec![asked] })
}

/// Everything between the clone and the exec. Returns only with what went wrong.
fn become_init<K: Kernel>(kernel: &mut K, what: &Launch, device: &Path, mouth: &mut Mouth) -> Failure {
    mouth.say(&Word::Mark(clock::mark("mini-init: namespaces made")));
    let prepared = (|| {
        kernel.unshare(CloneFlags::CLONE_NEWCGROUP).map_err(system("making the cgroup namespace"))?;
        root::mount(kernel, device)?;
        mouth.say(&Word::Mark(clock::mark("mini-init: root mounted")));
        root::check(Path::new(root::PLACE))?;
        let taken = mounts::take_along(kernel)?;
        root::pivot(kernel)?;
        mounts::place(kernel, taken, &mut |warning| {
            mouth.warn(format!("distribution {}: {warning}", what.name))
        })
    })();
    match prepared {
        Ok(init) => {
            mouth.say(&Word::Mark(clock::mark("mini-init: root entered")));
            exec::init(what, &init)
        }
        Err(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::{kernel::recording::Recording, *};

    #[test]
    fn everything_that_is_taken_along_is_opened_before_the_root_is_left_and_placed_after() {
        let mut kernel = Recording::default();
        root::mount(&mut kernel, Path::new("/dev/sda")).unwrap();
        let taken = mounts::take_along(&mut kernel).unwrap();
        root::pivot(&mut kernel).unwrap();
        let init = mounts::place(&mut kernel, taken, &mut |_| {}).unwrap();
        assert_eq!(init, "/init");
        let position = |start: &str| {
            kernel
                .calls
                .iter()
                .position(|c| c.starts_with(start))
                .unwrap_or_else(|| panic!("{start}: {:#?}", kernel.calls))
        };
        assert_eq!(position("mount none / - private,rec"), 0);
        assert!(position("mount /dev/sda /run/distribution ext4") < position("tree /distribution-init"));
        assert!(position("tree /distribution-init") < position("pivot /run/distribution"));
        assert!(position("protect /distribution-init") < position("place /init"));
        assert!(position("tree /dev/null") < position("pivot /run/distribution"));
        assert!(position("pivot /run/distribution") < position("mount tmpfs /dev"));
        assert!(position("mount tmpfs /dev") < position("place /dev/null"));
        assert!(position("pivot /run/distribution") < position("place /init"));
    }

    #[test]
    fn a_read_only_root_without_an_init_gets_it_beside_the_devices() {
        let mut kernel = Recording { read_only: true, ..Recording::default() };
        let taken = mounts::take_along(&mut kernel).unwrap();
        let mut warnings = Vec::new();
        let init = mounts::place(&mut kernel, taken, &mut |w| warnings.push(w)).unwrap();
        assert_eq!(init, "/dev/init");
        assert!(warnings[0].contains("/init"), "{warnings:?}");
    }
}
