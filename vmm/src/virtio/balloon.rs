//! virtio-balloon: memory that the guest does not need goes back to the host (virtio 1.2, section 5.5).
//!
//! Two ways: the host sets a target and the guest's balloon takes pages until it is that large (inflate), and the guest
//! reports pages that have been free for a while (free page reporting). Either way the pages' contents are dropped and
//! they are zeros when the guest touches them again; giving them back to the guest (deflate) needs nothing.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use super::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use super::event_loop::{EventLoop, Handler, Registration};
use super::queue::{VirtQueue, cannot, work_off};
use super::{guest_io, lock};
use crate::config::BalloonConfig;

/// Device type.
const ID: u32 = 5;
/// Feature: the guest may take pages back by itself.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: the guest reports free pages.
const F_REPORTING: u64 = 1 << 5;
/// Bytes of a page as the balloon counts them, whatever either side's pages are (section 5.5.6).
const PAGE: u64 = 4096;
/// Pages in a MiB.
const PAGES_PER_MIB: u32 = 256;
/// The most pages that one request has; Linux's have 256.
const MAX_PAGES: u64 = 4096;
/// Where in the configuration the guest says how large the balloon is.
const CONFIG_ACTUAL: u64 = 4;

/// Inflate, deflate, and (with F_REPORTING) reports. Linux numbers the queues that there are, without gaps.
const QUEUE_SIZES: [u16; 3] = [128, 128, 64];
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const REPORT: u32 = 2;

#[derive(Default)]
struct Shared {
    /// In pages.
    target: AtomicU32,
    actual: AtomicU32,
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

/// The host's hold on a balloon.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

impl fmt::Debug for BalloonControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonControl").field("actual_mib", &self.actual_mib()).finish_non_exhaustive()
    }
}

impl BalloonControl {
    /// Asks the guest to make the balloon so large, in MiB. It does so as far as it can, in its own time.
    pub fn set_target(&self, mib: u32) {
        self.0.target.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::Release);
        if let Some(interrupt) = &*lock(&self.0.interrupt) {
            interrupt.config_changed();
        }
    }

    /// How large the guest says it is, in MiB.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual.load(Ordering::Acquire) / PAGES_PER_MIB
    }
}

/// A virtio-balloon device.
pub struct Balloon {
    config: BalloonConfig,
    shared: Arc<Shared>,
    events: EventLoop,
    active: Option<(Registration, Vec<EventFd>)>,
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Balloon {
    /// A device that works on `events`, and the hold on it.
    pub fn new(config: BalloonConfig, events: EventLoop) -> (Self, BalloonControl) {
        let shared = Arc::new(Shared::default());
        (Self { config, shared: shared.clone(), events, active: None }, BalloonControl(shared))
    }
}

struct Requests {
    inflate: VirtQueue,
    deflate: VirtQueue,
    report: Option<VirtQueue>,
}

impl Handler for Requests {
    fn ready(&mut self, token: u32, _: EventSet) {
        match (token, &mut self.report) {
            (INFLATE, _) => {
                self.inflate.heard();
                let mut flood = false;
                work_off(&mut self.inflate, |memory, chain| {
                    flood |= !inflate(memory, chain.readable);
                    Some(0)
                });
                if flood {
                    self.inflate.violate(&Flood);
                }
            }
            (DEFLATE, _) => {
                self.deflate.heard();
                work_off(&mut self.deflate, |_, _| Some(0));
            }
            (REPORT, Some(queue)) => {
                queue.heard();
                work_off(queue, |memory, chain| {
                    for segment in chain.writable.segments() {
                        give_back(memory, segment.address.0, segment.length.into());
                    }
                    Some(0)
                });
            }
            _ => {}
        }
    }
}

/// More pages at once than any driver has reason to name.
#[derive(Debug, thiserror::Error)]
#[error("a balloon request names more than {MAX_PAGES} pages")]
struct Flood;

/// Drops the pages whose numbers `list` holds; false if it is too long. Numbers that are no memory's are passed over.
fn inflate(memory: &GuestMemoryMmap, mut list: Buffers) -> bool {
    if list.len() > MAX_PAGES * 4 {
        return false;
    }
    // The run of pages that follow one another, from the first to past the last.
    let mut run = 0..0;
    while let Some(number) = list.read_array(memory) {
        let number = u64::from(u32::from_le_bytes(number));
        if number == run.end && !run.is_empty() {
            run.end += 1;
        } else if number + 1 == run.start && !run.is_empty() {
            // Linux hands them out from the top.
            run.start = number;
        } else {
            give_back(memory, run.start * PAGE, (run.end - run.start) * PAGE);
            run = number..number + 1;
        }
    }
    give_back(memory, run.start * PAGE, (run.end - run.start) * PAGE);
    true
}

/// Gives the whole pages within a range back to the host. That it cannot be done is no reason to stop anything.
fn give_back(memory: &GuestMemoryMmap, address: u64, length: u64) {
    let page = host_page();
    let start = address.next_multiple_of(page);
    let end = (address + length) / page * page;
    if start < end {
        let _ = guest_io::discard(memory, GuestAddress(start), end - start);
    }
}

/// Bytes of a page of the host: what it can take back.
fn host_page() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(PAGE)
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        if self.config.free_page_reporting { &QUEUE_SIZES } else { &QUEUE_SIZES[..2] }
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | if self.config.deflate_on_oom { F_DEFLATE_ON_OOM } else { 0 }
            | if self.config.free_page_reporting { F_REPORTING } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.shared.target.load(Ordering::Acquire).to_le_bytes());
        config[4..].copy_from_slice(&self.shared.actual.load(Ordering::Acquire).to_le_bytes());
        super::read_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (CONFIG_ACTUAL, Ok(value)) = (offset, data.try_into()) {
            self.shared.actual.store(u32::from_le_bytes(value), Ordering::Release);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let inflate = VirtQueue::take(&mut activation, 0)?;
        let deflate = VirtQueue::take(&mut activation, 1)?;
        let report = match activation.features & F_REPORTING {
            0 => None,
            _ => VirtQueue::take_optional(&mut activation, 2)?,
        };
        let mut doorbells = Vec::with_capacity(QUEUE_SIZES.len());
        for queue in [Some(&inflate), Some(&deflate), report.as_ref()].into_iter().flatten() {
            doorbells.push(queue.doorbell().try_clone().map_err(cannot("duplicate a queue's doorbell"))?);
        }
        let registration = self.events.register();
        self.events.install(&registration, Arc::new(Mutex::new(Requests { inflate, deflate, report })));
        let watched = (0..)
            .zip(&doorbells)
            .try_for_each(|(token, doorbell)| registration.watch(doorbell, token, EventSet::IN));
        self.active = Some((registration, doorbells));
        *lock(&self.shared.interrupt) = Some(activation.interrupt);
        watched.map_err(cannot("watch the balloon's queues"))
    }

    fn reset(&mut self) {
        *lock(&self.shared.interrupt) = None;
        self.shared.actual.store(0, Ordering::Release);
        if let Some((registration, doorbells)) = self.active.take() {
            self.events.remove(&registration);
            for doorbell in &doorbells {
                registration.forget(doorbell);
            }
        }
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.reset();
    }
}
