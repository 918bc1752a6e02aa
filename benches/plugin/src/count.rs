//! The counters, and the decision which of them an instruction belongs to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whose instruction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    L1Kernel,
    /// Firmware, and kernel code at addresses of the lower half.
    L1Low,
    L1User,
    L2Kernel,
    L2Low,
    L2User,
}

impl Class {
    const ALL: [Self; 6] =
        [Self::L1Kernel, Self::L1Low, Self::L1User, Self::L2Kernel, Self::L2Low, Self::L2User];

    /// The class whose discriminant is `bits`.
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(bits).ok()?).copied()
    }
}

/// The number of [`Class`]es.
const CLASSES: usize = Class::ALL.len();

/// A kernel that has executed so many instructions in the upper half has left its entry code for good: by the PVH entry,
/// it returns to the lower half once more after ten thousand; to its first program it takes forty million.
const KERNEL_IS_UP: u64 = 1_000_000;

/// Programs are mapped above this address, the trampoline of further processors is below it (real mode).
const FIRST_MIB: u64 = 1 << 20;

/// Instructions executed per class since the machine was switched on. QEMU's translated code adds to these words.
static EXECUTED: [AtomicU64; CLASSES] = [const { AtomicU64::new(0) }; CLASSES];

/// Iterations of string instructions beyond the first, per class: in [`EXECUTED`], though hardware would count none.
static ITERATIONS: [AtomicU64; CLASSES] = [const { AtomicU64::new(0) }; CLASSES];

/// What [`EXECUTED`] said for [`Class::L2Kernel`] when the latest run began.
static L2_KERNEL_AT_BEGIN: AtomicU64 = AtomicU64::new(0);

/// VMRUN instructions executed.
static VMRUNS: AtomicU64 = AtomicU64::new(0);

/// All counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    pub(crate) l1_kernel: u64,
    pub(crate) l1_user: u64,
    pub(crate) l2_kernel: u64,
    pub(crate) l2_user: u64,
    /// Iterations beyond the first of string instructions in L1; part of the numbers above.
    pub(crate) l1_iterations: u64,
    /// The same in L2.
    pub(crate) l2_iterations: u64,
    pub(crate) vmruns: u64,
}

/// The word that counts a class's instructions.
pub(crate) fn executed(class: Class) -> &'static AtomicU64 {
    &EXECUTED[class as usize]
}

/// Counts an iteration beyond the first.
pub(crate) fn iterated(class: Class) {
    ITERATIONS[class as usize].fetch_add(1, Relaxed);
}

/// Counts a VM entry, and says how many there were before.
pub(crate) fn entered() -> u64 {
    VMRUNS.fetch_add(1, Relaxed)
}

/// Instructions of all classes.
pub(crate) fn total() -> u64 {
    EXECUTED.iter().map(|word| word.load(Relaxed)).sum()
}

/// A machine is about to be started in L1: low addresses in L2 are entry code again.
pub(crate) fn begin() {
    L2_KERNEL_AT_BEGIN.store(executed(Class::L2Kernel).load(Relaxed), Relaxed);
}

/// All counters now.
pub(crate) fn now() -> Counters {
    let sum = |words: &[AtomicU64; CLASSES], classes: &[Class]| -> u64 {
        classes.iter().map(|&class| words[class as usize].load(Relaxed)).sum()
    };
    Counters {
        l1_kernel: sum(&EXECUTED, &[Class::L1Kernel, Class::L1Low]),
        l1_user: sum(&EXECUTED, &[Class::L1User]),
        l2_kernel: sum(&EXECUTED, &[Class::L2Kernel, Class::L2Low]),
        l2_user: sum(&EXECUTED, &[Class::L2User]),
        l1_iterations: sum(&ITERATIONS, &[Class::L1Kernel, Class::L1Low, Class::L1User]),
        l2_iterations: sum(&ITERATIONS, &[Class::L2Kernel, Class::L2Low, Class::L2User]),
        vmruns: VMRUNS.load(Relaxed),
    }
}

/// Whose code lies at `address`, given that it is about to execute for the first time.
pub(crate) fn classify(in_l2: bool, address: u64) -> Class {
    let kernel = if in_l2 {
        executed(Class::L2Kernel).load(Relaxed) - L2_KERNEL_AT_BEGIN.load(Relaxed)
    } else {
        executed(Class::L1Kernel).load(Relaxed)
    };
    class_of(in_l2, address, kernel)
}

fn class_of(in_l2: bool, address: u64, kernel_executed: u64) -> Class {
    let upper = address >> 63 == 1;
    let low = kernel_executed < KERNEL_IS_UP || address < FIRST_MIB;
    match (in_l2, upper, low) {
        (false, true, _) => Class::L1Kernel,
        (false, false, true) => Class::L1Low,
        (false, false, false) => Class::L1User,
        (true, true, _) => Class::L2Kernel,
        (true, false, true) => Class::L2Low,
        (true, false, false) => Class::L2User,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_code_and_trampolines_are_the_kernels() {
        assert_eq!(class_of(true, 0x100_0000, 0), Class::L2Low);
        assert_eq!(class_of(true, 0x9_9000, 80_000_000), Class::L2Low);
        assert_eq!(class_of(true, 0xffff_ffff_8100_0000, 0), Class::L2Kernel);
    }

    #[test]
    fn programs_are_in_the_lower_half() {
        assert_eq!(class_of(true, 0x7fff_f000_0000, 50_000_000), Class::L2User);
        assert_eq!(class_of(false, 0x40_0000, 50_000_000), Class::L1User);
    }

    #[test]
    fn counters_add_kernel_and_entry_code() {
        executed(Class::L1Low).fetch_add(3, Relaxed);
        executed(Class::L1Kernel).fetch_add(4, Relaxed);
        iterated(Class::L1Kernel);
        assert_eq!(now(), Counters { l1_kernel: 7, l1_iterations: 1, ..Counters::default() });
        assert_eq!(total(), 7);
    }
}
