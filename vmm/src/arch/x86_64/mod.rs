//! x86-64.

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::Description;
use crate::memory::GuestMemory;

mod acpi;
mod boot_params;
mod cpuid;
mod device_tree;
pub mod layout;
mod mptable;
mod registers;

/// What this architecture's set-up can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A KVM call failed.
    #[error("KVM: {what}")]
    Kvm {
        /// The call, in words.
        what: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A table does not lie in guest memory.
    #[error("guest memory is too small for the boot tables")]
    Memory(#[from] GuestMemoryError),
    /// The device tree cannot be written.
    #[error("cannot write the device tree")]
    DeviceTree(#[from] vm_fdt::Error),
    /// A table is larger than the place it has.
    #[error("{what} takes {size} bytes, of which there are {room}")]
    Room {
        /// Which table.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The bytes there are for it.
        room: u64,
    },
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// How the boot vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In 64-bit mode with paging, at the ELF's entry.
    LongMode,
    /// In 32-bit protected mode, at the entry that a Xen note names.
    Pvh,
}

/// What the kernel is to be told.
#[derive(Debug)]
pub struct Platform<'a> {
    /// How devices and CPUs are described.
    pub description: Description,
    /// vCPUs; their APIC ids count from 0.
    pub cpus: u8,
    /// virtio-mmio devices; their addresses and lines are [`layout::virtio_address`] and [`layout::virtio_irq`].
    pub virtio_devices: usize,
    /// The command line.
    pub command_line: &'a str,
    /// Where the initramfs is, and its size in bytes.
    pub initramfs: Option<(u64, u64)>,
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Where the memory begins that is not there at boot.
    pub growth: Option<GuestAddress>,
}

/// Makes what a VM needs before its vCPUs: KVM's interrupt controllers and the pages KVM wants for itself.
///
/// There is no PIT. Linux needs one only where it does not know the TSC's frequency, which kvmclock tells it, or where the
/// local APIC's timer has no TSC deadline; without a PIT it asks for none and calibrates nothing.
///
/// # Errors
/// KVM's.
pub fn create(vm: &VmFd, description: Description) -> Result<(), Error> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(kvm("KVM_SET_TSS_ADDR"))?;
    if description == Description::CommandLine {
        hide_pic(vm)?;
    }
    vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))
}

/// Lets Linux find that there is no 8259, as ACPI's reduced hardware says it of itself.
///
/// KVM makes one with its I/O APIC, and with one there Linux clears each pin of the I/O APIC twelve times over, tries how the
/// timer's interrupt gets through, and masks line by line: 400 VM exits. It looks by writing a value to the mask and reading it
/// back (`probe_8259A` in arch/x86/kernel/i8259.c of 6.12). This takes just that value away: KVM asks the devices of an address in
/// the order in which they came (`kvm_io_bus_write`), and this one comes before the PIC.
///
/// Nobody listens to the eventfd; KVM keeps what it needs of it.
fn hide_pic(vm: &VmFd) -> Result<(), Error> {
    const MASTER_MASK: u64 = 0x21;
    const PROBED: u8 = 0xfb;
    let failed = |source: io::Error| Error::Kvm {
        what: "an eventfd for KVM_IOEVENTFD",
        source: kvm_ioctls::Error::new(source.raw_os_error().unwrap_or(libc::EMFILE)),
    };
    let nobody = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
    vm.register_ioevent(&nobody, &IoEventAddress::Pio(MASTER_MASK), PROBED).map_err(kvm("KVM_IOEVENTFD"))
}

/// Writes command line, tables and boot parameters into guest memory.
///
/// # Errors
/// Guest memory does not reach as far, or a table is larger than its place.
pub fn describe(memory: &GuestMemory, platform: &Platform<'_>) -> Result<(), Error> {
    let mut line = platform.command_line.as_bytes().to_vec();
    line.push(0);
    place(memory, "the command line", &line, layout::COMMAND_LINE, layout::COMMAND_LINE_SIZE)?;
    place(memory, "the reset vector", &reset_vector(), layout::BIOS_RESET_VECTOR, 16)?;
    match platform.description {
        Description::Acpi => {
            let tables = acpi::tables(platform.cpus, platform.virtio_devices);
            place(memory, "the ACPI tables", &tables, layout::ACPI, layout::ACPI_SIZE)?;
        }
        Description::DeviceTree => {
            let item = device_tree::setup_data(platform.cpus, platform.virtio_devices)?;
            place(memory, "the device tree", &item, layout::SETUP_DATA, layout::SETUP_DATA_SIZE)?;
        }
        Description::CommandLine => {
            let pointer = mptable::floating_pointer();
            place(memory, "the MP pointer", &pointer, layout::MP_FLOATING_POINTER, pointer.len() as u64)?;
            let table = mptable::table(platform.cpus, platform.virtio_devices);
            place(memory, "the MP table", &table, layout::MP_TABLE, layout::MP_TABLE_SIZE)?;
        }
    }
    let parameters = boot_params::Parameters {
        initramfs: platform.initramfs,
        acpi: platform.description == Description::Acpi,
        setup_data: platform.description == Description::DeviceTree,
        growth: platform.growth,
    };
    match platform.protocol {
        Protocol::LongMode => boot_params::write_zero_page(memory, &parameters)?,
        Protocol::Pvh => boot_params::write_pvh(memory, &parameters)?,
    }
    Ok(())
}

