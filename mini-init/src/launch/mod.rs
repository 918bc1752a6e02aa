//! Launching a distribution: from a request to its own `/init`, executed as PID 1 of namespaces of its own.
//!
//! Two processes share the work. The *preparer* is root in the VM: it may mount disks and make device nodes. The
//! *child* lives in the distribution's own namespaces from its first instruction on, may do nothing to the VM, and becomes
//! the init. What the preparer makes are mounts that hang nowhere yet; it hands them over as descriptors, and the child
//! hangs them into its own tree. So nothing of a distribution is ever seen in the VM's tree, and no name in a
//! distribution's files, whatever it links to, is followed with the VM's rights.
//!
//! | step | where | what |
//! | --- | --- | --- |
//! | cgroup | [`cgroup`] | its limits, and what of it is the distribution's own |
//! | namespaces | [`start`], [`users`] | clone3 into the cgroup: user, mount, PID, UTS and IPC namespaces; the range of users is set |
//! | network | [`own::lay`] | where it has its own: a wire to the VM |
//! | root | [`layers`] | own disk, or own disk over the base, owners mapped to the range; looked at before it is used |
//! | devices | [`devices`] | a /dev of its own with the nodes that programs need |
//! | folders | [`folders`] | the host's, where some are to be seen |
//! | handover | [`handover`] | the mounts, from one process to the other |
//! | entering | [`child`] | becomes its own root, makes proc and the cgroup namespace, pivots: nothing of the VM's stays in sight |
//! | exec | [`exec`] | the launch's description on a descriptor, then `/init` |
//!
//! The steps speak to the kernel through [`kernel::Kernel`], so that their order is tested without any privilege.

mod cgroup;
mod child;
mod devices;
mod exec;
mod folders;
mod handover;
mod kernel;
mod layers;
mod seed;
mod users;

use std::os::fd::{AsFd, OwnedFd};

use nix::{sched::CloneFlags, unistd::ForkResult};
use undercroft_guest::{
    clock,
    process::{clone_beside, exit_child},
};
use undercroft_protocol::command::{Failure, Launch, Root, Users};

use crate::{
    jobs::{self, Job, Mouth, Purpose, Word, system},
    network::own,
    root_check,
};
pub(crate) use cgroup::path as cgroup_path;
pub(crate) use child::make_place;
pub(crate) use devices::INIT;
#[cfg(test)]
pub(crate) use kernel::recording;
pub(crate) use kernel::{Attributes, Kernel, Linux};
pub(crate) use layers::{BASE, Devices, OWN};
pub(crate) use users::become_root;

/// The namespaces that are made with the child, whosever its users and its network are. The cgroup namespace follows, see
/// [`child`].
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// Starts to launch a distribution. Its init has been executed when the job's pipe ends without an answer; which process
/// it is was said before, by [`Word::Born`].
pub(crate) fn start(request: u64, what: &Launch, devices: &Devices) -> Result<Job, Failure> {
    let asked = clock::mark("mini-init: launch asked for");
    users::check(what.users)?;
    let purpose = Purpose::Launch { request, distribution: what.id };
    let mut job = jobs::start_silent(purpose, |mouth| prepare(what, devices, mouth))?;
    job.marks.push(asked);
    Ok(job)
}

/// A distribution's root, to be read by this process.
#[derive(Debug)]
pub(crate) struct Readable {
    /// The root, as the distribution has it.
    pub(crate) root: OwnedFd,
    /// What is bound over it, by absolute path.
    pub(crate) bound: Vec<(String, OwnedFd)>,
}

/// Mounts a root to be read, in a mount namespace of this process's own. Its layers hang at [`OWN`] and [`BASE`].
pub(crate) fn open_to_read(root: &Root, devices: &Devices) -> Result<Readable, Failure> {
    let mut kernel = Linux;
    kernel.unshare(CloneFlags::CLONE_NEWNS).map_err(system("making a mount namespace"))?;
    kernel.make_private("/").map_err(system("making the mounts private"))?;
    let (root, bound) = layers::mount_to_read(&mut kernel, root, devices)?;
    Ok(Readable { root, bound })
}

/// The preparer's work.
fn prepare(what: &Launch, devices: &Devices, mouth: &mut Mouth) -> Result<(), Failure> {
    let cgroup = cgroup::make(what, &devices.own).map_err(system("making the distribution's cgroup"))?;
    let (ours, theirs) = handover::pair().map_err(system("making a pair of sockets"))?;
    let mut namespaces = NAMESPACES;
    namespaces.set(CloneFlags::CLONE_NEWUSER, matches!(what.users, Users::Own { .. }));
    namespaces.set(CloneFlags::CLONE_NEWNET, what.network.is_some());
    let child = match clone_beside(namespaces, cgroup.as_fd()) {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            drop((ours, cgroup));
            // Returns only if it has not become the init.
            if let Some(failure) = child::run(what, theirs, mouth) {
                mouth.say(&Word::Answer(Err(failure)));
            }
            exit_child(1)
        }
        Err(error) => return Err(system("making the distribution's namespaces")(error)),
    };
    drop(theirs);
    mouth.say(&Word::Born(child.as_raw()));
    mouth.say(&Word::Mark(clock::mark("mini-init: namespaces made")));
    if let Some(wire) = &what.network {
        own::lay(what.id, wire, &cgroup, child.as_raw().unsigned_abs())?;
        mouth.say(&Word::Mark(clock::mark("mini-init: network made")));
    }
    let owner = users::map(what.users, child)?;
    let mut kernel = Linux;
    // For the layers, which have to hang somewhere until they are stacked.
    kernel.unshare(CloneFlags::CLONE_NEWNS).map_err(system("making a mount namespace"))?;
    kernel.make_private("/").map_err(system("making the mounts private"))?;
    let (root, bound) = layers::mount(&mut kernel, &what.root, devices, owner.as_ref())?;
    root_check::check_at(root.as_fd()).map_err(|reason| Failure {
        kind: undercroft_protocol::command::FailureKind::NotARoot,
        message: reason.to_string(),
    })?;
    mouth.say(&Word::Mark(clock::mark("mini-init: root mounted")));
    let mut mounts: Vec<OwnedFd> = vec![root];
    mounts.extend(devices::make(&mut kernel, what.users, owner.as_ref(), what.network.is_some())?.into_all());
    mounts.extend(bound);
    let (folders, which) = folders::mount(&mut kernel, &what.folders, &mut |warning| {
        mouth.warn(format!("distribution {}: {warning}", what.name));
    });
    mounts.extend(folders);
    handover::send(&ours, &mounts, &which).map_err(system("handing the mounts over"))
}
