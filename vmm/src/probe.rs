//! Whether KVM is any good here. That `/dev/kvm` opens means little: on some machines it is there for paravirtualised
//! guests, interprets a guest's kernel code instruction by instruction, and fails on instructions that every Linux uses. So
//! a guest is run: a short loop, timed, then each of those instructions.
//!
//! The guest is a page of machine code in long mode, its tables in the pages before it:
//!
//! | address | what |
//! | --- | --- |
//! | 0x500 | descriptors: null, 64-bit code, data |
//! | 0x600 | interrupt gates; only that of INT3 is present |
//! | 0x1000, 0x2000, 0x3000 | page tables: the first 2 MiB at their own addresses, in one page |
//! | 0x4000 | the program |
//! | 0x5000 | the handler of INT3 |
//! | 0x6000 | a page of zeroes to work on |
//! | 0x8000 | the top of the stack |
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Guests run on the processor.
    Hardware,
    /// Guests are interpreted, or stop where they should not.
    Interpreted {
        /// How fast the loop ran; 0 if it did not come to its end.
        instructions_per_second: u64,
        /// What did not work, for people.
        failures: Vec<String>,
    },
    /// There is a KVM, and this user may not use it.
    NoAccess {
        /// Why, and what helps.
        reason: String,
    },
    /// There is no KVM.
    Absent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Hardware => write!(f, "KVM runs guests on the processor"),
            Verdict::Interpreted { instructions_per_second: 0, failures } => {
                write!(f, "KVM cannot run a guest here ({})", failures.join(", "))
            }
            Verdict::Interpreted { instructions_per_second, failures } => {
                let millions = *instructions_per_second as f64 / 1e6;
                write!(
                    f,
                    "KVM here has no hardware behind it: it runs {millions:.1} million instructions a second"
                )?;
                if failures.is_empty() { Ok(()) } else { write!(f, " and fails on {}", failures.join(", ")) }
            }
            Verdict::NoAccess { reason } => write!(f, "{reason}"),
            Verdict::Absent => {
                let features = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                let has = |feature| features.split_whitespace().any(|word| word == feature);
                match (has("svm"), has("vmx")) {
                    (true, _) => write!(f, "/dev/kvm is missing: sudo modprobe kvm-amd"),
                    (_, true) => write!(f, "/dev/kvm is missing: sudo modprobe kvm-intel"),
                    _ => write!(
                        f,
                        "this machine has no KVM: its processor shows neither SVM nor VMX (turned off in the firmware, \
                         or in the hypervisor that this machine is a guest of)"
                    ),
                }
            }
        }
    }
}

/// Instructions in the timed loop: a tenth of a second where they are interpreted, a fraction of a millisecond where not.
const LOOP: u32 = 300_000;

/// Instructions a second from which on it is a processor that executes them. Interpreters reach 3 million, a processor
/// that is itself emulated (QEMU without acceleration) over 100, and 20 on a host that has three times as much to do.
const ENOUGH: u64 = 8_000_000;

/// How often the loop is timed, because the first time pays for page faults, and any may be preempted.
const ROUNDS: usize = 3;

const GDT: u64 = 0x500;
const IDT: u64 = 0x600;
const TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const PROGRAM: u64 = 0x4000;
const HANDLER: u64 = 0x5000;
const DATA: u64 = 0x6000;
const STACK: u64 = 0x8000;
const MEMORY: usize = 0x1_0000;

/// HLT, with which every program of the probe ends.
const HLT: u8 = 0xf4;

/// Runs the probe. Takes less than a quarter of a second.
pub fn probe() -> Verdict {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return closed(&error.into()),
    };
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        match run(&kvm, &timed_loop(), false) {
            Ok(took) => best = best.min(took),
            Err(failure) => {
                return Verdict::Interpreted { instructions_per_second: 0, failures: vec![failure] };
            }
        }
        // A second try would not make it ten times as fast.
        if speed(best) < ENOUGH / 4 || speed(best) >= ENOUGH {
            break;
        }
    }
    let mut failures = Vec::new();
    for (name, program, uses_xsave) in instructions() {
        if let Err(failure) = run(&kvm, program, uses_xsave) {
            failures.push(format!("{name} ({failure})"));
        }
    }
    let instructions_per_second = speed(best);
    if instructions_per_second >= ENOUGH && failures.is_empty() {
        Verdict::Hardware
    } else {
        Verdict::Interpreted { instructions_per_second, failures }
    }
}

fn speed(took: Duration) -> u64 {
    (f64::from(LOOP) / took.as_secs_f64().max(1e-9)) as u64
}

/// `mov ecx, LOOP/2; 1: dec ecx; jnz 1b; hlt`.
fn timed_loop() -> Vec<u8> {
    let mut program = vec![0xb9];
    program.extend_from_slice(&(LOOP / 2).to_le_bytes());
    program.extend_from_slice(&[0xff, 0xc9, 0x75, 0xfc, HLT]);
    program
}

/// The instructions that are tried, RDI pointing to zeroes; and whether the third is one of XSAVE's.
fn instructions() -> [(&'static str, &'static [u8], bool); 3] {
    [
        ("CMPXCHG16B", &[0x48, 0x0f, 0xc7, 0x0f, HLT], false),
        // xor edx, edx; mov eax, 1; xrstor [rdi]: x87 state to its initial values, as the header of zeroes says.
        ("XRSTOR", &[0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0xae, 0x2f, HLT], true),
        ("INT3", &[0xcc, HLT], false),
    ]
}

