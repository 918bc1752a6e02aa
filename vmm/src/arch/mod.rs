//! What differs between processor architectures, behind one narrow interface.
//!
//! An architecture offers `layout` (its address map), `load` and `describe` (the kernel and the tables that tell it about the
//! machine), `create` (interrupt controller and whatever else a VM needs before its vCPUs) and `vcpu` (registers).
//! Nothing outside of this folder names a register, a table or an address.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("undercroft-vmm knows x86_64 only; another architecture is a folder beside src/arch/x86_64");
