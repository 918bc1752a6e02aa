//! The machine as a device tree, which Linux takes on x86 too (CONFIG_OF, Documentation/arch/x86/booting-dt.rst): handed
//! over in a `setup_data` item, with the bindings of the one x86 platform that ever used it for its interrupt controllers
//! (intel,ce4100-ioapic and -lapic; an interrupt is a pin and a kind, 3 being a rising edge).
//!
//! The local APIC's node does not say "intel,virtual-wire-mode": then Linux keeps the legacy PIC's line open, by which the
//! 16550 and the clock, which stand in no tree, interrupt. With the property nothing that a program writes to ttyS0 comes out.
//!
//! A kernel with ACPI uses it only if it finds no ACPI tables, so none are written beside it.

use vm_fdt::{Error, FdtWriter};

use super::layout;

/// `setup_data`'s type of a device tree (arch/x86/include/uapi/asm/setup_data.h).
const SETUP_DTB: u32 = 2;
const IO_APIC_PHANDLE: u32 = 1;
/// The ce4100-ioapic binding's rising edge.
const EDGE_RISING: u32 = 3;

fn tree(cpus: u8, virtio_devices: usize) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "undercroft,vm")?;
    fdt.property_string("model", "undercroft")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;

    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..u32::from(cpus) {
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", id)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;

    let soc = fdt.begin_node("soc")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", IO_APIC_PHANDLE)?;
    fdt.property_null("ranges")?;

    let lapic = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::LOCAL_APIC))?;
    fdt.property_string("compatible", "intel,ce4100-lapic")?;
    fdt.property_array_u64("reg", &[layout::LOCAL_APIC, 0x1000])?;
    fdt.end_node(lapic)?;

    let io_apic = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::IO_APIC))?;
    fdt.property_string("compatible", "intel,ce4100-ioapic")?;
    fdt.property_array_u64("reg", &[layout::IO_APIC, 0x1000])?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_phandle(IO_APIC_PHANDLE)?;
    fdt.end_node(io_apic)?;

    for index in 0..virtio_devices {
        let address = layout::virtio_address(index);
        let device = fdt.begin_node(&format!("virtio@{address:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[address, layout::VIRTIO_MMIO_SIZE])?;
        fdt.property_array_u32("interrupts", &[layout::virtio_irq(index), EDGE_RISING])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(device)?;
    }
    fdt.end_node(soc)?;
    fdt.end_node(root)?;
    fdt.finish()
}

/// The `setup_data` item that lies at [`layout::SETUP_DATA`]: next item (none), type, length, tree.
pub(super) fn setup_data(cpus: u8, virtio_devices: usize) -> Result<Vec<u8>, Error> {
    let tree = tree(cpus, virtio_devices)?;
    let mut item = 0_u64.to_le_bytes().to_vec();
    item.extend_from_slice(&SETUP_DTB.to_le_bytes());
    item.extend_from_slice(&(tree.len() as u32).to_le_bytes());
    item.extend_from_slice(&tree);
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_machine_fits() {
        let item = setup_data(64, 100).unwrap();
        assert!(item.len() as u64 <= layout::SETUP_DATA_SIZE, "{} bytes", item.len());
        assert_eq!(&item[8..12], &SETUP_DTB.to_le_bytes());
        assert_eq!(&item[16..20], &0xd00d_feed_u32.to_be_bytes());
    }
}