/// Runs a program to its HLT, and gives how long it took; or what happened in its place.
fn run(kvm: &Kvm, program: &[u8], uses_xsave: bool) -> Result<Duration, String> {
    let failed = |what: &'static str| move |e: kvm_ioctls::Error| format!("{what}: {}", io::Error::from(e));
    let vm = kvm.create_vm().map_err(failed("making a VM"))?;
    let memory = memory(program).map_err(|e| format!("making its memory: {e}"))?;
    let host = memory.get_host_address(GuestAddress(0)).map_err(|e| format!("making its memory: {e}"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: the region is all of `memory`, which is dropped after `vcpu` and `vm`, in the reverse order of their
    // declaration or, here, at the end of this function, where nothing runs the vCPU any more.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("making a vCPU"))?;

    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("asking for CPUID"))?;
    let has_xsave = cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & (1 << 26) != 0);
    if uses_xsave && !has_xsave {
        return Err("CPUID denies XSAVE".into());
    }
    vcpu.set_cpuid2(&cpuid).map_err(failed("setting CPUID"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("reading registers"))?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable { base: GDT, limit: 3 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 4 * 16 - 1, ..Default::default() };
    sregs.cr3 = TABLES[0];
    // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR and perhaps OSXSAVE; LME and LMA.
    sregs.cr0 = 0x8005_0033;
    sregs.cr4 = (1 << 5) | (1 << 9) | (u64::from(uses_xsave) << 18);
    sregs.efer = (1 << 8) | (1 << 10);
    vcpu.set_sregs(&sregs).map_err(failed("setting registers"))?;
    let mut regs = vcpu.get_regs().map_err(failed("reading registers"))?;
    (regs.rip, regs.rdi, regs.rsp, regs.rflags) = (PROGRAM, DATA, STACK, 2);
    vcpu.set_regs(&regs).map_err(failed("setting registers"))?;

    let begun = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(begun.elapsed()),
            Ok(exit) => {
                return Err(format!("{exit:?}").split(['(', ' ']).next().unwrap_or_default().to_owned());
            }
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(failed("running it")(e)),
        }
    }
}

/// The guest's memory with its tables and the program.
fn memory(program: &[u8]) -> Result<GuestMemoryMmap, Box<dyn std::error::Error>> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    let put = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
    // Intel SDM volume 3, 3.4.5: 64-bit code, execute and read; then data, read and write.
    put(0x00af_9b00_0000_ffff, GDT + 8)?;
    put(0x00cf_9300_0000_ffff, GDT + 16)?;
    // 6.14.1: a present 64-bit interrupt gate to the code segment; the handler is below 64 KiB.
    put(HANDLER | (8 << 16) | (0x8e00 << 32), IDT + 3 * 16)?;
    // 4.5: present, writable; the last one a page of 2 MiB.
    put(TABLES[1] | 3, TABLES[0])?;
    put(TABLES[2] | 3, TABLES[1])?;
    put(0x83, TABLES[2])?;
    memory.write_slice(program, GuestAddress(PROGRAM))?;
    // iretq
    memory.write_slice(&[0x48, 0xcf], GuestAddress(HANDLER))?;
    Ok(memory)
}

/// Why `/dev/kvm` does not open.
fn closed(error: &io::Error) -> Verdict {
    if !matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) {
        return Verdict::Absent;
    }
    let (mode, gid) = std::fs::metadata("/dev/kvm").map_or((0, 0), |m| (m.mode(), m.gid()));
    let group = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|u| u.name);
    let user = user.as_deref().unwrap_or("$USER");
    Verdict::NoAccess {
        reason: advice(mode, gid, group.as_ref().map(|g| (g.name.as_str(), g.mem.as_slice())), user),
    }
}

/// What helps a user whom `/dev/kvm` with this mode and group keeps out; the group with its members.
fn advice(mode: u32, gid: u32, group: Option<(&str, &[String])>, user: &str) -> String {
    match group {
        Some((name, members)) if mode & 0o060 == 0o060 && gid != 0 => {
            if members.iter().any(|m| m == user) {
                format!("/dev/kvm is for group {name}, and {user} has joined it but not logged in since: newgrp {name}")
            } else {
                format!("/dev/kvm is for group {name}: sudo usermod -aG {name} {user}, then log in anew")
            }
        }
        _ => "/dev/kvm is for root alone: sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm, then join group kvm: \
              sudo usermod -aG kvm $USER, and log in anew"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_out_is_told_the_command_that_helps() {
        let nobody: &[String] = &[];
        let me = [String::from("me")];
        assert!(advice(0o20660, 103, Some(("kvm", nobody)), "me").contains("sudo usermod -aG kvm me"));
        assert!(advice(0o20660, 103, Some(("kvm", &me)), "me").contains("newgrp kvm"));
        assert!(advice(0o20600, 0, Some(("root", nobody)), "me").contains("sudo chmod 660 /dev/kvm"));
        assert!(advice(0o20660, 4711, None, "me").contains("sudo chmod 660 /dev/kvm"));
    }

    #[test]
    fn a_missing_device_is_not_a_matter_of_groups() {
        assert_eq!(closed(&io::Error::from_raw_os_error(libc::ENOENT)), Verdict::Absent);
        assert!(matches!(closed(&io::Error::from_raw_os_error(libc::EACCES)), Verdict::NoAccess { .. }));
    }

    #[test]
    fn sentences_name_the_speed_and_what_fails() {
        let verdict =
            Verdict::Interpreted { instructions_per_second: 3_300_000, failures: vec!["INT3 (x)".into()] };
        let text = verdict.to_string();
        assert!(text.ends_with("3.3 million instructions a second and fails on INT3 (x)"), "{text}");
    }
}
