//! Which system calls each kind of thread may make.
//!
//! A call is in a list when the kind's work makes it, or when the standard library or the allocator may make it on any thread.
//! The lists follow the code; `seccomp = log` names in the host's audit log what one lacks.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::{Error, ThreadKind, tree};
use crate::config::Seccomp;

/// What any Rust thread may need: memory, locks, signals' returns, time, its end; and what an abort or a panic takes.
const EVERYONE: &[c_long] = &[
    SYS_brk,
    SYS_clock_gettime,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    // The standard library's check in debug builds that a descriptor is open when it is closed.
    SYS_fcntl,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_read,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
];

/// Control socket, signalfd, terminal, ending vCPUs; resetting devices and removing their sockets in the end; looking at a
/// disk that is attached.
const MAIN: &[c_long] = &[
    SYS_clock_nanosleep,
    SYS_epoll_ctl,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_flock,
    SYS_fstat,
    SYS_getsockopt,
    SYS_lseek,
    SYS_newfstatat,
    SYS_nanosleep,
    SYS_poll,
    SYS_ppoll,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_shutdown,
    SYS_statx,
    SYS_unlink,
];

/// KVM_RUN, and the emulated devices' own work: console output, eventfds, the activation and the reset of virtio devices.
const VCPU: &[c_long] = &[SYS_clock_nanosleep, SYS_epoll_create1, SYS_epoll_ctl, SYS_eventfd2, SYS_shutdown];

/// Descriptors for the process that serves a folder.
const FOLDER_VCPU: &[c_long] = &[SYS_sendmsg];

/// Unix sockets, randomness, network frames, memory that goes back, the console.
const DEVICES: &[c_long] = &[
    SYS_accept4,
    SYS_connect,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_fallocate,
    SYS_getsockopt,
    SYS_preadv,
    SYS_preadv2,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_socket,
    SYS_writev,
];

/// Reads and writes at offsets, flushes, holes, what the page cache need not keep.
const DISK: &[c_long] = &[
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_fadvise64,
    SYS_fallocate,
    SYS_fdatasync,
    SYS_fstat,
    SYS_fsync,
    SYS_lseek,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
];

/// Making threads; [`every kind's calls`](rules) are added, since its threads inherit its filter.
const SPAWNER: &[c_long] = &[SYS_clone, SYS_clone3, SYS_prctl, SYS_rseq, SYS_seccomp, SYS_set_robust_list];

/// `_IO(KVMIO, 0x80)` and `_IOR(KVMIO, 0x81, struct kvm_regs)` (linux/kvm.h): run, and where it was when it failed.
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
/// Discard and zeroing on block devices (linux/fs.h).
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;
/// What a TAP device is, how long the headers before its frames are, and what its user takes (linux/if_tun.h).
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// A block device's size and block size, for one that is attached (linux/fs.h).
const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKSSZGET: u64 = 0x1268;

/// ioctl(2) is allowed for these requests only.
fn ioctls(kind: ThreadKind) -> &'static [u64] {
    match kind {
        ThreadKind::Main => &[TCGETS, TCSETS, BLKGETSIZE64, BLKSSZGET, TUNGETIFF, TUNSETVNETHDRSZ],
        ThreadKind::Vcpu | ThreadKind::FolderVcpu => &[KVM_RUN, KVM_GET_REGS],
        ThreadKind::Devices => &[TUNSETOFFLOAD],
        ThreadKind::Disk => &[BLKDISCARD, BLKZEROOUT],
        ThreadKind::Spawner => &[
            TCGETS,
            TCSETS,
            BLKGETSIZE64,
            BLKSSZGET,
            KVM_RUN,
            KVM_GET_REGS,
            BLKDISCARD,
            BLKZEROOUT,
            TUNSETOFFLOAD,
        ],
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(kind: ThreadKind) -> Result<Rules, Error> {
    let lists: &[&[c_long]] = match kind {
        ThreadKind::Main => &[EVERYONE, MAIN],
        ThreadKind::Vcpu => &[EVERYONE, VCPU],
        ThreadKind::FolderVcpu => &[EVERYONE, VCPU, FOLDER_VCPU],
        ThreadKind::Devices => &[EVERYONE, DEVICES],
        ThreadKind::Disk => &[EVERYONE, DISK],
        ThreadKind::Spawner => &[EVERYONE, VCPU, DEVICES, DISK, SPAWNER],
    };
    let mut rules: Rules = lists.concat().into_iter().map(|call| (call, Vec::new())).collect();
    let mut requests = Vec::new();
    for &request in ioctls(kind) {
        // The request is the second argument; the kernel looks at 32 bits of it.
        let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
        requests.push(SeccompRule::new(vec![condition])?);
    }
    if !requests.is_empty() {
        rules.insert(SYS_ioctl, requests);
    }
    Ok(rules)
}

/// The filter of a kind of thread.
pub(super) fn program(kind: ThreadKind, seccomp: Seccomp) -> Result<BpfProgram, Error> {
    let otherwise = match seccomp {
        Seccomp::Enforce => SeccompAction::KillProcess,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Off => SeccompAction::Allow,
    };
    #[cfg(target_arch = "x86_64")]
    let arch = seccompiler::TargetArch::x86_64;
    // A filter whose two actions are the same is refused; Off has none at all.
    let allowed = if seccomp == Seccomp::Off { SeccompAction::Log } else { SeccompAction::Allow };
    let (plain, conditional): (Rules, Rules) =
        rules(kind)?.into_iter().partition(|(_, rules)| rules.is_empty());
    let rest = SeccompFilter::new(conditional, otherwise, allowed, arch)?.try_into()?;
    let plain = plain.keys().filter_map(|call| u32::try_from(*call).ok()).collect();
    Ok(tree::allow_before(&plain, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ThreadKind; 5] =
        [ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::FolderVcpu, ThreadKind::Devices, ThreadKind::Disk];

    #[test]
    fn every_filter_compiles_within_the_kernels_limit() {
        for kind in KINDS.into_iter().chain([ThreadKind::Spawner]) {
            assert!(program(kind, Seccomp::Enforce).unwrap().len() <= 4096);
        }
    }

    #[test]
    fn the_spawner_may_what_its_threads_may() {
        let spawner = rules(ThreadKind::Spawner).unwrap();
        for kind in [ThreadKind::Vcpu, ThreadKind::FolderVcpu, ThreadKind::Devices, ThreadKind::Disk] {
            assert!(rules(kind).unwrap().keys().all(|call| spawner.contains_key(call)), "{kind:?}");
        }
    }

    #[test]
    fn no_thread_opens_executes_or_makes_threads() {
        for kind in KINDS {
            let rules = rules(kind).unwrap();
            for call in [SYS_open, SYS_openat, SYS_execve, SYS_clone, SYS_clone3, SYS_ptrace, SYS_fork] {
                assert!(!rules.contains_key(&call), "{kind:?} may make the call {call}");
            }
        }
    }
}
