//! The boot vCPU's registers, descriptor table and page tables.
//!
//! Two ways in: 64-bit (Documentation/arch/x86/boot.rst, "64-bit boot protocol": paging on, flat segments, RSI at the zero
//! page) and PVH (Xen's docs/misc/pvh.pandoc: 32-bit protected mode, paging off, EBX at the start information).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Bit 1 of RFLAGS always reads 1; interrupts are off.
const RFLAGS: u64 = 2;

/// Selectors of the boot GDT: those that boot.rst asks for (`__BOOT_CS` 0x10, `__BOOT_DS` 0x18).
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TSS: u16 = 0x20;

fn segment(selector: u16, type_: u8, code64: bool) -> kvm_segment {
    let system = selector == SELECTOR_TSS;
    kvm_segment {
        base: 0,
        limit: if system { 0x67 } else { 0xffff_ffff },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code64 && !system),
        s: u8::from(!system),
        l: u8::from(code64),
        g: u8::from(!system),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A segment as its descriptor (Intel SDM volume 3, 3.4.5).
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    let access = u64::from(s.type_) | u64::from(s.s) << 4 | u64::from(s.dpl) << 5 | u64::from(s.present) << 7;
    let flags = u64::from(s.avl) | u64::from(s.l) << 1 | u64::from(s.db) << 2 | u64::from(s.g) << 3;
    limit & 0xffff
        | (s.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (s.base >> 24 & 0xff) << 56
}

fn flat_segments(sregs: &mut kvm_sregs, memory: &GuestMemory, code64: bool) -> Result<(), GuestMemoryError> {
    // Types: execute and read, accessed; read and write, accessed; busy TSS.
    let code = segment(SELECTOR_CODE, 0xb, code64);
    let data = segment(SELECTOR_DATA, 0x3, false);
    let tss = segment(SELECTOR_TSS, 0xb, false);
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss), 0];
    for (index, entry) in table.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (table.len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    sregs.tr = tss;
    Ok(())
}

/// One level-4, one level-3 and one level-2 table that map the first GiB onto itself with pages of 2 MiB.
fn page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let level3 = layout::PAGE_TABLES + 0x1000;
    let level2 = layout::PAGE_TABLES + 0x2000;
    memory.write_obj(level3 | PRESENT_WRITABLE, GuestAddress(layout::PAGE_TABLES))?;
    memory.write_obj(level2 | PRESENT_WRITABLE, GuestAddress(level3))?;
    for index in 0..layout::IDENTITY_MAP_SIZE >> 21 {
        memory.write_obj(index << 21 | PRESENT_WRITABLE | LARGE, GuestAddress(level2 + index * 8))?;
    }
    Ok(())
}

/// Registers for the 64-bit entry at `entry`; the zero page is at [`layout::BOOT_PARAMS`].
pub(super) fn long_mode(
    sregs: &mut kvm_sregs,
    memory: &GuestMemory,
    entry: u64,
) -> Result<kvm_regs, GuestMemoryError> {
    flat_segments(sregs, memory, true)?;
    page_tables(memory)?;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    Ok(kvm_regs {
        rip: entry,
        rsi: layout::BOOT_PARAMS,
        rsp: layout::BOOT_STACK_TOP,
        rbp: layout::BOOT_STACK_TOP,
        rflags: RFLAGS,
        ..Default::default()
    })
}

/// Registers for the PVH entry at `entry`; the start information is at [`layout::PVH_START_INFO`].
pub(super) fn pvh(
    sregs: &mut kvm_sregs,
    memory: &GuestMemory,
    entry: u64,
) -> Result<kvm_regs, GuestMemoryError> {
    flat_segments(sregs, memory, false)?;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    Ok(kvm_regs { rip: entry, rbx: layout::PVH_START_INFO, rflags: RFLAGS, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        assert_eq!(descriptor(&segment(SELECTOR_CODE, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(SELECTOR_CODE, 0xb, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(SELECTOR_DATA, 0x3, false)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&segment(SELECTOR_TSS, 0xb, false)), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_identity_map_covers_its_gigabyte() {
        let memory = crate::memory::map(32, None).unwrap();
        page_tables(&memory).unwrap();
        let last: u64 = memory.read_obj(GuestAddress(layout::PAGE_TABLES + 0x2ff8)).unwrap();
        assert_eq!(last, 0x3fe0_0083);
    }
}
