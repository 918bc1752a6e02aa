//! What the guest's CPUs say they are: what KVM supports, with this machine's topology and nothing invented.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: the TSC-deadline timer. KVM reports it by a capability and not in its list.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor to a package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: leaf 0x8000_001e holds (AMD).
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 0x8000_0001 ECX: a package has several cores, not threads (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// How many bits of an APIC id number the cores: one package, one thread to a core.
fn core_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

/// The CPUID leaves of vCPU `index` of `cpus`, from what KVM supports.
///
/// `index` is also the vCPU's APIC id.
pub(super) fn of(supported: &CpuId, index: u8, cpus: u8, tsc_deadline: bool) -> CpuId {
    let mut leaves = supported.clone();
    let id = u32::from(index);
    let count = u32::from(cpus);
    let bits = core_bits(cpus);
    let amd = supported.as_slice().iter().any(|e| e.function == 0 && e.ebx == u32::from_le_bytes(*b"Auth"));
    for e in leaves.as_mut_slice() {
        match e.function {
            0x1 => {
                // EBX: initial APIC id, number of APIC ids, CLFLUSH size, brand index (Intel SDM, CPUID).
                e.ebx = e.ebx & 0xffff | (1 << bits).min(255) << 16 | id << 24;
                e.ecx |= HYPERVISOR;
                if tsc_deadline {
                    e.ecx |= TSC_DEADLINE;
                } else {
                    e.ecx &= !TSC_DEADLINE;
                }
                e.edx = if cpus > 1 { e.edx | HTT } else { e.edx & !HTT };
            }
            // Deterministic cache parameters: EAX 25:14 CPUs that share the cache, less one; 31:26 cores, less one
            // (Intel only). The first two levels belong to a core, the third to the package.
            0x4 | 0x8000_001d if e.eax & 0x1f != 0 => {
                let level = e.eax >> 5 & 7;
                let sharing = if level >= 3 { (1 << bits) - 1 } else { 0 };
                let cores = if amd { 0 } else { ((1 << bits) - 1_u32).min(63) };
                e.eax = e.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            // Extended topology: one thread a core, then all cores; EDX is the x2APIC id.
            0xb | 0x1f => {
                (e.eax, e.ebx, e.ecx) = match e.index {
                    0 => (0, 1, 1 << 8),
                    1 => (bits, count, 1 | 2 << 8),
                    n => (0, 0, n & 0xff),
                };
                e.edx = id;
            }
            0x8000_0001 if amd => {
                e.ecx = if cpus > 1 { e.ecx | CMP_LEGACY } else { e.ecx & !CMP_LEGACY };
            }
            // ECX 7:0 cores, less one; 15:12 bits of the core number in an APIC id (AMD APM volume 3, appendix E).
            0x8000_0008 if amd => e.ecx = e.ecx & !0xf0ff | (count - 1) | bits << 12,
            // Extended APIC id; core id with one thread; one node.
            0x8000_001e if amd => (e.eax, e.ebx, e.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    complete_topology(&mut leaves, id, count, bits);
    if amd && !supported.as_slice().iter().any(|e| e.function == 0x8000_001e) {
        for e in leaves.as_mut_slice().iter_mut().filter(|e| e.function == 0x8000_0001) {
            e.ecx &= !TOPOLOGY_EXTENSIONS;
        }
    }
    leaves
}

/// KVM lists leaf 0xb with as many levels as the host has; the guest needs the two of [`of`].
fn complete_topology(leaves: &mut CpuId, id: u32, count: u32, bits: u32) {
    let has = |index: u32| leaves.as_slice().iter().any(|e| e.function == 0xb && e.index == index);
    if has(0) && !has(1) {
        let level = kvm_cpuid_entry2 {
            function: 0xb,
            index: 1,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: bits,
            ebx: count,
            ecx: 1 | 2 << 8,
            edx: id,
            padding: [0; 3],
        };
        // The list has room for one more unless it is at KVM's own limit; without this level the guest falls back to
        // leaf 1, which says the same.
        let _ = leaves.push(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(leaves: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    fn supported() -> CpuId {
        let entry = |function, index, ebx| kvm_cpuid_entry2 { function, index, ebx, ..Default::default() };
        CpuId::from_entries(&[
            entry(0, 0, u32::from_le_bytes(*b"Auth")),
            entry(1, 0, 0x0505_0800),
            entry(0xb, 0, 0),
            entry(0x8000_0001, 0, 0),
            entry(0x8000_0008, 0, 0),
            entry(0x8000_001e, 0, 0),
            entry(0x4000_0000, 0, 7),
        ])
        .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_one_package() {
        let leaves = of(&supported(), 2, 3, true);
        let one = leaf(&leaves, 1, 0);
        assert_eq!(one.ebx, 2 << 24 | 4 << 16 | 0x800);
        assert_eq!(one.ecx & (TSC_DEADLINE | HYPERVISOR), TSC_DEADLINE | HYPERVISOR);
        assert_eq!(one.edx & HTT, HTT);
        let core = leaf(&leaves, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.edx), (2, 3, 2));
        assert_eq!(leaf(&leaves, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        assert_eq!(leaf(&leaves, 0x8000_001e, 0).eax, 2);
        assert_eq!(leaf(&leaves, 0x4000_0000, 0).ebx, 7, "KVM's own leaves stay");
    }

    #[test]
    fn a_single_vcpu_is_not_a_multiprocessor() {
        let leaves = of(&supported(), 0, 1, false);
        let one = leaf(&leaves, 1, 0);
        assert_eq!(one.ebx, 1 << 16 | 0x800);
        assert_eq!(one.ecx & TSC_DEADLINE, 0);
        assert_eq!(one.edx & HTT, 0);
        assert_eq!(leaf(&leaves, 0xb, 1).eax, 0);
    }
}
