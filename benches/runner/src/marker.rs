//! Markers for the plugin.
#![allow(unsafe_code)]

/// Executes the marker with this tag: a NOP of 8 bytes whose displacement is `0x5543_0000 + TAG`.
#[inline(always)]
pub fn mark<const TAG: u16>() {
    // SAFETY: a NOP with a memory operand accesses no memory and changes no register.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, {low}, {high}, 0x43, 0x55",
            low = const TAG & 0xff,
            high = const TAG >> 8,
            options(nomem, nostack, preserves_flags),
        );
    }
}
