//! A vCPU's thread: run, look why it stopped, serve that, run again.

#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::end::End;
use crate::machine::Ending;

/// The signal that makes a vCPU leave the guest. Its handler does nothing; that KVM_RUN returns is the point.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// How often a vCPU left the guest for the VMM, by reason. What KVM handles itself (interrupt controllers, ioeventfds,
/// page faults) is not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// Reads of I/O ports.
    pub io_in: u64,
    /// Writes of I/O ports.
    pub io_out: u64,
    /// Reads of memory-mapped registers.
    pub mmio_read: u64,
    /// Writes of memory-mapped registers.
    pub mmio_write: u64,
    /// Signals for the VMM's thread.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

impl std::ops::Add for Exits {
    type Output = Self;

    fn add(self, o: Self) -> Self {
        Self {
            io_in: self.io_in + o.io_in,
            io_out: self.io_out + o.io_out,
            mmio_read: self.mmio_read + o.mmio_read,
            mmio_write: self.mmio_write + o.mmio_write,
            interrupted: self.interrupted + o.interrupted,
            other: self.other + o.other,
        }
    }
}

/// The counters behind [`Exits`], which other threads may read while the vCPU runs.
#[derive(Debug, Default)]
pub struct Counters {
    io_in: AtomicU64,
    io_out: AtomicU64,
    mmio_read: AtomicU64,
    mmio_write: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    /// How the counters stand.
    pub fn read(&self) -> Exits {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Exits {
            io_in: read(&self.io_in),
            io_out: read(&self.io_out),
            mmio_read: read(&self.mmio_read),
            mmio_write: read(&self.mmio_write),
            interrupted: read(&self.interrupted),
            other: read(&self.other),
        }
    }
}

/// One vCPU and what it reaches.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) ending: Arc<Ending>,
    pub(crate) counters: Arc<Counters>,
}

impl Vcpu {
    /// Runs until the machine ends.
    pub(crate) fn run(mut self) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        while !self.ending.ended() {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    count(&self.counters.io_in);
                    if !self.ports.read(u64::from(port), data) {
                        // Nothing drives the bus.
                        data.fill(0xff);
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    count(&self.counters.io_out);
                    self.ports.write(u64::from(port), data);
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    count(&self.counters.mmio_read);
                    if !self.mmio.read(address, data) {
                        data.fill(0xff);
                    }
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    count(&self.counters.mmio_write);
                    self.mmio.write(address, data);
                }
                Ok(VcpuExit::Shutdown) => {
                    count(&self.counters.other);
                    self.ending.set(End::TripleFault);
                }
                Ok(VcpuExit::Intr) => {
                    count(&self.counters.interrupted);
                }
                Ok(VcpuExit::InternalError) => {
                    let end = self.internal_error();
                    self.ending.set(end);
                }
                Ok(exit) => {
                    let detail = format!("an exit that the VMM does not handle: {exit:?}");
                    let end = End::InternalError { suberror: 0, rip: self.rip(), detail };
                    self.ending.set(end);
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                    count(&self.counters.interrupted);
                }
                Err(error) => {
                    let detail = format!("KVM_RUN: {error}");
                    let end = End::InternalError { suberror: 0, rip: self.rip(), detail };
                    self.ending.set(end);
                }
            }
        }
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    fn internal_error(&mut self) -> End {
        // SAFETY: KVM fills this member of the union when the exit's reason is KVM_EXIT_INTERNAL_ERROR, which it was; and
        // any bytes are valid integers.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let known = (internal.ndata as usize).min(internal.data.len());
        let detail = match internal.suberror {
            1 => "an instruction could not be emulated".into(),
            2 => "an exception while delivering an interrupt".into(),
            3 => "delivering an event failed".into(),
            4 => "an unexpected reason for an exit".into(),
            other => format!("suberror {other}"),
        };
        let detail = format!("{detail}; data {:x?}", &internal.data[..known]);
        End::InternalError { suberror: internal.suberror, rip: self.rip(), detail }
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// Makes the kick signal interrupt system calls and do nothing else.
pub(crate) fn install_kick() -> std::io::Result<()> {
    // SAFETY: all zeros are a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the structure is valid, and the handler does nothing, which is safe in a signal handler.
    match unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Makes a vCPU's thread leave the guest. It may arrive just before KVM_RUN, so it is to be repeated until the thread has
/// finished.
pub(crate) fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the thread was not joined (the handle is still there), so its id is valid; the signal has a handler.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}
