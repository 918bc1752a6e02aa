//! One write to an I/O port: how a machine without ACPI is switched off.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// Writes a byte to an I/O port (ioperm(2)).
#[cfg(target_arch = "x86_64")]
pub(crate) fn write(port: u16, value: u8) -> Result<(), Errno> {
    // SAFETY: asks for the right to use one port, which needs CAP_SYS_RAWIO; no memory is passed.
    Errno::result(unsafe { libc::ioperm(port.into(), 1, 1) })?;
    // SAFETY: the right to this port was granted above, and the host named it as the one that powers the machine off:
    // nothing of this program depends on what the write does.
    unsafe { std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
    Ok(())
}

/// Other architectures have no I/O ports, and firmware interfaces of their own for this.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn write(_port: u16, _value: u8) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}