/// Real-mode code that writes the reset register.
///
/// On hardware-reduced ACPI Linux takes EFI to be there and resets by it, and where it is not, by a jump to the BIOS
/// (`efi_reboot_required`, `BOOT_BIOS` in arch/x86/kernel/reboot.c): it never tries the FADT's reset register.
fn reset_vector() -> [u8; 9] {
    let [low, high, ..] = layout::PORT_RESET.to_le_bytes();
    let value = layout::RESET_VALUE as u8;
    // mov dx, PORT_RESET; mov al, RESET_VALUE; out dx, al; hlt; jmp to the hlt
    [0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]
}

fn place(memory: &GuestMemory, what: &'static str, bytes: &[u8], at: u64, room: u64) -> Result<(), Error> {
    let size = bytes.len() as u64;
    if size > room {
        return Err(Error::Room { what, size, room });
    }
    Ok(memory.write_slice(bytes, GuestAddress(at))?)
}

/// What goes before the configured command line, so that the kernel finds what its description does not say.
///
/// A kernel without ACPI can power off only by `undercroft.poweroff=PORT,VALUE`, which mini-init reads. It resets through
/// the keyboard controller without being told.
pub fn command_line_prefix(description: Description, virtio_devices: usize) -> String {
    let mut line = String::new();
    if description == Description::CommandLine {
        for index in 0..virtio_devices {
            let (address, irq) = (layout::virtio_address(index), layout::virtio_irq(index));
            line += &format!("virtio_mmio.device={}K@{address:#x}:{irq} ", layout::VIRTIO_MMIO_SIZE >> 10);
        }
    }
    if description != Description::Acpi {
        let (port, value) = (layout::PORT_POWER, layout::POWER_OFF_VALUE);
        line += &format!("undercroft.poweroff={port:#x},{value:#x} ");
    }
    line
}

/// What tells a kernel that counts `timer_hz` ticks a second how long its delay loop is (`lpj=`, loops in a tick), so that no
/// CPU has to find out: on a CPU that does not say that its time stamp counter is constant, each but the first would spin
/// for several ticks. Linux's loop on x86-64 reads that counter, so that its loops are the counter's steps.
///
/// Nothing if KVM does not know the counter's frequency.
pub fn delay_parameter(vcpu: &VcpuFd, timer_hz: u32) -> Option<String> {
    let khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0)?;
    Some(format!("lpj={} ", u64::from(khz) * 1000 / u64::from(timer_hz.max(1))))
}

/// What all vCPUs of a machine have in common.
#[derive(Debug)]
pub struct CpuModel {
    supported: CpuId,
    tsc_deadline: bool,
    cpus: u8,
}

impl CpuModel {
    /// Asks KVM what CPUs it can make.
    ///
    /// # Errors
    /// KVM's.
    pub fn new(system: &Kvm, cpus: u8) -> Result<Self, Error> {
        let supported =
            system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self { supported, tsc_deadline: system.check_extension(Cap::TscDeadlineTimer), cpus })
    }

    /// Sets a vCPU up; vCPU 0 for entering the kernel at `entry`, the others wait for its start-up interrupt.
    ///
    /// # Errors
    /// KVM's; or guest memory is too small for the tables that the entry needs.
    pub fn configure(
        &self,
        vcpu: &VcpuFd,
        index: u8,
        memory: &GuestMemory,
        protocol: Protocol,
        entry: u64,
    ) -> Result<(), Error> {
        let leaves = cpuid::of(&self.supported, index, self.cpus, self.tsc_deadline);
        vcpu.set_cpuid2(&leaves).map_err(kvm("KVM_SET_CPUID2"))?;
        set_msrs(vcpu)?;
        set_local_interrupts(vcpu)?;
        if index == 0 {
            let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
            let regs = match protocol {
                Protocol::LongMode => registers::long_mode(&mut sregs, memory, entry)?,
                Protocol::Pvh => registers::pvh(&mut sregs, memory, entry)?,
            };
            vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
            vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
        }
        Ok(())
    }
}

/// What firmware would have set: fast string operations, and all memory write-back unless a page table says otherwise.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    const MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRINGS: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ])
    .expect("two entries are fewer than KVM's limit");
    // KVM stops at the first register it does not know and says how many it set. Neither is needed to run.
    vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
    Ok(())
}

/// The local APIC's LINT0 takes the legacy PIC's interrupts and LINT1 NMIs, as firmware leaves them.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXTINT: u32 = 7 << 8;
    let mut lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
    for (register, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        for (target, byte) in lapic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
            *target = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC"))
}
