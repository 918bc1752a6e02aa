//! The VM as KVM knows it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch;
use crate::config::{Description, HugePages};
use crate::memory::GuestMemory;

/// The version of KVM's interface, the same since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, and turn virtualisation on in the firmware's setup"
    )]
    Absent,
    /// The user may not use it.
    #[error("no permission for /dev/kvm: `sudo usermod -aG kvm $USER`, then log in again")]
    Permission,
    /// It cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// It speaks another version.
    #[error("/dev/kvm speaks version {0} of its interface; 12 was expected")]
    Version(i32),
    /// A call failed.
    #[error("KVM: {what}")]
    Call {
        /// The call.
        what: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { what, source }
}

/// Opens KVM.
///
/// # Errors
/// It is not there, may not be used, or is none.
pub fn open() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::Absent,
        libc::EACCES | libc::EPERM => Error::Permission,
        errno => Error::Open(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(Error::Version(other)),
    }
}

/// A VM with its memory.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    /// Held as long as KVM has it mapped into the guest.
    memory: GuestMemory,
}

impl Vm {
    /// Makes a VM with `memory`, backed as `huge_pages` has it, and the architecture's interrupt controllers, as far as its
    /// `description` is to let them be found.
    ///
    /// # Errors
    /// KVM's.
    pub fn new(
        kvm: &Kvm,
        memory: GuestMemory,
        huge_pages: HugePages,
        description: Description,
    ) -> Result<Self, crate::machine::Error> {
        let fd = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        let vm = Self { fd, memory };
        for (slot, region) in vm.memory.iter().enumerate() {
            let advice = match huge_pages {
                HugePages::Host => None,
                HugePages::Always => Some(libc::MADV_HUGEPAGE),
                HugePages::Never => Some(libc::MADV_NOHUGEPAGE),
            };
            if let Some(advice) = advice {
                // SAFETY: the range is the region's own mapping; the advice changes no byte of it. A host without huge pages
                // refuses it, and has none anyway.
                unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
            }
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a mapping of that length, and it lives as long as the VM, which owns `memory`; the
            // guest may do with it what it likes, since nothing else of the process lies in it.
            unsafe { vm.fd.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        arch::create(&vm.fd, description)?;
        Ok(vm)
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes vCPU number `index`.
    ///
    /// # Errors
    /// KVM's.
    pub fn vcpu(&self, index: u8) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(u64::from(index)).map_err(call("KVM_CREATE_VCPU"))
    }

    /// Each write of `event` is an edge of the interrupt line `line`.
    ///
    /// # Errors
    /// KVM's.
    pub fn interrupt(&self, event: &EventFd, line: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, line).map_err(call("KVM_IRQFD"))
    }

    /// A 4-byte write of `value` to `address` by the guest rings `event`, without an exit to the VMM.
    ///
    /// # Errors
    /// KVM's.
    pub fn doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), Error> {
        self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value).map_err(call("KVM_IOEVENTFD"))
    }
}

/// An eventfd as what nix's poll(2) takes.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
