//! The guest's address map. All values are bytes or byte addresses unless their text says otherwise.
//!
//! docs/layout.md mirrors this file, and `cargo xtask tidy` compares the two.

// Below 1 MiB: what the VMM writes for the kernel to read.

/// Global descriptor table that the boot vCPU starts with (64 bytes are used).
pub const GDT: u64 = 0x500;
/// PVH start information (Xen's `hvm_start_info`), its module and its memory map, up to [`BOOT_PARAMS`].
pub const PVH_START_INFO: u64 = 0x6000;
/// The zero page (`struct boot_params`, 4096 bytes) of the Linux boot protocol.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the boot vCPU's stack.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// First level-4 page table; the level-3 and level-2 tables of the identity map follow it, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// How much of physical memory the boot page tables map.
pub const IDENTITY_MAP_SIZE: u64 = 0x4000_0000;
/// The kernel's command line, terminated by a NUL.
pub const COMMAND_LINE: u64 = 0x20000;
/// Room for the command line with its NUL: Linux's COMMAND_LINE_SIZE on x86.
pub const COMMAND_LINE_SIZE: u64 = 0x800;
/// The device tree, behind its `setup_data` header.
pub const SETUP_DATA: u64 = 0x30000;
/// Room for `setup_data`.
pub const SETUP_DATA_SIZE: u64 = 0x20000;
/// End of the RAM that Linux may use below 1 MiB; from here to [`LEGACY_HOLE`] lies the extended BIOS data area.
pub const EBDA: u64 = 0x9fc00;
/// The MP floating pointer, in the first kilobyte of the EBDA, where the MultiProcessor Specification 1.4 (section 4) has
/// it searched.
pub const MP_FLOATING_POINTER: u64 = 0x9fc00;
/// Begin of the hole for video memory and ROMs.
pub const LEGACY_HOLE: u64 = 0xa0000;
/// ACPI's root pointer, then its tables. In the range where an OS on a BIOS searches for it.
pub const ACPI: u64 = 0xe0000;
/// Room for the ACPI tables.
pub const ACPI_SIZE: u64 = 0x10000;
/// The MP configuration table.
pub const MP_TABLE: u64 = 0xf0000;
/// Room for the MP configuration table.
pub const MP_TABLE_SIZE: u64 = 0xfff0;
/// Where a PC's processor starts after a reset, as real mode sees it: a few instructions that write the reset register.
pub const BIOS_RESET_VECTOR: u64 = 0xffff0;

// From 1 MiB: RAM, devices, RAM.

/// First byte a kernel may be loaded to.
pub const KERNEL_MIN: u64 = 0x10_0000;
/// End of the RAM below 4 GiB, if the machine has so much.
pub const LOW_RAM_END: u64 = 0xd000_0000;
/// The registers of the first virtio-mmio device; the others follow, [`VIRTIO_MMIO_SIZE`] apart.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// One virtio-mmio device's registers.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// KVM's I/O APIC.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Every vCPU's local APIC.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// A page that KVM needs on Intel for real mode's page tables.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel for real mode's task state.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// RAM that did not fit below the devices.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// What the region for memory that is plugged later is aligned to, at both ends: a section of Linux's, which is also a memory
/// block of machines below 64 GiB. It begins at [`HIGH_RAM_START`], or at the next such address after the RAM there.
pub const GROWTH_ALIGN: u64 = 0x800_0000;

// I/O ports.

/// The i8042: data port; only the reset line is wired.
pub const PORT_I8042: u64 = 0x60;
/// Ports of the i8042 (0x60 to 0x64).
pub const PORT_I8042_SIZE: u64 = 0x5;
/// The real-time clock's index port; its data port follows.
pub const PORT_CMOS: u64 = 0x70;
/// Ports of the real-time clock.
pub const PORT_CMOS_SIZE: u64 = 0x2;
/// The 16550 (`ttyS0`).
pub const PORT_SERIAL: u64 = 0x3f8;
/// Ports of the 16550.
pub const PORT_SERIAL_SIZE: u64 = 0x8;
/// pvpanic (QEMU's docs/specs/pvpanic): the guest writes 1 when it has panicked.
pub const PORT_PVPANIC: u64 = 0x505;
/// Ports of pvpanic.
pub const PORT_PVPANIC_SIZE: u64 = 0x1;
/// ACPI's sleep control register; [`POWER_OFF_VALUE`] written to it ends the machine.
pub const PORT_POWER: u64 = 0x600;
/// ACPI's sleep status register; always 0.
pub const PORT_SLEEP_STATUS: u64 = 0x601;
/// ACPI's reset register.
pub const PORT_RESET: u64 = 0x602;
/// Ports of sleep control, sleep status and reset.
pub const PORT_POWER_SIZE: u64 = 0x3;

// Values and interrupt lines, not addresses.

/// What is written to [`PORT_POWER`] to power off: SLP_EN (bit 5) and SLP_TYP 5 (bits 2 to 4), ACPI 6.5, 4.8.3.7.
pub const POWER_OFF_VALUE: u64 = 0x34;
/// What is written to [`PORT_RESET`] to reset.
pub const RESET_VALUE: u64 = 0x1;
/// The 16550's interrupt line.
pub const IRQ_SERIAL: u64 = 0x4;
/// The first interrupt line of the virtio devices.
pub const IRQ_VIRTIO_FIRST: u64 = 0x5;
/// The last interrupt line of KVM's I/O APIC, which has 24.
pub const IRQ_VIRTIO_LAST: u64 = 0x17;

/// The address of the registers of the virtio device number `index`.
pub const fn virtio_address(index: usize) -> u64 {
    VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE
}

/// The real-time clock's interrupt line; a driver that looks for the clock wants it for itself.
pub const IRQ_RTC: u64 = 0x8;

/// The interrupt line of the virtio device number `index`. When all are taken they are shared: they are edges, and the
/// driver asks every device on the line.
pub const fn virtio_irq(index: usize) -> u32 {
    let lines = IRQ_VIRTIO_LAST - IRQ_VIRTIO_FIRST;
    let line = IRQ_VIRTIO_FIRST + index as u64 % lines;
    (if line >= IRQ_RTC { line + 1 } else { line }) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_devices_take_every_line_but_the_clocks() {
        let lines: Vec<u32> = (0..18).map(virtio_irq).collect();
        assert_eq!(lines, [5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(virtio_irq(18), 5);
    }
}
