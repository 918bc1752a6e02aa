//! The machine in ACPI tables: what distributions' stock kernels find devices and CPUs by.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no SCI, no PM timer, no fixed events. Power-off and reset are one register each.
//! The FADT also says what is not there (8042, VGA, RTC, MSI), so that the kernel does not look for it: each search that it
//! is spared saves exits.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::layout;

const OEM_ID: [u8; 6] = *b"UNDERC";
const OEM_TABLE_ID: [u8; 8] = *b"UNDERCVM";
const OEM_REVISION: u32 = 1;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.11): no VGA, no MSI, no CMOS RTC; no legacy devices, no 8042.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// The I/O APIC's id: above those of the CPUs.
pub(super) const IO_APIC_ID: u8 = 0xfe;

fn port(address: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// One virtio-mmio device, as Linux's virtio_mmio driver knows it ("LNRO0005").
fn virtio(index: usize) -> Vec<u8> {
    let address = layout::virtio_address(index);
    // LOW_RAM_END and what follows lie below 4 GiB, the type's limit.
    let registers = aml::Memory32Fixed::new(true, address as u32, layout::VIRTIO_MMIO_SIZE as u32);
    let interrupt = aml::Interrupt::new(true, true, false, true, layout::virtio_irq(index));
    bytes(&aml::Device::new(
        format!("V{index:03X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &(index as u32)),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    ))
}

fn dsdt(virtio_devices: usize) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let serial_ports = aml::IO::new(
        layout::PORT_SERIAL as u16,
        layout::PORT_SERIAL as u16,
        1,
        layout::PORT_SERIAL_SIZE as u8,
    );
    let serial_irq = aml::Interrupt::new(true, true, false, false, layout::IRQ_SERIAL as u32);
    let serial = bytes(&aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&serial_ports, &serial_irq])),
        ],
    ));
    let panic_port = aml::IO::new(layout::PORT_PVPANIC as u16, layout::PORT_PVPANIC as u16, 1, 1);
    let pvpanic = bytes(&aml::Device::new(
        "PVPN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"QEMU0001"),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&panic_port])),
        ],
    ));
    let mut devices = [serial, pvpanic].concat();
    for index in 0..virtio_devices {
        devices.extend_from_slice(&virtio(index));
    }
    dsdt.append_slice(&aml::Scope::raw("_SB_".into(), devices));
    // S5's SLP_TYPa: the value that POWER_OFF_VALUE carries.
    let s5 = aml::Package::new(vec![&5_u8, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes(&aml::Name::new("_S5_".into(), &s5)));
    dsdt.as_slice().to_vec()
}

/// All tables, as they stand in memory from [`layout::ACPI`] on, the root pointer first.
pub(super) fn tables(cpus: u8, virtio_devices: usize) -> Vec<u8> {
    const ALIGN: usize = 16;
    let mut image = vec![0; Rsdp::len().next_multiple_of(ALIGN)];
    let mut place = |table: Vec<u8>| {
        let at = layout::ACPI + image.len() as u64;
        image.extend_from_slice(&table);
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        at
    };

    let dsdt_at = place(dsdt(virtio_devices));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_at)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(layout::PORT_RESET);
    fadt.reset_value = layout::RESET_VALUE as u8;
    fadt.sleep_control_reg = port(layout::PORT_POWER);
    fadt.sleep_status_reg = port(layout::PORT_SLEEP_STATUS);
    let fadt_at = place(bytes(&fadt.finalize()));

    let local = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, layout::IO_APIC as u32, 0));
    let madt_at = place(bytes(&madt));

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    let xsdt_at = place(bytes(&xsdt));

    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt_at));
    image[..rsdp.len()].copy_from_slice(&rsdp);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_valid_checksums_and_fit() {
        let image = tables(64, 100);
        assert!(image.len() as u64 <= layout::ACPI_SIZE, "{} bytes", image.len());
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..20]), 0);
        assert_eq!(sum(&image[..36]), 0);
        for signature in [b"DSDT", b"FACP", b"APIC", b"XSDT"] {
            let at = image.windows(4).position(|w| w == signature).unwrap();
            let length = u32::from_le_bytes(image[at + 4..at + 8].try_into().unwrap()) as usize;
            assert_eq!(sum(&image[at..at + length]), 0, "{}", String::from_utf8_lossy(signature));
        }
    }
}
