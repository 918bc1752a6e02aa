//! The MultiProcessor Specification's tables (Intel, version 1.4, chapter 4): CPUs and interrupt lines for kernels that
//! are told about devices on the command line.

use std::collections::BTreeSet;

use super::acpi::IO_APIC_ID;
use super::layout;

const SPECIFICATION_1_4: u8 = 4;
const ENTRY_CPU: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
/// Version of the APICs: KVM's local APIC is 0x14, its I/O APIC 0x11.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const CPU_ENABLED: u8 = 1;
const CPU_BOOTS: u8 = 2;
const ISA_BUS: u8 = 0;
const HEADER_SIZE: usize = 44;

/// What makes all bytes add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// The floating pointer that lies at [`layout::MP_FLOATING_POINTER`].
pub(super) fn floating_pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend_from_slice(&(layout::MP_TABLE as u32).to_le_bytes());
    // Length in units of 16 bytes, version, checksum, five feature bytes: a configuration table is present, virtual wire.
    pointer.extend_from_slice(&[1, SPECIFICATION_1_4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer
}

/// The interrupt lines that something is connected to: each costs the kernel a structure, and accesses to the I/O APIC.
fn lines(virtio_devices: usize) -> BTreeSet<u8> {
    let mut lines: BTreeSet<u64> =
        (0..virtio_devices).map(|index| layout::virtio_irq(index).into()).collect();
    lines.extend([layout::IRQ_SERIAL, layout::IRQ_RTC]);
    lines.into_iter().map(|line| line as u8).collect()
}

/// The configuration table that lies at [`layout::MP_TABLE`].
pub(super) fn table(cpus: u8, virtio_devices: usize) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOTS } else { CPU_ENABLED };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[ENTRY_CPU, id, LOCAL_APIC_VERSION, flags]);
        add(&entry);
    }
    add(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = (layout::IO_APIC as u32).to_le_bytes();
    add(&[ENTRY_IO_APIC, IO_APIC_ID, IO_APIC_VERSION, 1, address[0], address[1], address[2], address[3]]);
    // Each line of the ISA bus is the pin of its number; the bus conforms to edges that rise (flags 0).
    for line in lines(virtio_devices) {
        add(&[ENTRY_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, line, IO_APIC_ID, line]);
    }
    const ALL_CPUS: u8 = 0xff;
    add(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_CPUS, 1]);

    let mut table = b"PCMP".to_vec();
    let length = (HEADER_SIZE + entries.len()) as u16;
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[SPECIFICATION_1_4, 0]);
    table.extend_from_slice(b"UNDERCFTVIRTUAL VM  ");
    // No OEM table.
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&(layout::LOCAL_APIC as u32).to_le_bytes());
    // No extended table.
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_add_up_and_fit() {
        assert_eq!(floating_pointer().len(), 16);
        assert_eq!(checksum(&floating_pointer()), 0);
        for cpus in [1, 2, 64] {
            let table = table(cpus, 3);
            assert_eq!(checksum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), u16::from(cpus) + 9);
            assert!(table.len() as u64 <= layout::MP_TABLE_SIZE);
        }
    }

    #[test]
    fn lines_are_those_of_the_devices() {
        assert_eq!(lines(3).into_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
        assert_eq!(lines(40).len(), 20);
    }
}
