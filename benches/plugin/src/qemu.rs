//! QEMU's plugin API, version 1 (QEMU 7.2, `docs/devel/tcg-plugins.rst`): the few declarations that are needed.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::AtomicU64;

use crate::record;

/// The API version this plugin was written for; QEMU looks for the name and compares.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals)]
static qemu_plugin_version: c_int = 1;

/// A block of translated code, as QEMU hands it to the translation callback.
#[repr(C)]
struct RawBlock {
    opaque: [u8; 0],
}

/// An instruction of a [`RawBlock`].
#[repr(C)]
struct RawInstruction {
    opaque: [u8; 0],
}

/// The head of `qemu_info_t`: what the machine is.
#[repr(C)]
struct Info {
    target_name: *const c_char,
    version_min: c_int,
    version_cur: c_int,
    system_emulation: bool,
    smp_vcpus: c_int,
    max_vcpus: c_int,
}

/// `QEMU_PLUGIN_INLINE_ADD_U64`.
const INLINE_ADD_U64: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`: the callback looks at no registers.
const NO_REGISTERS: c_int = 0;

type OnExecute = extern "C" fn(vcpu: c_uint, data: *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: extern "C" fn(u64, *mut RawBlock));
    fn qemu_plugin_register_atexit_cb(id: u64, callback: extern "C" fn(u64, *mut c_void), data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const RawBlock) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const RawBlock, index: usize) -> *mut RawInstruction;
    fn qemu_plugin_insn_data(instruction: *const RawInstruction) -> *const c_void;
    fn qemu_plugin_insn_size(instruction: *const RawInstruction) -> usize;
    fn qemu_plugin_insn_vaddr(instruction: *const RawInstruction) -> u64;
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut RawInstruction,
        callback: OnExecute,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_inline(
        instruction: *mut RawInstruction,
        operation: c_int,
        word: *mut c_void,
        operand: u64,
    );
}

/// An instruction that QEMU is translating.
pub(crate) struct Instruction<'block> {
    raw: &'block mut RawInstruction,
}

impl Instruction<'_> {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the instruction is valid during the translation callback, and `self` does not outlive it.
        let (data, size) = unsafe { (qemu_plugin_insn_data(self.raw), qemu_plugin_insn_size(self.raw)) };
        // SAFETY: QEMU keeps `size` bytes at `data` until the translation callback returns.
        unsafe { std::slice::from_raw_parts(data.cast(), size) }
    }

    /// Its virtual address.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: as in `bytes`.
        unsafe { qemu_plugin_insn_vaddr(self.raw) }
    }

    /// Has QEMU add one to `word` before each execution.
    pub(crate) fn count_in(&mut self, word: &'static AtomicU64) {
        // SAFETY: the word lives as long as the process; only the one vCPU's thread adds to it (more are refused).
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_inline(self.raw, INLINE_ADD_U64, word.as_ptr().cast(), 1);
        }
    }

    /// Has QEMU call `record::executed(what, address)` before each execution.
    pub(crate) fn call(&mut self, what: record::What, data: u64) {
        let callback: OnExecute = match what {
            record::What::Marker => on_marker,
            record::What::Vmrun => on_vmrun,
            record::What::Resume => on_resume,
            record::What::User => on_user,
            record::What::Repeat => on_repeat,
        };
        // SAFETY: the callbacks have the declared type and take `data` for a number, never for a pointer.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cb(self.raw, callback, NO_REGISTERS, data as *mut c_void);
        }
    }
}

extern "C" fn on_marker(_vcpu: c_uint, data: *mut c_void) {
    record::executed(record::What::Marker, data as u64);
}

extern "C" fn on_vmrun(_vcpu: c_uint, data: *mut c_void) {
    record::executed(record::What::Vmrun, data as u64);
}

extern "C" fn on_resume(_vcpu: c_uint, data: *mut c_void) {
    record::executed(record::What::Resume, data as u64);
}

extern "C" fn on_user(_vcpu: c_uint, data: *mut c_void) {
    record::executed(record::What::User, data as u64);
}

extern "C" fn on_repeat(_vcpu: c_uint, data: *mut c_void) {
    record::executed(record::What::Repeat, data as u64);
}

extern "C" fn on_translation(_id: u64, block: *mut RawBlock) {
    // SAFETY: QEMU passes a block that is valid until this callback returns.
    let count = unsafe { qemu_plugin_tb_n_insns(block) };
    for index in 0..count {
        // SAFETY: the index is below the number of instructions, and each is handed out once: no two references to one.
        let raw = unsafe { &mut *qemu_plugin_tb_get_insn(block, index) };
        record::translated(&mut Instruction { raw });
    }
}

extern "C" fn on_exit(_id: u64, _data: *mut c_void) {
    record::ended();
}

/// Called by QEMU when the plugin is loaded; 0 is success.
///
/// # Safety
/// `info` and the `argc` strings of `argv` are valid during the call, as QEMU promises.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: see above.
    let info = unsafe { &*info };
    if !info.system_emulation || info.smp_vcpus != 1 {
        eprintln!("undercroft-ruler: expected a whole machine with one vCPU (qemu-system-x86_64 -smp 1)");
        return 1;
    }
    for index in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the index is below `argc`, and each entry is a string that ends in 0.
        let argument = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        if let Err(message) = record::configure(&argument) {
            eprintln!("undercroft-ruler: {message}");
            return 1;
        }
    }
    // SAFETY: the callbacks have the types that QEMU calls them by, and live as long as the plugin.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
        qemu_plugin_register_atexit_cb(id, on_exit, std::ptr::null_mut());
    }
    0
}
