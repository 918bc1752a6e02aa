//! A folder of the host's for a distribution that runs already.
//!
//! A distribution that is launched is given devices (virtio-fs) for its folders. The VM's devices are counted when it starts, so
//! one that is wanted later comes another way: the kernel's FUSE, whose messages go to the host by a stream ([`relay`]), where
//! the same kind of server answers them. It is slower, by a copy and some wake-ups for each message, and needs nothing of a
//! machine that never asks for it.
//!
//! The file system is made here, in the VM's own user namespace, because the owners of its files are the VM's ids; a child
//! carries the mount into the distribution ([`place`]). Nothing but the relay holds /dev/fuse, so that its end is the file
//! system's: whoever waits for an answer is told ENOTCONN by the kernel.

mod place;
mod relay;

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
};

use undercroft_guest::host;
use undercroft_protocol::{
    Opening,
    command::{Done, Failure, Folder, Share},
};

pub(crate) use place::Doors;

use crate::{
    jobs::{Mouth, Word, system},
    launch::{Attributes, Kernel, Linux},
    modprobe,
};

/// FUSE's device, a character device that any kernel with FUSE has.
const DEVICE: &str = "/dev/fuse";

/// Mounts it, and carries its messages until the distribution or the host has no more. `doors` lead into
/// the distribution. That the folder is in its place is answered by the way.
pub(crate) fn run(what: &Share, doors: Doors, mouth: &mut Mouth) -> Result<Done, Failure> {
    let stream = host::connect_as(&Opening::Stream(what.token))
        .map_err(system("connecting for a folder's messages"))?;
    let device = device().map_err(system("opening /dev/fuse"))?;
    let tree = mount(&what.folder, &device).map_err(system("making a folder's file system"))?;
    place::place(&doors, &what.folder.place, &tree)?;
    // The distribution's is the only mount of it, and only its own processes keep its namespaces: when those go, the device says so.
    drop((tree, doors));
    mouth.say(&Word::Answer(Ok(Done::Nothing)));
    // However it ends, the device is closed with this process, and nobody listens to it any more.
    let _ = relay::run(&device, &File::from(stream));
    Ok(Done::Nothing)
}

fn device() -> std::io::Result<File> {
    let open = || File::options().read(true).write(true).open(DEVICE);
    open().or_else(|_| modprobe::load("fuse").and_then(|()| open()))
}

/// Everybody in the distribution may use it, as far as files' modes allow: what virtiofs is made with, too (fs/fuse/virtio_fs.c).
fn mount(folder: &Folder, device: &File) -> std::io::Result<OwnedFd> {
    let descriptor = device.as_raw_fd().to_string();
    let parameters = [
        ("source", folder.tag.as_str()),
        ("subtype", "undercroft"),
        ("fd", &descriptor),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
        ("allow_other", ""),
        ("default_permissions", ""),
    ];
    let mut forbid = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    forbid.set(Attributes::MOUNT_ATTR_RDONLY, folder.read_only);
    Linux.file_system("fuse", &parameters, forbid)
}
