//! The ruler: counts what a machine made in software executes, apart for the machine (L1), the machines that KVM runs in
//! it (L2), their kernels and their programs.
//!
//! QEMU's TCG tells a plugin when it translates a block of guest code; the plugin decides there, once, whose code it is,
//! and has QEMU add to that counter whenever an instruction of it executes. How it knows:
//!
//! - **L1 or L2.** AMD's VMRUN begins L2, and #VMEXIT resumes L1 at the instruction behind it (AMD64 Architecture
//!   Programmer's Manual, volume 2, sections 15.5 and 15.6). Whether the processor is in guest mode is part of what QEMU
//!   looks a translated block up by, so a block never serves both.
//! - **Kernel or user.** The privilege level is part of that key too, but a plugin of API version 1 cannot read it: the
//!   upper half of the address space is the kernel's, and so is the lower half until the kernel has run in the upper
//!   one (firmware, entry code), and its first MiB always (the trampoline that starts further processors).
//!
//! The first user instruction is the first program's that the kernel starts: mini-init's, unless the kernel has called
//! modprobe before. A kernel with what it needs built in does not; distributions' kernels do.
//!
//! A program draws attention to itself by a marker, an 8-byte NOP with a number in it; see [`event::marker_tag`]. Each
//! marker, the first VMRUN and the first L2 user instruction after a [`event::BEGIN`] marker become a line of the
//! plugin's output, with all counters at that moment; see [`event::line`].
//!
//! `-plugin libundercroft_ruler.so,out=FILE[,profile=FILE]`, one vCPU. The profile is that of the guest's kernel; see
//! [`profile`].

// Tests run without QEMU, whose functions the plugin calls: the two modules that need it are left out of them.
#![cfg_attr(test, allow(dead_code))]

mod count;
mod event;
mod profile;
#[cfg(not(test))]
mod qemu;
#[cfg(not(test))]
mod record;
mod repeat;
