//! A store's disks in a machine: a base is plugged in once, however many distributions use it.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Mutex, PoisonError},
};

pub use undercroft_protocol::command::BOUND;
use undercroft_protocol::command::{DiskAddress, Root};

use super::{Base, Held, file_size};
use crate::{Machine, digest::Digest, error::Result};

/// What disks are plugged into: a [`Machine`].
pub trait Plugs {
    /// Plugs one in.
    fn attach_disk(&self, disk: &File, read_only: bool) -> Result<DiskAddress>;
    /// Pulls one out that nothing uses any more.
    fn detach_disk(&self, disk: DiskAddress) -> Result<()>;
}

impl Plugs for Machine {
    fn attach_disk(&self, disk: &File, read_only: bool) -> Result<DiskAddress> {
        self.attach_disk(disk, read_only)
    }

    fn detach_disk(&self, disk: DiskAddress) -> Result<()> {
        self.detach_disk(disk)
    }
}

/// The bases that are plugged into one machine.
#[derive(Debug, Default)]
pub struct Disks {
    bases: Mutex<HashMap<Digest, Plugged>>,
}

#[derive(Debug)]
struct Plugged {
    address: DiskAddress,
    users: usize,
    // Others must not remove it while it is plugged in.
    _base: Base,
}

/// A distribution whose disks are plugged into a machine. It stays this process's own until the value goes, or the machine.
#[derive(Debug)]
pub struct Attached {
    root: Root,
    base: Option<Digest>,
    base_size: u64,
    // Its lock, too.
    disk: File,
}

impl Attached {
    /// What to launch.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its own disk.
    pub fn disk(&self) -> &File {
        &self.disk
    }

    /// The size of the larger one of its disks, in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(file_size(&self.disk)?.max(self.base_size))
    }
}

impl Disks {
    /// Plugs in what a distribution needs.
    pub fn attach(&self, machine: &impl Plugs, held: Held) -> Result<Attached> {
        let Held { disk, base, .. } = held;
        let digest = base.as_ref().map(Base::digest);
        let base_size = base.as_ref().map_or(Ok(0), |base| file_size(base.file()))?;
        let base = base.map(|base| self.attach_base(machine, base)).transpose()?;
        let own = machine.attach_disk(&disk, false).inspect_err(|_| {
            if let Some(digest) = &digest {
                // The first error counts.
                let _ = self.detach_base(machine, digest);
            }
        })?;
        let root = match base {
            None => Root::Flat { disk: own },
            Some(base) => Root::Layered { base, disk: own, bound: BOUND.map(str::to_owned).into() },
        };
        Ok(Attached { root, base: digest, base_size, disk })
    }

    /// Pulls out what a distribution had that is not launched any more. If its own disk cannot be pulled out, its base
    /// stays, too: the guest still has both mounted.
    pub fn detach(&self, machine: &impl Plugs, attached: Attached) -> Result<()> {
        let Attached { root, base, disk: _disk, .. } = attached;
        machine.detach_disk(root.own_disk().clone())?;
        base.map_or(Ok(()), |digest| self.detach_base(machine, &digest))
    }

    fn attach_base(&self, machine: &impl Plugs, base: Base) -> Result<DiskAddress> {
        // Locked while it is plugged in, so that a second user waits for the first one's disk.
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = bases.get_mut(&base.digest()) {
            known.users += 1;
            return Ok(known.address.clone());
        }
        let address = machine.attach_disk(base.file(), true)?;
        let plugged = Plugged { address: address.clone(), users: 1, _base: base };
        bases.insert(plugged._base.digest(), plugged);
        Ok(address)
    }

    fn detach_base(&self, machine: &impl Plugs, digest: &Digest) -> Result<()> {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = bases.get_mut(digest) else { return Ok(()) };
        known.users -= 1;
        if known.users > 0 {
            return Ok(());
        }
        // What cannot be pulled out is there for the next user.
        machine.detach_disk(known.address.clone())?;
        bases.remove(digest);
        Ok(())
    }
}
