//! Linux's zero page (`struct boot_params`, Documentation/arch/x86/zero-page.rst) and PVH's start information: two ways of
//! telling a kernel about memory, command line and initramfs.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::layout;
use crate::memory::GuestMemory;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// "HdrS", which tells Linux that the setup header is filled in.
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
/// The version of the boot protocol that the header follows.
const BOOT_PROTOCOL: u16 = 0x020f;
/// A loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags: the kernel is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// "xEn3"; Xen's public/arch-x86/hvm/start_info.h.
const PVH_MAGIC: u32 = 0x336e_c578;

/// What both forms hold.
pub(super) struct Parameters {
    /// Where the initramfs is, and its size in bytes.
    pub(super) initramfs: Option<(u64, u64)>,
    /// Whether ACPI tables are at [`layout::ACPI`].
    pub(super) acpi: bool,
    /// Whether a `setup_data` list begins at [`layout::SETUP_DATA`].
    pub(super) setup_data: bool,
    /// Where the memory begins that the kernel is not to know at boot, because it comes later.
    pub(super) growth: Option<GuestAddress>,
}

/// The address map as (start, length, E820 type).
fn memory_map(memory: &GuestMemory, growth: Option<GuestAddress>) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::EBDA, E820_RAM),
        (layout::EBDA, layout::LEGACY_HOLE - layout::EBDA, E820_RESERVED),
        (layout::ACPI, layout::KERNEL_MIN - layout::ACPI, E820_RESERVED),
    ];
    for region in memory.iter().filter(|region| Some(region.start_addr()) != growth) {
        let start = region.start_addr().0.max(layout::KERNEL_MIN);
        map.push((start, region.start_addr().0 + region.len() - start, E820_RAM));
    }
    map
}

/// Writes the zero page.
pub(super) fn write_zero_page(memory: &GuestMemory, parameters: &Parameters) -> Result<(), GuestMemoryError> {
    let mut page = boot_params::default();
    page.hdr.header = SETUP_HEADER_MAGIC;
    page.hdr.boot_flag = 0xaa55;
    page.hdr.version = BOOT_PROTOCOL;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.loadflags = LOADED_HIGH;
    page.hdr.kernel_alignment = 0x20_0000;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    page.hdr.cmdline_size = layout::COMMAND_LINE_SIZE as u32 - 1;
    if let Some((address, size)) = parameters.initramfs {
        page.hdr.ramdisk_image = address as u32;
        page.hdr.ramdisk_size = size as u32;
        page.ext_ramdisk_image = (address >> 32) as u32;
        page.ext_ramdisk_size = (size >> 32) as u32;
    }
    if parameters.acpi {
        page.acpi_rsdp_addr = layout::ACPI;
    }
    if parameters.setup_data {
        page.hdr.setup_data = layout::SETUP_DATA;
    }
    let map = memory_map(memory, parameters.growth);
    for (entry, &(addr, size, r#type)) in page.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr, size, r#type };
    }
    page.e820_entries = map.len() as u8;
    memory.write_obj(page, GuestAddress(layout::BOOT_PARAMS))
}

/// Writes PVH's start information, its module list and its memory map, one behind the other.
pub(super) fn write_pvh(memory: &GuestMemory, parameters: &Parameters) -> Result<(), GuestMemoryError> {
    let modules = layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64;
    let entries = modules + size_of::<hvm_modlist_entry>() as u64;
    let map = memory_map(memory, parameters.growth);
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: if parameters.acpi { layout::ACPI } else { 0 },
        memmap_paddr: entries,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((paddr, size)) = parameters.initramfs {
        info.nr_modules = 1;
        info.modlist_paddr = modules;
        memory.write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(modules))?;
    }
    let mut at = entries;
    for (addr, size, type_) in map {
        memory.write_obj(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_sorted_and_ends_with_ram() {
        let growth = crate::memory::growth(64 << 20, 256 << 20);
        let memory = crate::memory::map(64, growth).unwrap();
        let map = memory_map(&memory, growth.map(|growth| growth.address));
        assert!(map.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        assert_eq!(map.last(), Some(&(0x10_0000, 63 << 20, E820_RAM)));
    }

    #[test]
    fn the_zero_page_is_where_the_protocol_says() {
        let memory = crate::memory::map(64, None).unwrap();
        let parameters =
            Parameters { initramfs: Some((0x300_0000, 5)), acpi: true, setup_data: false, growth: None };
        write_zero_page(&memory, &parameters).unwrap();
        let read = |offset| memory.read_obj::<u32>(GuestAddress(layout::BOOT_PARAMS + offset)).unwrap();
        assert_eq!(read(0x202), SETUP_HEADER_MAGIC);
        assert_eq!(read(0x218), 0x300_0000);
        assert_eq!(read(0x21c), 5);
        assert_eq!(read(0x070), layout::ACPI as u32);
    }
}
